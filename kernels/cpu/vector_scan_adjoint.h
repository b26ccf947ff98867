/* vector_scan_adjoint: the adjoint of the scan over a block of tokens of one head, as products. With
 * the weights of vector_scan.h, E_ij = exp(s_i - s_j), M_ij = E_ij (c_i . b_j), all for j <= i
 * within one document, S the state before the block and R the gradient of the one after it,
 *
 *   r_j = sum over i of M_ij dy_i + after_j R b_j,   dx_j = D_j r_j + d dy_j,
 *   K_ij = E_ij D_j (dy_i . x_j),
 *   dc_i = sum over j of K_ij b_j + S^T before_i dy_i,
 *   db_j = sum over i of K_ij c_i + R^T after_j D_j x_j,
 *   R   <- whole R + sum over i of before_i dy_i c_i^T.
 *
 * Of s: W_ij = K_ij (c_i . b_j), j < i, pulls at s_i - s_j; c_i . (S^T before_i dy_i) at s_i;
 * b_j . (R^T after_j D_j x_j) at s_n - s_j; whole S . R at s_n. As s_i is the sum of A D_k, k <= i,
 * the gradient q_k of A D_k is the sum of those of s_i, i >= k; then dD_k = x_k . r_k + A q_k and
 * dA = sum of D_k q_k.
 *
 * K is added to its sum over the heads of a unit, from which the .c makes the gradients of b and
 * c. */
#ifndef KERNELS_CPU_VECTOR_SCAN_ADJOINT_H
#define KERNELS_CPU_VECTOR_SCAN_ADJOINT_H

#include "kernels/cpu/vector_scan.h"

/* What a worker holds while it has a chunk of a unit in hand. [blocks] of: */
struct worker {
    float *state;           /* [rows,width] before the block, of the head in hand */
    float *b, *c, *db, *dc; /* [BLOCK,width] */
    float *turned;          /* [width,BLOCK] b */
    float *product, *sum;   /* [i,j] c_i . b_j; sum over heads of K */
    /* Of the block in hand: */
    float *x, *x_turned;   /* [j,p], then [j,p] after_j D_j x_j; [p,j] */
    float *dy, *dy_before; /* [i,p]; before_i dy_i */
    float *r;              /* [p,j] */
    float *part;           /* [BLOCK,width] */
};

struct head_sums {
    double a_log, d, dt_bias;
};

/* All that stays the same through a call. */
struct call {
    const struct scan_adjoint_args *a;
    struct scan_split s;
    struct head_sums *sums; /* [B,H] */
    float *carry;           /* [B,H] R */
    float *workers;
};

/* A unit's heads, and its chunk: tokens t to t + n of row b. */
struct unit {
    int64_t b, group, h0, h1, t, n;
};

static struct worker worker_of(const struct call *c, int64_t i) {
    const struct scan_split *s = &c->s;
    const int64_t tokens = s->blocks * BLOCK, wide = tokens * s->width, square = tokens * BLOCK;
    const int64_t turned = BLOCK * s->rows;
    struct worker w;
    float *next = c->workers + i * s->worker;
    w.state = next, next += s->blocks * s->carry;
    w.b = next, next += wide;
    w.c = next, next += wide;
    w.db = next, next += wide;
    w.dc = next, next += wide;
    w.turned = next, next += wide;
    w.product = next, next += square;
    w.sum = next, next += square;
    w.x = next, next += turned;
    w.x_turned = next, next += turned;
    w.dy = next, next += turned;
    w.dy_before = next, next += turned;
    w.r = next, next += turned;
    w.part = next;
    return w;
}

static struct unit unit_of(const struct call *c, int64_t i) {
    const int64_t heads = c->a->H / c->a->G, part = i % c->s.parts,
                  group = i / c->s.parts % c->a->G;
    const int64_t h0 = group * heads + part * c->s.together;
    return (struct unit){.b = i / c->s.parts / c->a->G,
                         .group = group,
                         .h0 = h0,
                         .h1 = least(h0 + c->s.together, (group + 1) * heads)};
}

static struct head_constants constants_of(const struct scan_adjoint_args *a, int64_t h) {
    return (struct head_constants){.a = -exp((double)((const float *)a->a_log)[h]),
                                   .dt_bias = ((const float *)a->dt_bias)[h],
                                   .dt_min = (float)a->dt_min,
                                   .dt_max = (float)a->dt_max};
}

