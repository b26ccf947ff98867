/* table: which function of the cpu room computes each operation.
 *
 * Three tables, one entry for every row of ops.def: the plain definitions in float and in double,
 * and the faster float versions, NULL where there is none.  A kernel takes its row's argument
 * struct, with addresses the host may follow. */
#ifndef KERNELS_CPU_TABLE_H
#define KERNELS_CPU_TABLE_H

#include "kernels/device.h"

typedef void (*kernel_fn)(const void *args);

extern const kernel_fn kernels_f32[N_OPS];
extern const kernel_fn kernels_f64[N_OPS];
extern const kernel_fn kernels_fast[N_OPS];

#endif
