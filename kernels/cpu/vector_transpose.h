/* vector_transpose: numbers that change their lanes. LANES vectors turned around in registers (lane
 * i of vector j becomes lane j of vector i), whole blocks of floats so many at a time, every other
 * number of two, and the sums of the lanes of many vectors, which meet in one. */
#ifndef KERNELS_CPU_VECTOR_TRANSPOSE_H
#define KERNELS_CPU_VECTOR_TRANSPOSE_H

#include "kernels/cpu/vector.h"

/* Lanes of x, then of y, by number: constants, or the compiler makes a detour by memory. */
#if defined __clang__
#define PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PICK(x, y, ...) __builtin_shuffle(x, y, (vi){__VA_ARGS__})
#endif

/* clang-format off */
#define FOUR(f, i, d) f(i, d), f((i) + 1, d), f((i) + 2, d), f((i) + 3, d)
#if defined __AVX512F__
#define EACH_LANE(f, d) FOUR(f, 0, d), FOUR(f, 4, d), FOUR(f, 8, d), FOUR(f, 12, d)
#elif defined __AVX__
#define EACH_LANE(f, d) FOUR(f, 0, d), FOUR(f, 4, d)
#else
#define EACH_LANE(f, d) FOUR(f, 0, d)
#endif
#define LANE_LOW(i, d) ((i) & (d) ? (i) - (d) + LANES : (i))
#define LANE_HIGH(i, d) ((i) & (d) ? (i) + LANES : (i) + (d))

/* Swaps the blocks of d x d off the diagonal, in all blocks of twice the size. */
#define SWAP_BLOCKS(d) \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) { \
        if (i & (d)) continue; \
        const vf x = v[i], y = v[i + (d)]; \
        v[i] = PICK(x, y, EACH_LANE(LANE_LOW, d)); \
        v[i + (d)] = PICK(x, y, EACH_LANE(LANE_HIGH, d)); \
    }

INLINE void transpose(vf v[LANES]) {
#if defined __AVX512F__
    SWAP_BLOCKS(8)
#endif
#if defined __AVX__
    SWAP_BLOCKS(4)
#endif
    SWAP_BLOCKS(2)
    SWAP_BLOCKS(1)
}

/* Of each group of x followed by that of y the blocks of d lanes 0, 2, ... (odd 0) or 1, 3, ...:
 * groups are of four lanes, or of all where a block has so many. So processors need no table. */
#define GROUP(d) ((d) < 4 ? 4 : LANES)
#define BLOCK_LANE(i, d, odd) \
    ((i) / GROUP(d) * GROUP(d) + ((i) % GROUP(d) >= GROUP(d) / 2 ? LANES : 0) + \
     (i) % (GROUP(d) / 2) / (d) * 2 * (d) + (i) % (d) + (odd) * (d))
#define EVEN_BLOCKS(i, d) BLOCK_LANE(i, d, 0)
#define ODD_BLOCKS(i, d) BLOCK_LANE(i, d, 1)

/* Adds what lies d lanes apart, in vectors `step` apart, where they are not in `done`. */
#define ADD_BLOCKS(d, step, done) \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) { \
        if (i & ((step) | (done))) continue; \
        const vf x = v[i], y = v[i + (step)]; \
        v[i] = PICK(x, y, EACH_LANE(EVEN_BLOCKS, d)) + PICK(x, y, EACH_LANE(ODD_BLOCKS, d)); \
    }

/* Lane i: vf_sum(v[i]), to the bit, in a third of the instructions. v is lost. */
INLINE vf lane_sums(vf v[LANES]) {
#if defined __AVX512F__
    ADD_BLOCKS(8, 4, 0)
    ADD_BLOCKS(4, 8, 4)
#elif defined __AVX__
    ADD_BLOCKS(4, 4, 0)
#endif
    ADD_BLOCKS(2, 1, LANES - 4)
    ADD_BLOCKS(1, 2, LANES - 4 + 1)
    return v[0];
}
#undef ADD_BLOCKS
#undef ODD_BLOCKS
#undef EVEN_BLOCKS
#undef BLOCK_LANE
#undef GROUP

/* Of x followed by y the numbers 0, 2, 4 ... (first 0), or 1, 3, 5 ... (first 1). */
#define OTHER_LANE(i, first) 2 * (i) + (first)
INLINE vf every_other(vf x, vf y, const int first) {
    return first ? PICK(x, y, EACH_LANE(OTHER_LANE, 1)) : PICK(x, y, EACH_LANE(OTHER_LANE, 0));
}
#undef OTHER_LANE
/* clang-format on */
#undef SWAP_BLOCKS
#undef LANE_HIGH
#undef LANE_LOW
#undef EACH_LANE
#undef FOUR
#undef PICK

/* r = LANES rows from `from`, as columns. */
INLINE void transpose_rows(vf r[LANES], const float *from, int64_t row) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) r[i] = load_real(from + i * row);
    transpose(r);
}

/* to[n,m] = from[m,n], both multiples of LANES. */
static inline void transpose_all(float *to, int64_t to_row, const float *from, int64_t from_row,
                                 int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i += LANES)
        for (int64_t j = 0; j < n; j += LANES) {
            vf r[LANES];
            transpose_rows(r, from + i * from_row + j, from_row);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) store_real(to + (j + k) * to_row + i, r[k]);
        }
}

#endif