/* Numbers from one token to the next in u and du, and where token t of row b has its b. */
static int64_t u_width(const struct scan_adjoint_args *a) {
    return a->H * a->P + 2 * a->G * a->S;
}

static int64_t b_at(const struct scan_adjoint_args *a, const struct unit *u, int64_t t) {
    return (u->b * a->L + t) * u_width(a) + a->H * a->P + u->group * a->S;
}

/* One block of a unit's chunk: tokens t to t + n, the k-th. */
struct block {
    int64_t k, t, n;
    struct documents documents;
};

static struct block block_of(const struct call *c, const struct unit *u, int64_t k) {
    struct block b = {.k = k, .t = u->t + k * BLOCK, .n = least(BLOCK, u->n - k * BLOCK)};
    documents_find(&b.documents, c->a->start + u->b * c->a->L + b.t, b.t, b.n);
    return b;
}

static int64_t blocks_of(const struct unit *u) {
    return (u->n + BLOCK - 1) / BLOCK;
}

/* x of head h, and in place of it after_j D_j x_j: what a block adds to the state, with b. */
static void x_read(const struct call *c, const struct unit *u, const struct worker *w,
                   const struct block *k, int64_t h) {
    const struct scan_adjoint_args *a = c->a;
    widen_rows(w->x, c->s.rows, (const stored *)a->u + (u->b * a->L + k->t) * u_width(a) + h * a->P,
               u_width(a), k->n, a->P);
}

static void x_after(const struct call *c, const struct worker *w, const struct block *k,
                    const struct paces *p) {
    float by[BLOCK];
    for (int i = 0; i < BLOCK; i++) by[i] = p->after[i] * p->delta[i];
    scale_rows(w->x, w->x, by, k->n, c->s.rows);
}

/* The states before the blocks of a chunk. */
static void states_again(const struct call *c, const struct unit *u, const struct worker *w,
                         const struct head_constants *h_c, int64_t h) {
    const struct scan_adjoint_args *a = c->a;
    const int64_t S = a->S, width = c->s.width, chunks = (a->L + a->Q - 1) / a->Q;
    const float *from =
        (const float *)a->states + ((u->b * chunks + u->t / a->Q) * a->H + h) * a->P * S;
    memset(w->state, 0, (size_t)c->s.carry * sizeof(float));
    for (int64_t p = 0; p < a->P; p++)
        memcpy(w->state + p * width, from + p * S, (size_t)S * sizeof(float));
    for (int64_t k = 0; k + 1 < blocks_of(u); k++) {
        const struct block b = block_of(c, u, k);
        struct paces p;
        paces_find(&p, h_c, &b.documents, (const stored *)a->dt + (u->b * a->L + b.t) * a->lddt + h,
                   a->lddt);
        x_read(c, u, w, &b, h);
        x_after(c, w, &b, &p);
        product_of_float_columns(&(struct product){.c = w->state + (k + 1) * c->s.carry,
                                                   .ldc = width,
                                                   .a = w->x,
                                                   .lda = c->s.rows,
                                                   .b = w->b + k * BLOCK * width,
                                                   .ldb = width,
                                                   .rows = c->s.rows,
                                                   .depth = b.n,
                                                   .vectors = width / LANES,
                                                   .from = w->state + k * c->s.carry,
                                                   .factor = &p.whole,
                                                   .begin = b.documents.last < 0 ? FADED : FRESH});
    }
}

/* What pulls at s: the gradient of s_i, and that of s_n besides. */
struct pull {
    double at[BLOCK], end;
};

