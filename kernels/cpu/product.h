/* product: one piece of a matrix product by one thread: c = or += op(a) op(b).
 *
 * What the processor multiplies at once is a unit of the contraction: one float, or, where it has
 * BF16 dot products and numbers are stored so, a pair of BF16. A block of op(b), DEPTH units deep,
 * is copied into panels of WIDTH columns, so that each step of the contraction is two loads in a
 * row; a block of op(a) into panels of ROWS rows, whose units are broadcast. ROWS x WIDTH sums stay
 * in registers. This is the scheme of Goto and van de Geijn (2008), ACM TOMS 34(3), with the blocks
 * sized so that b's panels live in the second cache and a's in the first. What is copied next is
 * called for while sums are made, a few lines at a time: copying waits for no memory then.
 *
 * Each element is one sum in the order of k, cut only at multiples of DEPTH units. So its bits
 * depend neither on the piece it is computed with nor on threads. Results in stored numbers are
 * rounded once: where the contraction is deeper than one block, sums wait in float. */
#ifndef KERNELS_CPU_PRODUCT_H
#define KERNELS_CPU_PRODUCT_H

#include "kernels/cpu/vector_transpose.h"
#include "kernels/cpu/workspace.h"

#if defined STORED_BF16 && defined __AVX512BF16__
#define PAIRS 1
enum { UNIT = 2 }; /* numbers of the contraction in a unit */
#else
#define PAIRS 0
enum { UNIT = 1 };
#endif

enum {
    ROWS = LANES == 16  ? 12
           : LANES == 8 ? 6
                        : 4, /* two vectors of sums each: 24 of 32 registers */
    WIDTH = 2 * LANES,
    DEPTH = 256,
    BLOCK_ROWS = 8 * ROWS,
    PIECE_ROWS = 384, /* the largest piece */
    PIECE_COLUMNS = 512,
    /* Panels are a few lines more than a power of two apart, else all would begin in one set of the
     * cache. */
    B_PANEL = DEPTH * WIDTH + 4 * LANES,
    A_ROW = DEPTH + 4, /* so are the rows of a panel */
    A_PANEL = A_ROW * LANES + 4 * LANES
};

/* As the rows of ops.def. c holds stored numbers, or real ones if `wide`. */
struct product {
    const stored *a, *b;
    void *c;
    int add, wide, ta, tb;
    int64_t M, N, K, lda, ldb, ldc;
};

/* What a thread works with: floats, or pairs of BF16 that are looked at as floats. */
struct workspace {
    _Alignas(64) float b[B_PANEL * (PIECE_COLUMNS / WIDTH)];
    float a[A_PANEL * (BLOCK_ROWS / ROWS)];
    float sum[(PIECE_ROWS + ROWS) * PIECE_COLUMNS]; /* whole tiles are kept */
};

/* ---- units ---- */

/* sum + x y, unit by unit */
static inline vf add_product(vf sum, vf x, vf y) {
#if PAIRS
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    return sum + x * y;
#endif
}

/* LANES units that follow each other along the contraction; n numbers are there, the rest is
 * zero. */
static inline vf units_along(const stored *p, int64_t n) {
#if PAIRS
    if (n >= 2 * LANES) return (vf)_mm512_loadu_si512(p);
    return (vf)_mm512_maskz_loadu_epi16((__mmask32)((1ull << most(n, 0)) - 1), p);
#else
    return load_left(p, most(n, 0));
#endif
}

