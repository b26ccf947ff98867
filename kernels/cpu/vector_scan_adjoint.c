/* vector_scan_adjoint: how the adjoint of the scan goes through rows, groups, chunks and heads;
 * what it does with one block of a head is vector_scan_adjoint.h, how it is cut
 * kernels/scan_split.h.
 *
 * The sums over heads of K are made before the products with b and c. The states before the blocks
 * of a chunk are made once more from the one that was saved. */
#include "kernels/cpu/vector_scan_adjoint.h"

/* What the heads of a unit share of a chunk. */
static void chunk_begin(const struct call *c, const struct unit *u, const struct worker *w) {
    const struct scan_adjoint_args *a = c->a;
    const int64_t width = c->s.width, wide = BLOCK * width;
    for (int64_t k = 0; k < blocks_of(u); k++) {
        const int64_t t = u->t + k * BLOCK, n = least(BLOCK, u->n - k * BLOCK);
        const stored *b = (const stored *)a->u + b_at(a, u, t);
        float *turned = w->turned + k * wide;
        widen_rows(w->b + k * wide, width, b, u_width(a), n, a->S);
        widen_rows(w->c + k * wide, width, b + a->G * a->S, u_width(a), n, a->S);
        transpose_all(turned, BLOCK, w->b + k * wide, width, padded(n), width);
        product_of_float_rows(&(struct product){.c = w->product + k * BLOCK * BLOCK,
                                                .ldc = BLOCK,
                                                .a = w->c + k * wide,
                                                .lda = width,
                                                .b = turned,
                                                .ldb = BLOCK,
                                                .rows = padded(n),
                                                .depth = a->S,
                                                .vectors = padded(n) / LANES});
    }
    memset(w->sum, 0, (size_t)(c->s.blocks * BLOCK * BLOCK) * sizeof(float));
    memset(w->db, 0, (size_t)(c->s.blocks * wide) * sizeof(float));
    memset(w->dc, 0, (size_t)(c->s.blocks * wide) * sizeof(float));
}

/* The gradients of b and c of a chunk, from all heads of the unit. */
static void chunk_end(const struct call *c, const struct unit *u, const struct worker *w) {
    const int64_t width = c->s.width;
    for (int64_t k = 0; k < blocks_of(u); k++) {
        const int64_t n = least(BLOCK, u->n - k * BLOCK), at = k * BLOCK * width;
        struct product p = {.ldc = width,
                            .a = w->sum + k * BLOCK * BLOCK,
                            .lda = BLOCK,
                            .ldb = width,
                            .rows = padded(n),
                            .depth = n,
                            .vectors = width / LANES,
                            .begin = ADDED};
        p.b = w->b + at, p.c = w->dc + at;
        product_of_float_rows(&p);
        p.b = w->c + at, p.c = w->db + at;
        product_of_float_columns(&p);
    }
}

/* du of b and c of a chunk's token i, from the parts of its heads: those of the workers `first` to
 * first + parts. */
static void token_put(const struct call *c, const struct unit *u, int64_t first, int64_t parts,
                      int64_t i) {
    const struct scan_adjoint_args *a = c->a;
    stored *to = (stored *)a->du + b_at(a, u, u->t + i);
    for (int which = 0; which < 2; which++, to += a->G * a->S)
        for (int64_t j = 0; j < a->S; j += LANES) {
            vf sum = vf_all(0);
            for (int64_t part = 0; part < parts; part++) {
                const struct worker w = worker_of(c, first + part);
                sum += load_real((which ? w.dc : w.db) + i * c->s.width + j);
            }
            put_left(to + j, sum, a->S - j, a->du_add);
        }
}

static void unit_begin(const struct call *c, const struct unit *u) {
    const struct scan_adjoint_args *a = c->a;
    const int64_t n = (u->h1 - u->h0) * c->s.carry, first = u->b * a->H + u->h0;
    memset(c->carry + first * c->s.carry, 0, (size_t)n * sizeof(float));
    memset(c->sums + first, 0, (size_t)(u->h1 - u->h0) * sizeof *c->sums);
    for (int64_t h = u->h0; a->dstate_out && h < u->h1; h++)
        for (int64_t p = 0; p < a->P; p++)
            memcpy(c->carry + (u->b * a->H + h) * c->s.carry + p * c->s.width,
                   (const float *)a->dstate_out + ((u->b * a->H + h) * a->P + p) * a->S,
                   (size_t)a->S * sizeof(float));
}

