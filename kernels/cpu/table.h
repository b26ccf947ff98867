/* table: which function of the cpu room computes each operation.
 *
 * Plain definitions there are of every row of ops.def, in float and in double. Faster versions
 * there are of some, in two kinds. Those by a library (fast_matmul.c) are compiled once. Those by
 * vectors (kernels/cpu/vector.h) are compiled once for every level of the processor that is worth
 * it, and the level is chosen when the program starts, so that one program serves all machines of a
 * cluster. kernels/cpu/fast.def lists them. A kernel takes its row's argument struct, with
 * addresses the host may follow. */
#ifndef KERNELS_CPU_TABLE_H
#define KERNELS_CPU_TABLE_H

#include "kernels/device.h"

typedef void (*kernel_fn)(const void *args);

extern const kernel_fn kernels_f32[N_OPS];
extern const kernel_fn kernels_f64[N_OPS];

/* Levels, a better one after a worse: no vectors of ours; x86-64-v3 (AVX2, FMA); v4 (AVX-512);
 * v4 with the BF16 dot products. What is neither compiles for itself and has CPU_NATIVE. */
enum { CPU_PLAIN, CPU_V3, CPU_V4, CPU_V4_BF16, N_CPU_LEVELS, CPU_NATIVE = CPU_V3 };

/* The best level that this processor has. */
int cpu_best_level(void);
/* "AVX-512" and so on, for people. */
const char *cpu_level_name(int level);
/* The level of a deck's word (plain, avx2, avx512, avx512-bf16), or -1 if there is none of that
 * name. */
int cpu_level_of(const char *word);
/* Whether the products of such a level are a library's, where there is one, and not our own. */
bool cpu_library_multiplies(int level, enum dtype stored);

/* The fast version of an operation on a processor of that level, or NULL. */
kernel_fn cpu_fast_kernel(int level, enum dtype stored, enum op op);

#endif