/* M and K from dy . x, [i,j]; K is added to the sum over heads. */
static void weights_find(const struct worker *w, const struct block *b, const struct paces *p,
                         const float *dy_x, float *m, struct pull *pull) {
    const int n = (int)b->n;
    const float *product = w->product + b->k * BLOCK * BLOCK;
    float *sum = w->sum + b->k * BLOCK * BLOCK, columns[BLOCK] = {0};
    for (int i = 0; i < n; i++) {
        vf row = vf_all(0);
        for (int j = 0; j < n; j += LANES) {
            const int64_t at = i * BLOCK + j;
            if (j > i) {
                store_real(m + at, vf_all(0));
                continue;
            }
            vi end;
            memcpy(&end, b->documents.end + j, sizeof end);
            const vi place = COUNTING + j, reached = (place <= i) & (end > i);
            const vf e = vf_choose(reached, vf_decay(p, i, j, 1), vf_all(0));
            const vf k = e * load_real(p->delta + j) * load_real(dy_x + at);
            const vf c_b = load_real(product + at),
                     pulls = vf_choose(place < i, k * c_b, vf_all(0));
            store_real(m + at, e * c_b);
            store_real(sum + at, load_real(sum + at) + k);
            store_real(columns + j, load_real(columns + j) + pulls);
            row += pulls;
        }
        pull->at[i] += (double)vf_sum(row);
    }
    for (int j = 0; j < n; j++) pull->at[j] -= (double)columns[j];
}

/* sum[i] += part[i]; the dot products of the rows of part with those of `with`. */
static void part_add(float *sum, const float *part, const float *with, int64_t n, int64_t width,
                     float *dots) {
    for (int64_t i = 0; i < n; i++) {
        vf dot = vf_all(0);
        for (int64_t j = i * width; j < (i + 1) * width; j += LANES) {
            const vf v = load_real(part + j);
            store_real(sum + j, load_real(sum + j) + v);
            dot += v * load_real(with + j);
        }
        dots[i] = vf_sum(dot);
    }
}

