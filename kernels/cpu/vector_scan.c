/* vector_scan: the Mamba-2 recurrence (kernels/cpu/scan.c) a block of tokens at a time, as products
 * (Dao and Gu 2024, arXiv:2405.21060, section 6). With the weights of vector_scan.h, for a block
 * and a head,
 *
 *   y_i = before_i S c_i + sum over j <= i of M_ji x_j,  M_ji = (b_j . c_i) exp(s_i - s_j) D_j,
 *   S   = whole S + sum over j of after_j D_j x_j b_j^T,
 *
 * and d is added to M_ii. The products b_j . c_i are made once for several heads of a group; their
 * states wait in the second cache. y is made with tokens as columns, so that S is read as it lies,
 * [P,N], and its factor c^T is shared by the heads; then it is turned.
 *
 * A few tokens, and states of more than MOST_WIDTH, go the other way: vector_scan_steps.h. */
#include "kernels/cpu/vector_scan.h"
#include "kernels/cpu/vector_scan_steps.h"

enum { MOST_WIDTH = 256, MOST_ROWS = 64, STATES = 65536, MOST_HEADS = 8 };
enum { FEW_TOKENS = 4 };

/* What one thread computes at a time: rows p0 to p1 of the heads h0 to h1 of one group, row b. */
struct unit {
    int64_t b, h0, h1, p0, p1;
};

/* A block of a group: c and b in float, c turned, and their products. */
struct shared {
    struct documents documents;
    _Alignas(64) float b[BLOCK * MOST_WIDTH], c[BLOCK * MOST_WIDTH], turned[MOST_WIDTH * BLOCK];
    _Alignas(64) float product[BLOCK * BLOCK]; /* [j,i] */
};

/* A block of a head. */
struct block {
    struct paces paces;
    _Alignas(64) float x[BLOCK * MOST_ROWS];    /* [j,p] */
    _Alignas(64) float into[BLOCK * MOST_ROWS]; /* after_j D_j x_j */
    _Alignas(64) float weights[BLOCK * BLOCK];  /* [j,i] M */
    _Alignas(64) float y[MOST_ROWS * BLOCK];    /* [p,i] */
};

static void shared_find(struct shared *s, const struct scan_args *a, const struct unit *u,
                        int64_t t, int64_t n) {
    const int64_t S = a->S, width = padded(S), wide = a->H * a->P + 2 * a->G * S;
    const int64_t token = u->b * a->L + t, group = u->h0 / (a->H / a->G);
    const stored *b = (const stored *)a->u + token * wide + a->H * a->P + group * S;
    documents_find(&s->documents, a->start + token, t, n);
    widen_rows(s->b, width, b, wide, n, S);
    widen_rows(s->c, width, b + a->G * S, wide, n, S);
    transpose_all(s->turned, BLOCK, s->c, width, padded(n), width);
    product_of_float_rows(&(struct product){.c = s->product,
                                            .ldc = BLOCK,
                                            .a = s->b,
                                            .lda = width,
                                            .b = s->turned,
                                            .ldb = BLOCK,
                                            .rows = padded(n),
                                            .depth = S,
                                            .vectors = padded(n) / LANES});
}

/* M: zero where i < j or a document begins between. */
static void weights_find(struct block *k, const struct shared *s, float d) {
    const struct paces *p = &k->paces;
    const int n = s->documents.n;
    for (int j = 0; j < n; j++) {
        float *row = k->weights + j * BLOCK;
        const int end = s->documents.end[j];
        for (int i = 0; i < n; i += LANES) {
            vf m = vf_all(0);
            if (i + LANES > j && i < end) {
                const vi at = COUNTING + i;
                m = vf_decay(p, j, i, -1) * load_real(s->product + j * BLOCK + i) * p->delta[j];
                m = vf_choose((at >= j) & (at < end), m, vf_all(0));
            }
            store_real(row + i, m);
        }
        row[j] += d;
    }
}

/* y[i,p], rows ldy apart. */
static void y_turned(stored *y, int64_t ldy, const float *from, int64_t n, int64_t rows) {
    for (int64_t p = 0; p < rows; p += LANES)
        for (int64_t i = 0; i < n; i += LANES) {
            vf r[LANES];
            transpose_rows(r, from + p * BLOCK + i, BLOCK);
            const int64_t tokens = least(LANES, n - i), left = rows - p;
            for (int64_t k = 0; k < tokens; k++) store_left(y + (i + k) * ldy + p, r[k], left);
        }
}

