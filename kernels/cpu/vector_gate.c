/* vector_gate: Mamba's gated norm (gate.c has the formulas), whole and in two halves. A group's
 * gates are kept between the sum over the group and what is made with it, so that each exponential
 * is computed once; a group wider than KEPT computes them again. */
#include "kernels/cpu/vector.h"

enum { KEPT = 2048, TOKENS = 32, ROOM = 8 };

static inline float group_rstd(float s, int64_t width, double eps) {
    return (float)(1 / sqrt((double)s / (double)width + eps));
}

/* ---- forward ---- */

/* g[0..n) = y silu(z), and its squares added to sum. */
static inline vf gate_strip(float *g, const stored *y, const stored *z, int64_t n, vf sum) {
    for (int64_t c = 0; c < n; c += LANES) {
        const vf v = load_left(y + c, n - c) * vf_silu(load_left(z + c, n - c));
        if (g) store_real_left(g + c, v, n - c);
        sum += v * v;
    }
    return sum;
}

/* o = w g r */
static inline void scale_strip(stored *o, const float *g, const float *w, float r, int64_t n) {
    for (int64_t c = 0; c < n; c += LANES)
        store_left(o + c, load_real_left(w + c, n - c) * (load_real_left(g + c, n - c) * r), n - c);
}

KERNEL(gate_squares) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t i = 0; i < G; i++)
            ((float *)a->s)[t * G + i] =
                vf_sum(gate_strip(NULL, (const stored *)a->y + t * W + i * group,
                                  (const stored *)a->z + t * a->ldz + i * group, group, vf_all(0)));
}

KERNEL(gate_norm) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t i = 0; i < G; i++) {
            const float r = group_rstd(((const float *)a->s)[t * G + i], a->width, a->eps);
            for (int64_t c = i * group; c < (i + 1) * group; c += KEPT) {
                const int64_t n = least(KEPT, (i + 1) * group - c);
                float g[KEPT];
                gate_strip(g, (const stored *)a->y + t * W + c,
                           (const stored *)a->z + t * a->ldz + c, n, vf_all(0));
                scale_strip((stored *)a->o + t * W + c, g, (const float *)a->w + c, r, n);
            }
        }
}

KERNEL(gated_norm) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t i = 0; i < G; i++) {
            const stored *y = (const stored *)a->y + t * W + i * group;
            const stored *z = (const stored *)a->z + t * a->ldz + i * group;
            float g[KEPT];
            vf sum = vf_all(0);
            for (int64_t c = 0; c < group; c += KEPT)
                sum = gate_strip(g, y + c, z + c, least(KEPT, group - c), sum);
            const float s = vf_sum(sum), r = group_rstd(s, group, a->eps);
            ((float *)a->s)[t * G + i] = s;
            for (int64_t c = 0; c < group; c += KEPT) {
                const int64_t n = least(KEPT, group - c);
                if (group > KEPT) gate_strip(g, y + c, z + c, n, vf_all(0));
                scale_strip((stored *)a->o + t * W + i * group + c, g,
                            (const float *)a->w + i * group + c, r, n);
            }
        }
}

/* ---- adjoints ---- */

/* gate = silu(z), dgate = y dsilu/dz: what dg is multiplied with for dy and dz. */
struct gates {
    float gate[KEPT], dgate[KEPT];
};

/* Gives the sum over the strip of go w g. */
static inline vf open_gates(struct gates *k, const stored *y, const stored *z, const stored *go,
                            const float *w, int64_t n) {
    vf sum = vf_all(0);
    for (int64_t c = 0; c < n; c += LANES) {
        const vf v = load_left(z + c, n - c), in = load_left(y + c, n - c), s = vf_sigmoid(v);
        const vf gate = v * s;
        store_real_left(k->gate + c, gate, n - c);
        store_real_left(k->dgate + c, in * vf_silu_slope(v, s), n - c);
        if (go) sum += load_left(go + c, n - c) * load_real_left(w + c, n - c) * (in * gate);
    }
    return sum;
}

