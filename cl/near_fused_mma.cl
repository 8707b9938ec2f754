// target: nvptx64
// variants: -DBLOCKS=1 -DSTEPS=4 | -DSTEPS=16
// near_fused.clh by mma.clh's products.
#include "products_mma.clh"
#include "near_fused.clh"