static double dot_all(const float *x, const float *y, int64_t n) {
    vf sum[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i < n; i += 4 * LANES) /* n: a multiple of PAD^2 */
        for (int k = 0; k < 4; k++)
            sum[k] += load_real(x + i + k * LANES) * load_real(y + i + k * LANES);
    return (double)vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Everything between a block and the states at its ends, and R before the block. */
static void states_pull(const struct call *c, const struct worker *w, const struct block *b,
                        const struct paces *p, float *carry, struct pull *pull) {
    const int64_t rows = c->s.rows, width = c->s.width, at = b->k * BLOCK * width;
    const float *state = w->state + b->k * c->s.carry;
    struct product by_state = {.c = w->part,
                               .ldc = width,
                               .lda = rows,
                               .ldb = width,
                               .rows = padded(b->n),
                               .depth = c->a->P,
                               .vectors = width / LANES};
    float dots[BLOCK];
    by_state.a = w->x, by_state.b = carry;
    product_of_float_rows(&by_state);
    part_add(w->db + at, w->part, w->b + at, b->n, width, dots);
    for (int j = 0; j < b->n; j++) pull->at[j] -= (double)dots[j], pull->end += (double)dots[j];
    if (b->documents.first > 0) {
        by_state.a = w->dy_before, by_state.b = state;
        product_of_float_rows(&by_state);
        part_add(w->dc + at, w->part, w->c + at, b->n, width, dots);
        for (int i = 0; i < b->n; i++) pull->at[i] += (double)dots[i];
    }
    const bool through = b->documents.last < 0;
    if (through) pull->end += (double)p->whole * dot_all(carry, state, c->s.carry);
    product_of_float_columns(&(struct product){.c = carry,
                                               .ldc = width,
                                               .a = w->dy_before,
                                               .lda = rows,
                                               .b = w->c + at,
                                               .ldb = width,
                                               .rows = rows,
                                               .depth = b->n,
                                               .vectors = width / LANES,
                                               .from = carry,
                                               .factor = &p->whole,
                                               .begin = through ? FADED : FRESH});
}

/* dx, from r. */
static void dx_put(const struct scan_adjoint_args *a, const struct worker *w, const struct block *b,
                   const struct paces *p, int64_t rows, int64_t token, int64_t h) {
    const float d = ((const float *)a->d)[h];
    stored *dx = (stored *)a->du + token * u_width(a) + h * a->P;
    for (int64_t from = 0; from < a->P; from += LANES)
        for (int64_t j = 0; j < b->n; j += LANES) {
            vf r[LANES];
            transpose_rows(r, w->r + from * BLOCK + j, BLOCK);
            const int64_t tokens = least(LANES, b->n - j), left = a->P - from;
            for (int64_t i = 0; i < tokens; i++) {
                const vf v = r[i] * p->delta[j + i] + d * load_real(w->dy + (j + i) * rows + from);
                put_left(dx + (j + i) * u_width(a) + from, v, left, a->du_add);
            }
        }
}

/* From what pulls at s and from x . r to dt and the head's sums. */
static void tokens_put(const struct scan_adjoint_args *a, const struct worker *w,
                       const struct block *b, const struct paces *p, const struct pull *pull,
                       const struct head_constants *h_c, struct head_sums *sums, int64_t token,
                       int64_t h) {
    float x_r[BLOCK];
    for (int64_t j = 0; j < b->n; j += LANES) {
        vf sum = vf_all(0);
        for (int64_t i = 0; i < a->P; i++)
            sum += load_real(w->x_turned + i * BLOCK + j) * load_real(w->r + i * BLOCK + j);
        store_real(x_r + j, sum);
    }
    double q = pull->end;
    for (int64_t j = b->n - 1; j >= 0; j--) {
        q += pull->at[j];
        /* Nothing goes through the beginning of a document, and less than rounding lets through
         * (but D would make it large) through a decay of e^-30. */
        const bool begins = a->start[token + j] == b->t + j;
        if (begins || h_c->a * (double)p->delta[j] < -30) q = 0;
        const double ddelta = (double)x_r[j] + h_c->a * q, ddt = ddelta * (double)p->slope[j];
        sums->a_log += h_c->a * (double)p->delta[j] * q;
        sums->dt_bias += ddt;
        if (!a->ddt) continue;
        stored *to = (stored *)a->ddt + (token + j) * a->lddt + h;
        set(to, (float)(a->ddt_add ? (double)get(to) + ddt : ddt));
    }
}

/* A block of head h. */
static void adjoint_block(const struct call *c, const struct unit *u, const struct worker *w,
                          const struct head_constants *h_c, int64_t h, int64_t k) {
    const struct scan_adjoint_args *a = c->a;
    const int64_t rows = c->s.rows, token = u->b * a->L + u->t + k * BLOCK;
    const struct block b = block_of(c, u, k);
    const stored *dy = (const stored *)a->dy + (token * a->H + h) * a->P;
    float *carry = c->carry + (u->b * a->H + h) * c->s.carry;
    struct head_sums *sums = &c->sums[u->b * a->H + h];
    struct paces p;
    struct pull pull = {{0}, 0};
    _Alignas(64) float dy_x[BLOCK * BLOCK], m[BLOCK * BLOCK];
    paces_find(&p, h_c, &b.documents, (const stored *)a->dt + token * a->lddt + h, a->lddt);
    x_read(c, u, w, &b, h);
    transpose_all(w->x_turned, BLOCK, w->x, rows, padded(b.n), rows);
    widen_rows(w->dy, rows, dy, a->H * a->P, b.n, a->P);
    scale_rows(w->dy_before, w->dy, p.before, b.n, rows);
    x_after(c, w, &b, &p);
    product_of_float_rows(&(struct product){.c = dy_x,
                                            .ldc = BLOCK,
                                            .a = w->dy,
                                            .lda = rows,
                                            .b = w->x_turned,
                                            .ldb = BLOCK,
                                            .rows = padded(b.n),
                                            .depth = a->P,
                                            .vectors = padded(b.n) / LANES});
    for (int i = 0; i < b.n; i++) sums->d += (double)dy_x[i * BLOCK + i];
    weights_find(w, &b, &p, dy_x, m, &pull);
    product_of_float_rows(&(struct product){.c = w->r,
                                            .ldc = BLOCK,
                                            .a = carry,
                                            .lda = c->s.width,
                                            .b = w->turned + k * BLOCK * c->s.width,
                                            .ldb = BLOCK,
                                            .rows = rows,
                                            .depth = a->S,
                                            .vectors = padded(b.n) / LANES});
    product_of_float_columns(&(struct product){.c = w->r,
                                               .ldc = BLOCK,
                                               .a = w->dy,
                                               .lda = rows,
                                               .b = m,
                                               .ldb = BLOCK,
                                               .rows = rows,
                                               .depth = b.n,
                                               .vectors = padded(b.n) / LANES,
                                               .factor = p.after,
                                               .begin = SCALED});
    states_pull(c, w, &b, &p, carry, &pull);
    if (a->du) dx_put(a, w, &b, &p, rows, token, h);
    tokens_put(a, w, &b, &p, &pull, h_c, sums, token, h);
}

#endif