static inline void give(stored *dy, stored *dz, const struct gates *k, vf dg, int64_t c, int64_t n,
                        int dy_add, int dz_add) {
    if (dy) put_left(dy + c, dg * load_real_left(k->gate + c, n - c), n - c, dy_add);
    if (dz) put_left(dz + c, dg * load_real_left(k->dgate + c, n - c), n - c, dz_add);
}

/* dg = 2 g ds */
KERNEL(gate_squares_adjoint) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t c0 = 0; c0 < W;) {
            const int64_t n = least(KEPT, (c0 / group + 1) * group - c0);
            const float ds = ((const float *)a->ds)[t * G + c0 / group];
            const stored *y = (const stored *)a->y + t * W + c0;
            stored *dy = a->dy ? (stored *)a->dy + t * W + c0 : NULL;
            stored *dz = a->dz ? (stored *)a->dz + t * a->ldz + c0 : NULL;
            struct gates k;
            open_gates(&k, y, (const stored *)a->z + t * a->ldz + c0, NULL, NULL, n);
            for (int64_t c = 0; c < n; c += LANES) {
                const vf g = load_left(y + c, n - c) * load_real_left(k.gate + c, n - c);
                give(dy, dz, &k, 2 * g * ds, c, n, a->dy_add, a->dz_add);
            }
            c0 += n;
        }
}

/* dg = w r go;  ds = -(sum of go w g) r^3 / (2 width) */
static void norm_inputs(const struct gate_norm_adjoint_args *a, int64_t t) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    for (int64_t i = 0; i < G; i++) {
        const float r = group_rstd(((const float *)a->s)[t * G + i], a->width, a->eps);
        vf sum = vf_all(0);
        for (int64_t c0 = i * group; c0 < (i + 1) * group; c0 += KEPT) {
            const int64_t n = least(KEPT, (i + 1) * group - c0);
            const stored *go = (const stored *)a->go + t * W + c0;
            const float *w = (const float *)a->w + c0;
            stored *dy = a->dy ? (stored *)a->dy + t * W + c0 : NULL;
            stored *dz = a->dz ? (stored *)a->dz + t * a->ldz + c0 : NULL;
            struct gates k;
            sum += open_gates(&k, (const stored *)a->y + t * W + c0,
                              (const stored *)a->z + t * a->ldz + c0, go, w, n);
            for (int64_t c = 0; c < n; c += LANES) {
                const vf dg = load_left(go + c, n - c) * load_real_left(w + c, n - c) * r;
                give(dy, dz, &k, dg, c, n, a->dy_add, a->dz_add);
            }
        }
        if (!a->ds) continue;
        const double R = (double)r, ds = -(double)vf_sum(sum) * R * R * R / (2 * (double)a->width);
        float *to = (float *)a->ds + t * G + i;
        *to = (float)(a->ds_add ? (double)*to + ds : ds);
    }
}

/* Adds tokens t0 to t1 to columns c0 .. c0+n of dw, all of one group. */
static void norm_columns(const struct gate_norm_adjoint_args *a, int64_t c0, int64_t n, int64_t t0,
                         int64_t t1) {
    const int64_t W = a->W, G = a->G, i = c0 / (W / G);
    vf sum[ROOM] = {{0}};
    for (int64_t t = t0; t < t1; t++) {
        const float r = group_rstd(((const float *)a->s)[t * G + i], a->width, a->eps);
        const stored *y = (const stored *)a->y + t * W + c0,
                     *go = (const stored *)a->go + t * W + c0;
        const stored *z = (const stored *)a->z + t * a->ldz + c0;
        for (int64_t k = 0, c = 0; c < n; k++, c += LANES)
            sum[k] += load_left(go + c, n - c) *
                      (load_left(y + c, n - c) * vf_silu(load_left(z + c, n - c)) * r);
    }
    for (int64_t k = 0, c = 0; c < n; k++, c += LANES)
        put_real_left((float *)a->dw + c0 + c, sum[k], n - c, a->dw_add || t0 > 0);
}

