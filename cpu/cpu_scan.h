/* Distances of rows to queries, built once per instruction set. */
#ifndef FGMM_CPU_SCAN_H
#define FGMM_CPU_SCAN_H

#include "cpu_vector.h"

void CPU_OWN(scan)(const fgmm_scan *scan);

#endif
