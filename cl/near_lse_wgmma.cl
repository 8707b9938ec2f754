// target: nvptx64
// variants: -DSTEPS=1 | -DSTEPS=16
// near_lse.clh by Hopper's warpgroup products.
#include "products_wgmma.clh"
#include "near_lse.clh"
