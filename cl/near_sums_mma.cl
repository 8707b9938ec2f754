// target: nvptx64
// variants: -DBLOCKS=1
// near_sums.clh by mma.clh's products.
#include "products_mma.clh"
#include "near_sums.clh"
