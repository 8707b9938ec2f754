// target: nvptx64
// variants: -DBLOCKS=1
// near_sums.clh by Hopper's warpgroup products.
#include "products_wgmma.clh"
#include "near_sums.clh"
