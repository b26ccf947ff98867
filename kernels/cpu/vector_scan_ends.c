/* vector_scan_ends: what a row of the scan is to those before and behind it (kernels/cpu/scan.c), a
 * block of tokens at a time, as products: with the weights of vector_scan.h,
 *
 *   at the end         S  = whole S + sum over j of after_j D_j x_j b_j^T,
 *   at the beginning   g += carried sum over i of before_i dy_i c_i^T, carried the decay of the
 *   blocks before.
 *
 * Blocks of other documents are not visited. Only the one product is made of the three that the
 * scan makes, so this costs a third of it. */
#include "kernels/cpu/vector_scan.h"

enum { MOST_WIDTH = 256, MOST_ROWS = 64, MOST_HEADS = 8, STATES = 65536 };

/* A call, in the words of both rows. */
struct ends {
    const stored *u, *dt, *dy; /* dy: NULL at the end */
    const float *a_log, *dt_bias;
    const int32_t *start;
    float *state, *decay;
    int64_t B, L, H, P, G, S, lddt;
    float dt_min, dt_max;
};

/* What one thread computes at a time: rows p0 to p1 and columns s0 to s1 of the states of the heads
 * h0 to h1 of one group, row b. */
struct unit {
    int64_t b, h0, h1, p0, p1, s0, s1;
};

struct block {
    struct paces paces;
    _Alignas(64) float right[BLOCK * MOST_WIDTH]; /* [token,s] b or c */
    _Alignas(64) float left[BLOCK * MOST_ROWS];   /* [token,p] x or dy */
    _Alignas(64) float scaled[BLOCK * MOST_ROWS];
};

static void unit_ends(const struct ends *e, const struct unit *u) {
    const int64_t H = e->H, P = e->P, S = e->S, L = e->L, wide = H * P + 2 * e->G * S;
    const int64_t n_p = u->p1 - u->p0, n_s = u->s1 - u->s0, rows = padded(n_p), width = padded(n_s);
    const int64_t group = u->h0 / (H / e->G), row = u->b * L;
    const stored *right = e->u + H * P + (e->dy ? e->G * S : 0) + group * S + u->s0;
    struct block k;
    struct documents documents;
    struct head_constants constants[MOST_HEADS];
    double sum[MOST_HEADS] = {0}; /* of the exponents of the decays, over the blocks before */
    bool begun[MOST_HEADS] = {false}, more = true;
    _Alignas(64) float states[STATES];
    for (int64_t h = u->h0; h < u->h1; h++)
        constants[h - u->h0] = (struct head_constants){.a = -exp((double)e->a_log[h]),
                                                       .dt_bias = e->dt_bias[h],
                                                       .dt_min = e->dt_min,
                                                       .dt_max = e->dt_max};
    memset(states, 0, (size_t)((u->h1 - u->h0) * rows * width) * sizeof *states);
    const int64_t last = L > 0 ? most(0, e->start[row + L - 1]) : 0; /* document's first token */
    for (int64_t t = e->dy ? 0 : last, n; t < L && more; t += n) {
        n = least(BLOCK, L - t);
        documents_find(&documents, e->start + row + t, t, n);
        widen_rows(k.right, width, right + (row + t) * wide, wide, n, n_s);
        for (int64_t h = u->h0; h < u->h1; h++) {
            const int at = (int)(h - u->h0);
            float weight[BLOCK], *state = states + at * rows * width;
            struct paces *p = &k.paces;
            paces_find(p, &constants[at], &documents, e->dt + (row + t) * e->lddt + h, e->lddt);
            const float carried = (float)exp(sum[at]);
            for (int i = 0; i < BLOCK; i++)
                weight[i] = e->dy ? carried * p->before[i] : p->after[i] * p->delta[i];
            const float by = e->dy ? 1 : p->whole;
            sum[at] += (double)p->high[n - 1] + (double)p->low[n - 1];
            if (e->dy)
                widen_rows(k.left, rows, e->dy + ((row + t) * H + h) * P + u->p0, H * P, n, n_p);
            else widen_rows(k.left, rows, e->u + (row + t) * wide + h * P + u->p0, wide, n, n_p);
            scale_rows(k.scaled, k.left, weight, n, rows);
            product_of_float_columns(&(struct product){.c = state,
                                                       .a = k.scaled,
                                                       .b = k.right,
                                                       .factor = &by,
                                                       .ldc = width,
                                                       .lda = rows,
                                                       .ldb = width,
                                                       .rows = rows,
                                                       .depth = n,
                                                       .vectors = width / LANES,
                                                       .begin = begun[at] ? FADED : FRESH,
                                                       .from = state});
            begun[at] = true;
        }
        more = e->dy ? documents.last < 0 : true;
    }
    bool passes = true; /* what was before gets to the end */
    for (int64_t t = 0; t < L; t++) passes &= e->start[row + t] != t;
    for (int64_t h = u->h0; h < u->h1; h++) {
        const float *state = states + (h - u->h0) * rows * width;
        for (int64_t p = 0; p < n_p; p++)
            memcpy(e->state + ((u->b * H + h) * P + u->p0 + p) * S + u->s0, state + p * width,
                   (size_t)n_s * sizeof *state);
        if (u->p0 == 0 && u->s0 == 0)
            e->decay[u->b * H + h] = passes ? (float)exp(sum[h - u->h0]) : 0;
    }
}

