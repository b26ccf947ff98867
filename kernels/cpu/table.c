#include "kernels/cpu/table.h"

#include <string.h>

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

/* A row of fast.def has an entry a level and a format; those of F32 have no use for BF16 dot
 * products. The Makefile compiles vector_*.c for the same levels. */
enum { ROOM_F32, ROOM_BF16, N_ROOMS };

#define KERNELS(op, room) void op##_##room##_f32(const void *args); void op##_##room##_bf16(const void *args);
#define LIBRARY(op) KERNELS(op, library)
#if defined __x86_64__
#define VECTOR(op) KERNELS(op, v3) KERNELS(op, v4) void op##_v4bf16_bf16(const void *args);
#else
#define VECTOR(op) KERNELS(op, native)
#endif
#include "kernels/cpu/fast.def"
#undef VECTOR
#undef LIBRARY
#undef KERNELS

static const kernel_fn fast[N_CPU_LEVELS][N_ROOMS][N_OPS] = {
#define ENTRIES(level, op, room) [level][ROOM_F32][OP_##op] = op##_##room##_f32, [level][ROOM_BF16][OP_##op] = op##_##room##_bf16,
#define LIBRARY(op) ENTRIES(CPU_PLAIN, op, library)
#if defined __x86_64__
#define VECTOR(op) ENTRIES(CPU_V3, op, v3) ENTRIES(CPU_V4, op, v4) [CPU_V4_BF16][ROOM_BF16][OP_##op] = op##_v4bf16_bf16,
#else
#define VECTOR(op) ENTRIES(CPU_NATIVE, op, native)
#endif
#include "kernels/cpu/fast.def"
};
/* clang-format on */

int cpu_best_level(void) {
#if defined __x86_64__
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi2"))
        return CPU_PLAIN;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512cd"))
        return CPU_V3;
    return __builtin_cpu_supports("avx512bf16") ? CPU_V4_BF16 : CPU_V4;
#else
    return CPU_NATIVE;
#endif
}

const char *cpu_level_name(int level) {
#if defined __x86_64__
    static const char *const names[] = {"plain C", "AVX2", "AVX-512", "AVX-512 with BF16"};
    return names[level];
#else
    return level ? "vectors" : "plain C";
#endif
}

int cpu_level_of(const char *word) {
#if defined __x86_64__
    static const char *const words[] = {"plain", "avx2", "avx512", "avx512-bf16"};
    for (int i = 0; i < N_CPU_LEVELS; i++)
        if (!strcmp(words[i], word)) return i;
    return -1;
#else
    return strcmp(word, "plain") ? -1 : CPU_PLAIN;
#endif
}

bool cpu_library_multiplies(int level, enum dtype stored) {
    if (level == CPU_PLAIN) return true;
#if defined __x86_64__
        /* Matrix units for BF16. (An older clang cannot ask for them.) */
#if defined HAVE_DNNL && (!defined __clang__ || __clang_major__ >= 19)
    return stored == BF16 && level >= CPU_V4_BF16 && __builtin_cpu_supports("amx-bf16");
#else
    (void)stored;
    return false;
#endif
#else
    return stored != BF16;
#endif
}

kernel_fn cpu_fast_kernel(int level, enum dtype stored, enum op op) {
    if (stored != F32 && stored != BF16) return NULL;
    const int room = stored == F32 ? ROOM_F32 : ROOM_BF16;
    while (level > CPU_PLAIN && !fast[level][room][op]) level--;
    return fast[level][room][op];
}