/* The same unit of n columns beside each other; the numbers of a pair are `ld` apart. */
static inline vf units_across(const stored *p, int64_t ld, int64_t n, bool both) {
#if PAIRS
    const __mmask16 there = (__mmask16)((1u << least(n, LANES)) - 1);
    const __m256i low = _mm256_maskz_loadu_epi16(there, p);
    const __m256i high = both ? _mm256_maskz_loadu_epi16(there, p + ld) : _mm256_setzero_si256();
    return (vf)_mm512_or_si512(_mm512_cvtepu16_epi32(low),
                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
#else
    (void)ld, (void)both;
    return load_left(p, n);
#endif
}

/* ---- panels ---- */

/* Rows that are far apart are no stream to the processor: it is told which comes soon. */
enum { AHEAD = 6 };
static inline void call_for(const stored *row, int64_t ahead, int64_t n) {
    const char *p = (const char *)row + (size_t)ahead * sizeof *row;
    for (int64_t i = 0; i < n * (int64_t)sizeof *row; i += 64) __builtin_prefetch(p + i);
    if (UNIT > 1)
        for (int64_t i = 0; i < n * (int64_t)sizeof *row; i += 64)
            __builtin_prefetch(p + i - (size_t)ahead / AHEAD / 2 * sizeof *row);
}

/* Units k0 to k0+depth of columns j0 to j1 of op(b). A panel is [unit][WIDTH]. Rows are read as far
 * as they are needed, since the next is in another page. */
static void copy_b_rows(float *to, const struct product *p, int64_t j0, int64_t j1, int64_t k0,
                        int64_t depth) {
    for (int64_t k = 0; k < depth; k++) {
        const stored *row = p->b + (k0 + k) * UNIT * p->ldb;
        const bool both = (k0 + k) * UNIT + 1 < p->K;
        float *panel = to + k * WIDTH;
        call_for(row + j0, AHEAD * UNIT * p->ldb, j1 - j0);
        for (int64_t j = j0; j < j1; j += WIDTH, panel += B_PANEL) {
            store_real(panel, units_across(row + j, p->ldb, j1 - j, both));
            if (j + LANES < j1)
                store_real(panel + LANES,
                           units_across(row + j + LANES, p->ldb, j1 - j - LANES, both));
        }
    }
}

/* LANES columns from j on, n of which are there, where b is [N,K]. */
static void copy_b_columns(float *to, const struct product *p, int64_t j, int64_t n, int64_t k0,
                           int64_t depth) {
    for (int64_t k = 0; k < depth; k += LANES) {
        const stored *from = p->b + j * p->ldb + (k0 + k) * UNIT;
        const int64_t there = p->K - (k0 + k) * UNIT;
        vf v[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            v[i] = i < n ? units_along(from + i * p->ldb, there) : (vf){0};
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (i < depth - k) store_real(to + (k + i) * WIDTH, v[i]);
    }
}

static void copy_b(float *to, const struct product *p, int64_t j0, int64_t j1, int64_t k0,
                   int64_t depth) {
    if (!p->tb) copy_b_rows(to, p, j0, j1, k0, depth);
    for (int64_t j = j0; p->tb && j < j1; j += LANES)
        copy_b_columns(to + (j - j0) / WIDTH * B_PANEL + (j - j0) % WIDTH, p, j,
                       least(LANES, j1 - j), k0, depth);
}

/* Units of rows i0 to i0+n of op(a). A panel is [row][A_ROW]; if ta, [unit][LANES]. */
static void copy_a(float *to, const struct product *p, int64_t i0, int64_t n, int64_t k0,
                   int64_t depth) {
    const int64_t first = k0 * UNIT;
    if (p->ta) {
        for (int64_t k = 0; k < depth; k++) {
            const stored *row = p->a + (first + k * UNIT) * p->lda + i0;
            const bool both = first + k * UNIT + 1 < p->K;
            float *panel = to + k * LANES;
            int64_t i = 0;
            call_for(row, AHEAD * UNIT * p->lda, n);
            for (; i + ROWS <= n; i += ROWS, panel += A_PANEL)
                store_real(panel, units_across(row + i, p->lda, ROWS, both));
            if (i < n) store_real(panel, units_across(row + i, p->lda, n - i, both));
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const stored *row = p->a + (i0 + i) * p->lda + first;
            for (int64_t k = 0; k < depth; k += LANES)
                store_real(to + i / ROWS * A_PANEL + i % ROWS * A_ROW + k,
                           units_along(row + k * UNIT, p->K - first - k * UNIT));
        }
    }
}

/* ---- what is copied next ---- */

/* Lines of memory, row by row, that are called into the second cache, a few in every ROUND units of
 * every tile: many at once would hold up the loads of the sums. */
enum { ROUND = 16 };
struct coming {
    const char *row;
    int64_t stride, lines, rows; /* lines of a row; rows that are left */
    int64_t line, share;         /* of this row; lines to call for in a round */
};

/* A rectangle of numbers, to be called for in so many rounds. */
static inline struct coming coming(const stored *from, int64_t ld, int64_t rows, int64_t width,
                                   int64_t rounds) {
    struct coming c = {.row = (const char *)from,
                       .stride = ld * (int64_t)sizeof *from,
                       .lines = (width * (int64_t)sizeof *from + 63) / 64,
                       .rows = rows};
    c.share = c.lines * c.rows / rounds + 1;
    return c;
}

/* Rows i0 to i0+n of op(a), or, with b's numbers, columns of op(b), from the unit k0 on. */
static inline struct coming coming_units(const struct product *p, const stored *from, int64_t ld,
                                         bool along, int64_t i0, int64_t n, int64_t k0,
                                         int64_t rounds) {
    const int64_t first = k0 * UNIT, depth = least(DEPTH * UNIT, p->K - first);
    if (depth < 1) return (struct coming){0};
    return along ? coming(from + i0 * ld + first, ld, n, depth, rounds)
                 : coming(from + first * ld + i0, ld, depth, n, rounds);
}

INLINE void call_share(struct coming *c) {
    for (int64_t n = c->share; n > 0 && c->rows > 0; n--) {
        __builtin_prefetch(c->row + c->line * 64, 0, 2);
        if (++c->line < c->lines) continue;
        c->line = 0;
        c->row += c->stride;
        c->rows--;
    }
}

/* ---- sums ---- */

/* What one tile's sums are of, where they begin, and where they go. */
struct tile {
    const float *a, *b;
    int64_t depth;
    const float *from; /* sums so far, [ROWS][PIECE_COLUMNS], or NULL */
    void *to;          /* float or stored numbers, rows `ld` apart */
    int64_t ld;
    bool narrow, add;
    struct coming *next_a, *next_b;
};

/* The sums of `rows` rows and `vectors` vectors. Unit k of row i is a[i * row + k * unit]. Sizes
 * are constants where this is called, so that the sums are registers. The result is called for
 * early: it comes from memory while the sums are made. */
INLINE void sums(const struct tile *t, const int row, const int unit, const int rows,
                 const int vectors) {
    vf s[ROWS][2];
    const float *a = t->a, *b = t->b;
    const size_t size = t->narrow ? sizeof(stored) : sizeof(float);
    char *to = t->to;
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) s[i][0] = s[i][1] = (vf){0};
    for (int64_t k = t->depth, round = 0; k > 0; round++) {
        if (round < rows) {
            __builtin_prefetch(to, 1);
            __builtin_prefetch(to + (size_t)(vectors * LANES - 1) * size, 1);
            to += (size_t)t->ld * size;
            if (t->from) __builtin_prefetch(t->from + round * PIECE_COLUMNS);
            if (t->from) __builtin_prefetch(t->from + round * PIECE_COLUMNS + WIDTH - 1);
        }
        call_share(t->next_a);
        call_share(t->next_b);
        for (int64_t n = k < ROUND ? k : ROUND; n > 0; n--, k--) {
            const vf b0 = load_real(b), b1 = vectors > 1 ? load_real(b + LANES) : b0;
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++) {
                const vf x = vf_all(a[i * row]);
                s[i][0] = add_product(s[i][0], x, b0);
                if (vectors > 1) s[i][1] = add_product(s[i][1], x, b1);
            }
            a += unit;
            b += WIDTH;
        }
    }
    if (t->from) {
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++)
                s[i][v] += load_real(t->from + i * PIECE_COLUMNS + v * LANES);
    }
    if (t->narrow) {
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++)
                put((stored *)t->to + i * t->ld + v * LANES, s[i][v], t->add);
    } else {
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++)
                put_real((float *)t->to + i * t->ld + v * LANES, s[i][v], t->add);
    }
}