/* Rows and columns of heads in equal parts. No result depends on the parts. */
static void all_ends(const struct ends *e) {
    if (e->G == 0 || e->H == 0) return;
    const int64_t heads = e->H / e->G, parts = most(1, (e->P + MOST_ROWS - 1) / MOST_ROWS);
    const int64_t rows = most(1, padded((e->P + parts - 1) / parts));
    const int64_t columns = least(MOST_WIDTH, most(1, padded(e->S)));
    const int64_t most_heads = least(MOST_HEADS, STATES / (rows * columns));
    const int64_t together = heads_together(heads, most_heads, e->B * e->G * parts);
    const int64_t bands = (heads + together - 1) / together;
#pragma omp parallel for collapse(4) schedule(dynamic) if (e->B * e->L * e->H * e->P * e->S > SMALL)
    for (int64_t b = 0; b < e->B; b++)
        for (int64_t band = 0; band < e->G * bands; band++)
            for (int64_t p = 0; p < most(1, e->P); p += rows)
                for (int64_t s = 0; s < most(1, e->S); s += columns) {
                    const int64_t group = band / bands,
                                  h0 = group * heads + band % bands * together;
                    unit_ends(e,
                              &(struct unit){b, h0, least(h0 + together, (group + 1) * heads), p,
                                             least(p + rows, e->P), s, least(s + columns, e->S)});
                }
}

#define CALL(a, gradient, to)                                                                      \
    all_ends(&(struct ends){.u = (a)->u,                                                           \
                            .dt = (a)->dt,                                                         \
                            .dy = gradient,                                                        \
                            .a_log = (a)->a_log,                                                   \
                            .dt_bias = (a)->dt_bias,                                               \
                            .start = (a)->start,                                                   \
                            .state = to,                                                           \
                            .decay = (a)->decay,                                                   \
                            .B = (a)->B,                                                           \
                            .L = (a)->L,                                                           \
                            .H = (a)->H,                                                           \
                            .P = (a)->P,                                                           \
                            .G = (a)->G,                                                           \
                            .S = (a)->S,                                                           \
                            .lddt = (a)->lddt,                                                     \
                            .dt_min = (float)(a)->dt_min,                                          \
                            .dt_max = (float)(a)->dt_max})

KERNEL(scan_end) {
    CALL(a, NULL, a->state);
}

KERNEL(scan_begin) {
    CALL(a, a->dy, a->dstate);
}
