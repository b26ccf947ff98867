/* dnnl_tile: oneDNN's product of one tile on the calling thread. */
#ifndef KERNELS_CPU_DNNL_TILE_H
#define KERNELS_CPU_DNNL_TILE_H

#include "kernels/device.h"

/* c = or += op(a) op(b), of floats or of BF16; c holds floats if `wide`. M, N and K at least 1.
 * False: the library has no such product on this processor, and nothing was done. */
bool dnnl_tile(const struct matmul_args *a, bool floats, bool wide);

#endif