static void unit_chunk(const struct call *c, struct unit *u, int64_t chunk, int64_t worker) {
    const struct scan_adjoint_args *a = c->a;
    const struct worker w = worker_of(c, worker);
    u->t = chunk * a->Q;
    u->n = least(a->Q, a->L - u->t);
    chunk_begin(c, u, &w);
    for (int64_t h = u->h0; h < u->h1; h++) {
        const struct head_constants h_c = constants_of(a, h);
        states_again(c, u, &w, &h_c, h);
        for (int64_t k = blocks_of(u) - 1; k >= 0; k--) adjoint_block(c, u, &w, &h_c, h, k);
    }
    chunk_end(c, u, &w);
}

static void unit_end(const struct call *c, const struct unit *u) {
    const struct scan_adjoint_args *a = c->a;
    if (!a->dstate_in) return;
    for (int64_t h = u->h0; h < u->h1; h++)
        for (int64_t p = 0; p < a->P; p++) {
            const float *from = c->carry + (u->b * a->H + h) * c->s.carry + p * c->s.width;
            float *to = (float *)a->dstate_in + ((u->b * a->H + h) * a->P + p) * a->S;
            for (int64_t i = 0; i < a->S; i += LANES)
                put_real_left(to + i, load_real(from + i), a->S - i, a->dstate_in_add);
        }
}

/* A group's heads are one unit's: the worker goes through all chunks by itself. */
static void workers_alone(const struct call *c, int64_t chunks, int64_t worker) {
    for (int64_t i = worker; i < c->s.units; i += c->s.workers) {
        struct unit u = unit_of(c, i);
        unit_begin(c, &u);
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            unit_chunk(c, &u, chunk, worker);
            for (int64_t t = 0; c->a->du && t < u.n; t++) token_put(c, &u, worker, 1, t);
        }
        unit_end(c, &u);
    }
}

/* A group's heads are several units'. For all threads of a team. */
static void workers_together(const struct call *c, int64_t chunks) {
    const struct scan_split *s = &c->s;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < s->units; i++) {
        const struct unit u = unit_of(c, i);
        unit_begin(c, &u);
    }
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < s->units; i++) {
            struct unit u = unit_of(c, i);
            unit_chunk(c, &u, chunk, i);
        }
        if (!c->a->du) continue;
        const int64_t t = chunk * c->a->Q, n = least(c->a->Q, c->a->L - t),
                      groups = s->units / s->parts;
#pragma omp for collapse(2)
        for (int64_t group = 0; group < groups; group++)
            for (int64_t i = 0; i < n; i++) {
                struct unit u = unit_of(c, group * s->parts);
                u.t = t;
                token_put(c, &u, group * s->parts, s->parts, i);
            }
    }
#pragma omp for
    for (int64_t i = 0; i < s->units; i++) {
        const struct unit u = unit_of(c, i);
        unit_end(c, &u);
    }
}

static void sum_put(float *to, double v, int add) {
    *to = (float)(add ? (double)*to + v : v);
}

KERNEL(scan_adjoint) {
    const int64_t B = a->B, H = a->H;
    if (a->L > 0 && a->Q < 1) bug("chunks of %lld tokens", (long long)a->Q);
    if (H == 0 && a->du && !a->du_add)
        memset(a->du, 0, (size_t)(B * a->L * 2 * a->G * a->S) * sizeof(stored));
    struct call c = {.a = a, .s = scan_split(B, a->L, H, a->P, a->G, a->S, a->Q)};
    const int64_t chunks = a->L > 0 ? (a->L + a->Q - 1) / a->Q : 0;
    c.sums = a->scratch;
    c.carry = (float *)a->scratch + c.s.sums;
    c.workers = c.carry + B * H * c.s.carry;
#pragma omp parallel if (B * a->L * H * a->P * a->S > SMALL)
    {
        if (c.s.parts > 1) {
            workers_together(&c, chunks);
        } else {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < c.s.workers; i++) workers_alone(&c, chunks, i);
        }
    }
    for (int64_t h = 0; h < H; h++) {
        struct head_sums all = {0};
        for (int64_t b = 0; b < B; b++) {
            all.a_log += c.sums[b * H + h].a_log;
            all.d += c.sums[b * H + h].d;
            all.dt_bias += c.sums[b * H + h].dt_bias;
        }
        if (a->da_log) sum_put((float *)a->da_log + h, all.a_log, a->da_log_add);
        if (a->dd) sum_put((float *)a->dd + h, all.d, a->dd_add);
        if (a->ddt_bias) sum_put((float *)a->ddt_bias + h, all.dt_bias, a->ddt_bias_add);
    }
}
