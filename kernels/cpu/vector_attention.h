/* vector_attention: what attention and its adjoint by vectors share.
 *
 * The lanes of a vector are queries: a block of MOST_LANES of them, tokens of one row times the
 * heads that share a key head, so that keys and values are read once for all of these. Scores,
 * weights and results are kept with queries along the lanes (score[key][query], o[d][query]):
 * largest scores and sums of a query are then those of a lane, and every product has the keys or
 * the values as the factor that is read one number at a time, as they lie in memory
 * (kernels/cpu/vector_products.h).
 *
 * Keys have places: that of the row's token j is j, those of the past are below 0. Where the past
 * ends before the row (away), the tokens' own places do not matter and documents begin that much
 * later. */
#ifndef KERNELS_CPU_VECTOR_ATTENTION_H
#define KERNELS_CPU_VECTOR_ATTENTION_H

#include "kernels/cpu/vector_products.h"
#include "kernels/cpu/workspace.h"

/* Queries and keys of a block; how wide heads may be for so many queries (wider ones take half). */
enum { MOST_LANES = 96, KEYS = 64, WIDEST = 256 };

static const float log2e = 1.44269504088896341f;

static inline int64_t lanes_of(int64_t D) {
    return D <= WIDEST ? MOST_LANES : MOST_LANES / 2;
}

/* D in whole vectors. */
static inline int64_t whole(int64_t D) {
    return (D + LANES - 1) / LANES * LANES;
}

/* The next n units of a thread's memory, in whole cache lines. */
static inline unit *carve(unit **space, int64_t n) {
    unit *p = *space;
    *space += (n + 15) / 16 * 16;
    return p;
}

/* 2^x for x <= 0, at least 2^-126: e^(r ln 2) by its series with the last terms adjusted (relative
 * error 2e-7), r in [-1/2, 1/2]. A NaN stays one. */
INLINE vf power_of_two(vf x) {
    const vf shift = vf_all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    const vf y = vf_max(x, vf_all(-126)), z = y + shift, r = y - (z - shift);
    vf p = vf_all(1.5403530e-4f);
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    return p * (vf)(((vi)z << 23) + (127 << 23));
}

/* A block of queries: flat numbers `from` on of row b and key head g, where query f is head f mod
 * (H/G) of its group, token f / (H/G). */
struct queries {
    int64_t b, g, from, n, lanes; /* lanes: of a whole block, the distance of keys in scores */
    int vectors;                  /* that hold the n */
    int64_t low, high;            /* places of the first key that one sees, and behind the last */
    int64_t all_low, all_high;    /* between these all of them see every key */
    int64_t row[MOST_LANES];      /* (token, head) of each, in an array of H heads a token */
    int64_t token[MOST_LANES], head[MOST_LANES];
    int32_t first[MOST_LANES], last[MOST_LANES];
};

/* The first key that a token sees whose document begins at `start`, and the place behind
 * the last one that token i sees. */
static inline int64_t first_seen(int64_t start, int64_t past, int64_t away) {
    return most(start + most(0, away - 1), -past);
}

static inline int64_t behind_last(int64_t i, int64_t away) {
    return away > 0 ? 0 : i + 1;
}

/* The block `u` of row b, key head g. past: how many tokens before the row there are. Lanes without
 * a query see nothing. */
static inline void queries_find(struct queries *q, int64_t b, int64_t g, int64_t u,
                                const int32_t *start, int64_t L, int64_t past, int64_t away,
                                int64_t H, int64_t G, int64_t D) {
    const int64_t heads = H / G;
    q->lanes = lanes_of(D);
    q->b = b;
    q->g = g;
    q->from = u * q->lanes;
    q->n = least(q->lanes, L * heads - q->from);
    q->vectors = (int)((q->n + LANES - 1) / LANES);
    q->low = L;
    q->high = -past;
    q->all_low = -past;
    q->all_high = L;
    for (int64_t m = 0; m < q->vectors * LANES; m++) {
        const int64_t f = q->from + least(m, q->n - 1), i = f / heads;
        const int64_t first = first_seen(start[b * L + i], past, away), end = behind_last(i, away);
        q->token[m] = b * L + i;
        q->head[m] = g * heads + f % heads;
        q->row[m] = q->token[m] * H + q->head[m];
        q->first[m] = m < q->n ? (int32_t)first : INT32_MAX;
        q->last[m] = m < q->n ? (int32_t)(end - 1) : INT32_MIN;
        q->low = least(q->low, first);
        q->high = most(q->high, end);
        q->all_low = most(q->all_low, first);
        q->all_high = least(q->all_high, end);
    }
}

/* A run of keys and values that follow each other, those of places from <= place < to; k and v: of
 * place 0. Rows ldk and ldv apart. */
struct keys {
    const stored *k, *v;
    int64_t ldk, ldv, from, to;
};

/* run[0..1]: keys and values of places low..high - 1, row b and key head g: of the past, of the
 * row. (A macro: attention and its adjoint name these operands alike, in structs of their own.) */
