// target: nvptx64
// variants: -DBLOCKS=1 -DSTEPS=4 | -DSTEPS=16
// near_fused.clh by Hopper's warpgroup products.
#include "products_wgmma.clh"
#include "near_fused.clh"