KERNEL(gate_norm_adjoint) {
    const int64_t T = a->T, G = a->G, group = G > 0 ? a->W / G : 0;
    const int64_t across = (group + ROOM * LANES - 1) / (ROOM * LANES);
#pragma omp parallel if (T * a->W > SMALL)
    for (int64_t t0 = 0; t0 < most(T, 1); t0 += TOKENS) {
        const int64_t t1 = least(T, t0 + TOKENS);
#pragma omp for schedule(static) nowait
        for (int64_t t = t0; t < t1; t++) norm_inputs(a, t);
        if (!a->dw) continue;
#pragma omp for schedule(static)
        for (int64_t j = 0; j < G * across; j++) {
            const int64_t within = j % across * ROOM * LANES;
            norm_columns(a, j / across * group + within, least(ROOM * LANES, group - within), t0,
                         t1);
        }
    }
}

/* With q = go w and r = rstd: dg = r q - g r^3 mean(q g);  dw = sum of go g r, here added to a
 * block's own sums (NULL: not wanted). */
static void whole_group(const struct gated_norm_adjoint_args *a, int64_t t, int64_t i, float *sums,
                        bool begin) {
    const int64_t W = a->W, group = W / a->G, at = t * W + i * group;
    const stored *y = (const stored *)a->y + at, *go = (const stored *)a->go + at;
    const stored *z = (const stored *)a->z + t * a->ldz + i * group;
    const float *w = (const float *)a->w + i * group;
    stored *dy = a->dy ? (stored *)a->dy + at : NULL;
    stored *dz = a->dz ? (stored *)a->dz + t * a->ldz + i * group : NULL;
    const float r = group_rstd(((const float *)a->s)[t * a->G + i], group, a->eps);
    struct gates k;
    vf sum = vf_all(0);
    for (int64_t c0 = 0; c0 < group; c0 += KEPT)
        sum += open_gates(&k, y + c0, z + c0, go + c0, w + c0, least(KEPT, group - c0));
    const float along = (float)((double)vf_sum(sum) / (double)group * (double)r * (double)r);
    for (int64_t c0 = 0; c0 < group; c0 += KEPT) {
        const int64_t n = least(KEPT, group - c0);
        if (group > KEPT) open_gates(&k, y + c0, z + c0, NULL, NULL, n);
        for (int64_t c = 0; c < n; c += LANES) {
            const vf out = load_left(go + c0 + c, n - c);
            const vf g = load_left(y + c0 + c, n - c) * load_real_left(k.gate + c, n - c);
            const vf dg = r * (out * load_real_left(w + c0 + c, n - c) - g * along);
            give(dy ? dy + c0 : NULL, dz ? dz + c0 : NULL, &k, dg, c, n, a->dy_add, a->dz_add);
            if (sums) put_real_left(sums + i * group + c0 + c, out * (g * r), n - c, !begin);
        }
    }
}

KERNEL(gated_norm_adjoint) {
    const int64_t T = a->T, W = a->W, blocks = (T + TOKENS - 1) / TOKENS;
    float *parts = a->parts;
#pragma omp parallel if (T * W > SMALL)
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t t = b * TOKENS; t < least(T, (b + 1) * TOKENS); t++)
                for (int64_t i = 0; i < a->G; i++)
                    whole_group(a, t, i, a->dw ? parts + b * W : NULL, t == b * TOKENS);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < (a->dw ? W : 0); c += LANES) {
            vf sum = vf_all(0);
            for (int64_t b = 0; b < blocks; b++) sum += load_real_left(parts + b * W + c, W - c);
            put_real_left((float *)a->dw + c, sum, W - c, a->dw_add);
        }
    }
}