#define KEYS_FIND(run, a, b, g, low, high)                                                         \
    do {                                                                                           \
        const int64_t old = (b) * (a)->ldp + ((a)->P * (a)->G + (g)) * (a)->D;                     \
        const int64_t token = (b) * (a)->L, apart = (a)->G * (a)->D, head = (g) * (a)->D;          \
        if ((low) < 0)                                                                             \
            (run)[0] = (struct keys){(const stored *)(a)->k_past + old,                            \
                                     (const stored *)(a)->v_past + old,                            \
                                     apart,                                                        \
                                     apart,                                                        \
                                     (low),                                                        \
                                     least((high), 0)};                                            \
        else (run)[0] = (struct keys){0};                                                          \
        (run)[1] = (struct keys){(const stored *)(a)->k + token * (a)->ldk + head,                 \
                                 (const stored *)(a)->v + token * (a)->ldv + head,                 \
                                 (a)->ldk,                                                         \
                                 (a)->ldv,                                                         \
                                 most((low), 0),                                                   \
                                 most((high), 0)};                                                 \
    } while (0)

/* A block of keys as a factor: of place j on, as rows [key][units of D], and as columns. */
struct factor {
    const unit *p;
    int64_t ld;
};

/* Keys as rows. They are used where they lie if their numbers are units (a row of an odd number of
 * BF16 ends in half a unit). */
static inline struct factor as_rows(unit *space, const stored *x, int64_t ld, int64_t n,
                                    int64_t D) {
#if !defined STORED_BF16
    (void)space, (void)n, (void)D;
    return (struct factor){x, ld};
#elif defined __AVX512BF16__
    if (D % 2 == 0 && ld % 2 == 0) return (struct factor){(const unit *)x, ld / 2};
    for (int64_t j = 0; j < n; j++) {
        space[j * units(D) + D / 2] = 0;
        memcpy(space + j * units(D), x + j * ld, (size_t)D * sizeof *x);
    }
    return (struct factor){space, units(D)};
#else
    for (int64_t j = 0; j < n; j++)
        for (int64_t d = 0; d < D; d += LANES)
            store_real_left(space + j * D + d, load_left(x + j * ld + d, D - d), D - d);
    return (struct factor){space, D};
#endif
}

/* Keys as columns [units of keys][D]: pairs of keys side by side. */
static inline struct factor as_columns(unit *space, const stored *x, int64_t ld, int64_t n,
                                       int64_t D) {
#if defined STORED_BF16 && defined __AVX512BF16__
    for (int64_t j = 0; j < n; j += 2)
        for (int64_t d = 0; d < D; d += 16) {
            const int64_t width = least(16, D - d);
            const __mmask16 some = (__mmask16)((1u << width) - 1);
            const __mmask16 second = j + 1 < n ? some : 0;
            const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, x + j * ld + d));
            const __m512i b =
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, x + (j + 1) * ld + d));
            _mm512_mask_storeu_epi32(space + j / 2 * D + d, some,
                                     _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
    return (struct factor){space, D};
#else
    return as_rows(space, x, ld, n, D);
#endif
}

/* to[n keys][queries] = keys, as rows, times what the queries have in
 * the lanes, [units of D][lanes]. */
static inline void meet_keys(float *to, const struct factor *keys, int64_t n, const unit *x,
                             const struct queries *q, int64_t D) {
    product_of_rows(&(struct product){.c = to,
                                      .ldc = q->lanes,
                                      .a = keys->p,
                                      .lda = keys->ld,
                                      .b = x,
                                      .ldb = q->lanes,
                                      .rows = n,
                                      .depth = units(D),
                                      .vectors = q->vectors});
}

/* The next LANES units of a row that has n numbers more. */
INLINE vf row_units(const stored *p, int64_t n) {
#if defined STORED_BF16 && defined __AVX512BF16__
    vf v = {0};
    if (n >= 2 * LANES) return load_units((const unit *)p);
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
#else
    return load_left(p, n);
#endif
}

/* t[units of D][lanes]: the rows of the queries in x, which are ld apart from token to token,
 * turned around. Lanes without a query repeat the last one. */
static inline void queries_turn(const struct queries *q, unit *t, const stored *x, int64_t ld,
                                int64_t D) {
    for (int v = 0; v < q->vectors; v++)
        for (int64_t d = 0; d < units(D); d += LANES) {
            vf block[LANES];
            for (int i = 0; i < LANES; i++) {
                const int64_t m = v * LANES + i;
                block[i] =
                    row_units(x + q->token[m] * ld + q->head[m] * D + d * PAIR, D - d * PAIR);
            }
            transpose(block);
            for (int64_t i = 0; i < least(LANES, units(D) - d); i++)
                store_units(t + (d + i) * q->lanes + v * LANES, block[i]);
        }
}

/* Whether lanes of vector v see the key at `place`. */
INLINE vi sees(const struct queries *q, int v, int64_t place) {
    vi first, last;
    memcpy(&first, q->first + v * LANES, sizeof first);
    memcpy(&last, q->last + v * LANES, sizeof last);
    return (first <= (int32_t)place) & (last >= (int32_t)place);
}

#endif
