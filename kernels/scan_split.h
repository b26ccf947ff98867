/* scan_split: how the adjoint of a scan is cut into units of work, and what scratch they take. From
 * sizes alone: neither results nor plans depend on the number of threads.
 *
 * A unit is a row of the batch, a group, and some of its heads. Its tokens go by chunks of Q, the
 * last first, and a chunk by blocks. A group's gradients of b and c are sums over its heads: where
 * one unit has all heads it makes the sums itself; else every unit keeps a chunk's part, and the
 * parts are added in order before the next chunk. Where rows and groups are many, units share the
 * scratch of a worker, one after another. */
#ifndef KERNELS_SCAN_SPLIT_H
#define KERNELS_SCAN_SPLIT_H

#include <stdint.h>

/* Tokens of a block; what sizes are padded to; units to aim at, and the fewest heads of one, for
 * what its heads share; numbers of scratch that workers may take together. */
enum { SCAN_BLOCK = 32, SCAN_PAD = 16 };
enum { SCAN_UNITS = 16, SCAN_TOGETHER = 2, SCAN_WORKERS = 64, SCAN_NUMBERS = 1 << 23 };

struct scan_split {
    int64_t rows, width;     /* of a state: P and S, padded */
    int64_t parts, together; /* parts of a group, heads of a part (the last may have less) */
    int64_t units, workers;
    int64_t blocks;                   /* of a chunk */
    int64_t carry, worker, sums, all; /* numbers: of a head's carry, of a worker, of sums, of all */
};

static inline int64_t scan_padded(int64_t n) {
    return (n + SCAN_PAD - 1) / SCAN_PAD * SCAN_PAD;
}

static inline struct scan_split scan_split(int64_t B, int64_t L, int64_t H, int64_t P, int64_t G,
                                           int64_t S, int64_t Q) {
    struct scan_split s = {.rows = scan_padded(P), .width = scan_padded(S)};
    const int64_t chunk = Q < L ? Q : L, heads = G > 0 ? H / G : 0;
    if (B < 1 || heads < 1) return s;
    s.blocks = (chunk + SCAN_BLOCK - 1) / SCAN_BLOCK;
    s.carry = s.rows * s.width;
    /* A block: the state before it; b, c, b turned and the gradients of b and c; products of
     * tokens. Besides: a block's x and dy in five forms, and products by states. */
    s.worker = s.blocks * (s.carry + 5 * SCAN_BLOCK * s.width + 2 * SCAN_BLOCK * SCAN_BLOCK) +
               5 * SCAN_BLOCK * s.rows + SCAN_BLOCK * s.width;
    int64_t most = SCAN_NUMBERS / (s.worker + 1);
    if (most > SCAN_WORKERS) most = SCAN_WORKERS;
    int64_t wanted = most < SCAN_UNITS ? most : SCAN_UNITS;
    s.parts = wanted / (B * G);
    if (s.parts > heads / SCAN_TOGETHER) s.parts = heads / SCAN_TOGETHER;
    if (s.parts < 1) s.parts = 1;
    s.together = (heads + s.parts - 1) / s.parts;
    s.parts = (heads + s.together - 1) / s.together;
    s.units = B * G * s.parts;
    s.workers = s.parts > 1 || s.units < most ? s.units : most > 1 ? most : 1;
    s.sums = scan_padded(B * H * 3 * 2); /* doubles */
    s.all = s.sums + B * H * s.carry + s.workers * s.worker;
    return s;
}

#endif
