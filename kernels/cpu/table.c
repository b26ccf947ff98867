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

/* The rows of fast.def make one table a level and a format; those of f32 have no use for BF16 dot
 * products. The Makefile compiles vector_*.c for the same levels. */
enum { room_f32, room_bf16, N_ROOMS };

#define LIBRARY(op, room) void op##_library_##room(const void *args);
#if defined __x86_64__
#define VECTOR(op, room) void op##_v3_##room(const void *args); void op##_v4_##room(const void *args); VECTOR_##room(op)
#define VECTOR_f32(op)
#define VECTOR_bf16(op) void op##_v4bf16_bf16(const void *args);
#else
#define VECTOR(op, room) void op##_native_##room(const void *args);
#endif
#include "kernels/cpu/fast.def"
#undef VECTOR
#undef VECTOR_f32
#undef VECTOR_bf16
#undef LIBRARY

static const kernel_fn fast[N_CPU_LEVELS][N_ROOMS][N_OPS] = {
#define LIBRARY(op, room) [CPU_PLAIN][room_##room][OP_##op] = op##_library_##room,
#if defined __x86_64__
#define VECTOR(op, room) \
    [CPU_V3][room_##room][OP_##op] = op##_v3_##room, [CPU_V4][room_##room][OP_##op] = op##_v4_##room, VECTOR_##room(op)
#define VECTOR_f32(op)
#define VECTOR_bf16(op) [CPU_V4_BF16][room_bf16][OP_##op] = op##_v4bf16_bf16,
#else
#define VECTOR(op, room) [CPU_NATIVE][room_##room][OP_##op] = op##_native_##room,
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

kernel_fn cpu_fast_kernel(int level, enum dtype stored, enum op op) {
    if (stored != F32 && stored != BF16) return NULL;
    const int room = stored == F32 ? room_f32 : room_bf16;
    while (level > CPU_PLAIN && !fast[level][room][op]) level--;
    return fast[level][room][op];
}