#define SUMS(name, rows, vectors)                                                                  \
    static __attribute__((noinline)) void name(const struct tile *t) {                             \
        sums(t, A_ROW, 1, rows, vectors);                                                          \
    }                                                                                              \
    static __attribute__((noinline)) void name##_ta(const struct tile *t) {                        \
        sums(t, 1, LANES, rows, vectors);                                                          \
    }
SUMS(sums_all, ROWS, 2)
SUMS(sums_most, ROWS * 2 / 3, 2)
SUMS(sums_some, ROWS / 3, 2)
SUMS(sums_narrow, ROWS, 1)
#undef SUMS

/* Results of up to ROWS x WIDTH. Where no version is that small, more are computed, into a
 * buffer. */
static void some_sums(struct tile *t, int ta, int64_t rows, int64_t columns) {
    _Alignas(64) float sum[ROWS][WIDTH];
    void *const to = t->to;
    const int64_t ld = t->ld, made = rows <= ROWS / 3       ? ROWS / 3
                                     : rows <= ROWS * 2 / 3 ? ROWS * 2 / 3
                                                            : ROWS;
    const bool whole = columns == WIDTH && rows == made, narrow = t->narrow, add = t->add;
    if (!whole) {
        t->to = sum;
        t->ld = WIDTH;
        t->narrow = t->add = false;
    }
    if (columns <= LANES) (ta ? sums_narrow_ta : sums_narrow)(t);
    else if (made == ROWS / 3) (ta ? sums_some_ta : sums_some)(t);
    else if (made == ROWS * 2 / 3) (ta ? sums_most_ta : sums_most)(t);
    else (ta ? sums_all_ta : sums_all)(t);
    for (int64_t i = 0; !whole && i < rows; i++)
        for (int64_t j = 0; j < columns; j += LANES) {
            const int64_t n = columns - j, at = i * ld + j;
            const vf v = load_real(sum[i] + j);
            if (narrow) put_left((stored *)to + at, v, n, add);
            else put_real_left((float *)to + at, v, n, add);
        }
}

