#include "kernels/cpu/table.h"

/* clang-format off */
#define OP(name, ...) void name##_f32(const void *args); void name##_f64(const void *args);
#include "kernels/ops.def"
#include "kernels/ops_undef.h"

const kernel_fn kernels_f32[N_OPS] = {
#define OP(name, ...) [OP_##name] = name##_f32,
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
};

const kernel_fn kernels_f64[N_OPS] = {
#define OP(name, ...) [OP_##name] = name##_f64,
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
};
/* clang-format on */

void matmul_fast(const void *args);
void grouped_matmul_fast(const void *args);
void grouped_weight_fast(const void *args);
void head_fast(const void *args);
void head_adjoint_fast(const void *args);

const kernel_fn kernels_fast[N_OPS] = {
    [OP_matmul] = matmul_fast,
    [OP_grouped_matmul] = grouped_matmul_fast,
    [OP_grouped_weight] = grouped_weight_fast,
    [OP_head] = head_fast,
    [OP_head_adjoint] = head_adjoint_fast,
};