/* Head h over the block of n tokens from t on. */
static void head_block(const struct scan_args *a, const struct shared *s, const struct unit *u,
                       struct block *k, const struct head_constants *c, float *state, int64_t h,
                       int64_t t, int64_t n) {
    const int64_t H = a->H, P = a->P, width = padded(a->S), wide = H * P + 2 * a->G * a->S;
    const int64_t token = u->b * a->L + t, n_p = u->p1 - u->p0, rows = padded(n_p);
    const int64_t vecs = padded(n) / LANES;
    const stored *x = (const stored *)a->u + token * wide + h * P + u->p0;
    const struct documents *d = &s->documents;
    struct paces *p = &k->paces;
    paces_find(p, c, d, (const stored *)a->dt + token * a->lddt + h, a->lddt);
    float into[BLOCK];
    for (int i = 0; i < BLOCK; i++) into[i] = p->after[i] * p->delta[i];
    widen_rows(k->x, rows, x, wide, n, n_p);
    scale_rows(k->into, k->x, into, n, rows);
    if (h + 1 < u->h1) expect_rows(x + P, wide, n, n_p);
    else if (t + n < a->L)
        expect_rows(x + n * wide - (u->h1 - 1 - u->h0) * P, wide, least(n, a->L - t - n), n_p);
    weights_find(k, s, ((const float *)a->d)[h]);
    if (d->first > 0)
        product_of_float_rows(&(struct product){.c = k->y,
                                                .ldc = BLOCK,
                                                .a = state,
                                                .lda = width,
                                                .b = s->turned,
                                                .ldb = BLOCK,
                                                .rows = rows,
                                                .depth = a->S,
                                                .vectors = vecs});
    product_of_float_columns(&(struct product){.c = k->y,
                                               .ldc = BLOCK,
                                               .a = k->x,
                                               .lda = rows,
                                               .b = k->weights,
                                               .ldb = BLOCK,
                                               .rows = rows,
                                               .depth = n,
                                               .vectors = vecs,
                                               .factor = p->before,
                                               .begin = d->first > 0 ? SCALED : FRESH});
    product_of_float_columns(&(struct product){.c = state,
                                               .ldc = width,
                                               .a = k->into,
                                               .lda = rows,
                                               .b = s->b,
                                               .ldb = width,
                                               .rows = rows,
                                               .depth = n,
                                               .vectors = width / LANES,
                                               .from = state,
                                               .factor = &p->whole,
                                               .begin = d->last < 0 ? FADED : FRESH});
    y_turned((stored *)a->y + (token * H + h) * P + u->p0, H * P, k->y, n, n_p);
}

/* Between a state's padded rows and those of an operand. */
static void state_read(float *state, const float *from, int64_t rows, int64_t S) {
    memset(state, 0, (size_t)(padded(rows) * padded(S)) * sizeof *state);
    for (int64_t p = 0; from && p < rows; p++)
        memcpy(state + p * padded(S), from + p * S, (size_t)S * sizeof *state);
}

static void state_write(float *to, const float *state, int64_t rows, int64_t S) {
    for (int64_t p = 0; p < rows; p++)
        memcpy(to + p * S, state + p * padded(S), (size_t)S * sizeof *state);
}

static void scan_unit(const struct scan_args *a, const struct unit *u) {
    const int64_t S = a->S, n_p = u->p1 - u->p0, size = padded(n_p) * padded(S);
    const int64_t chunks = (a->L + a->Q - 1) / a->Q, in_head = u->p0 * S, head = a->P * S;
    struct shared shared;
    struct block block;
    _Alignas(64) float states[STATES];
    struct head_constants constants[MOST_HEADS];
    for (int64_t h = u->h0; h < u->h1; h++) {
        const int64_t at = (u->b * a->H + h) * head + in_head;
        const float *from = a->state_in ? (const float *)a->state_in + at : NULL;
        state_read(states + (h - u->h0) * size, from, n_p, S);
        constants[h - u->h0] =
            (struct head_constants){.a = -exp((double)((const float *)a->a_log)[h]),
                                    .dt_bias = ((const float *)a->dt_bias)[h],
                                    .dt_min = (float)a->dt_min,
                                    .dt_max = (float)a->dt_max};
    }
    for (int64_t t = 0, n; t < a->L; t += n) {
        /* Blocks end with chunks even if no states are kept, so that a replay has the same bits. */
        n = least(least(BLOCK, a->L - t), a->Q - t % a->Q);
        shared_find(&shared, a, u, t, n);
        for (int64_t h = u->h0; h < u->h1; h++) {
            float *state = states + (h - u->h0) * size;
            const int64_t at = ((u->b * chunks + t / a->Q) * a->H + h) * head + in_head;
            if (a->states && t % a->Q == 0) state_write((float *)a->states + at, state, n_p, S);
            head_block(a, &shared, u, &block, &constants[h - u->h0], state, h, t, n);
        }
    }
    for (int64_t h = u->h0; a->state_out && h < u->h1; h++)
        state_write((float *)a->state_out + (u->b * a->H + h) * head + in_head,
                    states + (h - u->h0) * size, n_p, S);
}

KERNEL(scan) {
    if (a->L > 0 && a->Q < 1) bug("chunks of %lld tokens", (long long)a->Q);
    if (a->L <= FEW_TOKENS || a->S > MOST_WIDTH || a->S == 0 || a->P == 0) {
        scan_steps(a);
        return;
    }
    if (a->G == 0 || a->H == 0) return;
    /* Rows of heads in equal parts. No result depends on the parts, nor on heads that are
     * together. */
    const int64_t heads = a->H / a->G, parts = (a->P + MOST_ROWS - 1) / MOST_ROWS;
    const int64_t rows = padded((a->P + parts - 1) / parts);
    const int64_t most_heads = least(MOST_HEADS, STATES / (rows * padded(a->S)));
    const int64_t together = heads_together(heads, most_heads, a->B * a->G * parts);
    const int64_t bands = (heads + together - 1) / together;
#pragma omp parallel for collapse(3) schedule(dynamic) if (a->B * a->L * a->H * a->P * a->S > SMALL)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t band = 0; band < a->G * bands; band++)
            for (int64_t p = 0; p < a->P; p += rows) {
                const int64_t group = band / bands, h0 = group * heads + band % bands * together;
                scan_unit(a, &(struct unit){b, h0, least(h0 + together, (group + 1) * heads), p,
                                            least(p + rows, a->P)});
            }
}