/* Rows i0 to i1 and columns j0 to j1 of the result, at most PIECE_ROWS x PIECE_COLUMNS. K may be 0.
 * *held: what b's panels hold as a whole, or NULL; for a thread's next piece of the same
 * product. */
static void product_piece(const struct product *p, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                          const stored **held) {
    struct workspace *w = cpu_workspace(sizeof *w);
    const stored *columns = p->b + (p->tb ? j0 * p->ldb : j0);
    const int64_t units = most(1, (p->K + UNIT - 1) / UNIT);
    const int64_t across = (j1 - j0 + WIDTH - 1) / WIDTH;
    const bool waits = !p->wide && units > DEPTH;
    for (int64_t k0 = 0; k0 < units; k0 += DEPTH) {
        const int64_t depth = p->K > 0 ? least(DEPTH, units - k0) : 0;
        if (units > DEPTH || *held != columns) copy_b(w->b, p, j0, j1, k0, depth);
        *held = depth > 0 ? columns : NULL; /* an expert without rows begins where the next does */
        const int64_t rounds = (depth + ROUND - 1) / ROUND * across;
        struct coming next_b = coming_units(p, p->b, p->ldb, p->tb, j0, j1 - j0, k0 + DEPTH,
                                            (i1 - i0 + ROWS - 1) / ROWS * rounds);
        /* If ta, rows lie beside each other and are read together; else a panel stays in the first
         * cache. */
        const int64_t step = p->ta ? BLOCK_ROWS : ROWS;
        for (int64_t block = i0; block < i1; block += step) {
            const int64_t end = least(i1, block + step);
            const int64_t panels = (end - block + ROWS - 1) / ROWS;
            copy_a(w->a, p, block, end - block, k0, depth);
            const bool last = end == i1;
            const int64_t from = last ? i0 : end, more = last ? k0 + DEPTH : k0;
            struct coming next_a = coming_units(p, p->a, p->lda, !p->ta, from,
                                                least(i1 - from, step), more, panels * rounds);
            for (int64_t i = block; i < end; i += ROWS) {
                const float *a = w->a + (i - block) / ROWS * A_PANEL;
                const int64_t rows = least(ROWS, end - i);
                for (int64_t j = j0; j < j1; j += WIDTH) {
                    const int64_t at = i * p->ldc + j;
                    float *wait = w->sum + (i - i0) * PIECE_COLUMNS + j - j0;
                    struct tile t = {.a = a,
                                     .b = w->b + (j - j0) / WIDTH * B_PANEL,
                                     .depth = depth,
                                     .next_a = &next_a,
                                     .next_b = &next_b};
                    if (waits && k0 > 0) t.from = wait;
                    if (waits && k0 + DEPTH < units) {
                        t.to = wait;
                        t.ld = PIECE_COLUMNS;
                        some_sums(&t, p->ta, ROWS, WIDTH);
                    } else {
                        t.narrow = !p->wide;
                        t.to =
                            (char *)p->c + (size_t)at * (p->wide ? sizeof(float) : sizeof(stored));
                        t.ld = p->ldc;
                        t.add = p->add || (p->wide && k0 > 0);
                        some_sums(&t, p->ta, rows, least(WIDTH, j1 - j));
                    }
                }
            }
        }
    }
}

#endif
