// target: nvptx64
// variants: -DSTEPS=1 | -DSTEPS=16
// near_lse.clh by mma.clh's products.
#include "products_mma.clh"
#include "near_lse.clh"
