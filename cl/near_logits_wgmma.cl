// target: nvptx64
// variants: -DSTEPS=1 | -DSTEPS=16
// near_logits.clh by Hopper's warpgroup products.
#include "products_wgmma.clh"
#include "near_logits.clh"
