/* What each operation computes, against formulas written here a second time: in double, without
 * blocks, recurrences or any other trick of the kernels. (That adjoints are derivatives is
 * tests/test_ops.c's to show.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/exact.h"
#include "tests/operands.h"

static struct device device;

/* Runs a row in double. */
#define RUN(name, ...) DEVICE_RUN(&device, name, F64, __VA_ARGS__)

static void close_to(double found, double expected) {
    if (!(fabs(found - expected) <= 1e-11 * (1 + fabs(expected))))
        fail_msg("got %.15g, want %.15g", found, expected);
}

static void elementwise(void **state) {
    (void)state;
    double *a = random_reals(7, 1), *b = random_reals(7, 2), y[7], z[7] = {0};
    RUN(add, .a = a, .b = b, .y = y, .n = 7);
    for (int i = 0; i < 7; i++) close_to(y[i], a[i] + b[i]);
    RUN(add_scaled, .x = a, .y = y, .s = 3, .n = 7);
    for (int i = 0; i < 7; i++) close_to(y[i], a[i] + b[i] + 3 * a[i]);
    RUN(scale, .x = a, .y = y, .s = -2, .n = 7);
    for (int i = 0; i < 7; i++) close_to(y[i], -2 * a[i]);
    RUN(relu2, .x = a, .y = y, .n = 7);
    for (int i = 0; i < 7; i++) close_to(y[i], a[i] > 0 ? a[i] * a[i] : 0);
    RUN(add_bias, .x = a, .b = b, .y = y, .T = 2, .W = 3);
    for (int i = 0; i < 6; i++) close_to(y[i], a[i] + b[i % 3]);
    RUN(copy, .x = a, .y = z, .T = 2, .W = 2, .ldx = 3, .ldy = 4);
    const double copied[7] = {a[0], a[1], 0, 0, a[3], a[4], 0};
    for (int i = 0; i < 7; i++) close_to(z[i], copied[i]);
    RUN(fill, .x = z, .T = 2, .W = 2, .ld = 5, .value = 9);
    const double filled[7] = {9, 9, 0, 0, a[3], 9, 9};
    for (int i = 0; i < 7; i++) close_to(z[i], filled[i]);
    const double nan_in[1] = {NAN};
    RUN(relu2, .x = nan_in, .y = y, .n = 1);
    assert_true(isnan(y[0]));
    free(a);
    free(b);
}

static void embedding_rows(void **state) {
    (void)state;
    double *w = random_reals(4 * 3, 1), y[5 * 3];
    const int32_t id[5] = {7, 10, 6, 11, -1};
    RUN(embedding, .w = w, .id = id, .y = y, .T = 5, .H = 3, .V = 4, .first = 7);
    for (int t = 0; t < 5; t++)
        for (int c = 0; c < 3; c++)
            close_to(y[t * 3 + c], id[t] >= 7 && id[t] < 11 ? w[(id[t] - 7) * 3 + c] : 0);
    free(w);
}

static void products(void **state) {
    (void)state;
    enum { M = 5, N = 7, K = 6, LD = 9 };
    double *a = random_reals(LD * LD, 1), *b = random_reals(LD * LD, 2), c[M * LD];
    for (int ta = 0; ta < 2; ta++)
        for (int tb = 0; tb < 2; tb++) {
            RUN(matmul, .a = a, .b = b, .c = c, .M = M, .N = N, .K = K, .lda = LD, .ldb = LD,
                .ldc = LD, .ta = ta, .tb = tb);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) {
                    double sum = 0;
                    for (int k = 0; k < K; k++)
                        sum += (ta ? a[k * LD + i] : a[i * LD + k]) *
                               (tb ? b[j * LD + k] : b[k * LD + j]);
                    close_to(c[i * LD + j], sum);
                }
        }
    free(a);
    free(b);
}

static void grouped_products(void **state) {
    (void)state;
    enum { S = 6, N = 3, K = 4, E = 3 };
    const int32_t offset[E + 1] = {0, 2, 2, 6};
    double *x = random_reals(S * K, 1), *dy = random_reals(S * N, 2),
           *w = random_reals(E * N * K, 3);
    double y[S * N], dw[E * N * K];
    for (int tb = 0; tb < 2; tb++) {
        RUN(grouped_matmul, .x = x, .w = w, .offset = offset, .y = y, .S = S, .N = N, .K = K,
            .E = E, .tb = tb);
        for (int s = 0; s < S; s++)
            for (int j = 0; j < N; j++) {
                const double *we = w + (s < 2 ? 0 : 2) * N * K;
                double sum = 0;
                for (int k = 0; k < K; k++) sum += x[s * K + k] * we[tb ? j * K + k : k * N + j];
                close_to(y[s * N + j], sum);
            }
    }
    RUN(grouped_weight, .dy = dy, .x = x, .offset = offset, .dw = dw, .S = S, .N = N, .K = K,
        .E = E);
    for (int i = 0; i < E * N * K; i++) {
        const int e = i / (N * K), n = i / K % N, k = i % K;
        double sum = 0;
        for (int s = offset[e]; s < offset[e + 1]; s++) sum += dy[s * N + n] * x[s * K + k];
        close_to(dw[i], sum);
    }
    free(x);
    free(dy);
    free(w);
}

static double silu_of(double x) {
    return x / (1 + exp(-x));
}

static void norms(void **state) {
    (void)state;
    enum { T = 3, W = 6, G = 2, WIDE = 8 };
    double *x = random_reals(T * W, 1), *z = random_reals(T * WIDE, 2), *w = random_reals(W, 3);
    double y[T * W], rstd[T], s[T * G];
    RUN(rms_norm, .x = x, .w = w, .y = y, .rstd = rstd, .T = T, .H = W, .eps = 0.1);
    for (int t = 0; t < T; t++) {
        double mean = 0;
        for (int c = 0; c < W; c++) mean += x[t * W + c] * x[t * W + c] / W;
        close_to(rstd[t], 1 / sqrt(mean + 0.1));
        for (int c = 0; c < W; c++) close_to(y[t * W + c], w[c] * x[t * W + c] / sqrt(mean + 0.1));
    }
    RUN(gate_squares, .y = x, .z = z, .s = s, .T = T, .W = W, .G = G, .ldz = WIDE);
    RUN(gate_norm, .y = x, .z = z, .s = s, .w = w, .o = y, .T = T, .W = W, .G = G, .ldz = WIDE,
        .width = 5, .eps = 0.1);
    for (int t = 0; t < T; t++)
        for (int g = 0; g < G; g++) {
            double sum = 0;
            for (int c = g * 3; c < g * 3 + 3; c++)
                sum += pow(x[t * W + c] * silu_of(z[t * WIDE + c]), 2);
            close_to(s[t * G + g], sum);
            for (int c = g * 3; c < g * 3 + 3; c++)
                close_to(y[t * W + c],
                         w[c] * x[t * W + c] * silu_of(z[t * WIDE + c]) / sqrt(sum / 5 + 0.1));
        }
    free(x);
    free(z);
    free(w);
}

static void convolution(void **state) {
    (void)state;
    enum { L = 6, C = 3, K = 4, LDX = 5 };
    double *x = random_reals(L * LDX, 1), *w = random_reals(C * K, 2), *b = random_reals(C, 3);
    double *before = random_reals((K - 1) * C, 4), u[L * C], after[(K - 1) * C];
    const int32_t start[L] = {-2, -2, -2,
                              3,  3,  3}; /* the oldest column of the state is another document's */
    RUN(conv, .x = x, .w = w, .b = b, .start = start, .state_in = before, .u = u,
        .state_out = after, .B = 1, .L = L, .C = C, .K = K, .ldx = LDX);
    for (int t = 0; t < L; t++)
        for (int c = 0; c < C; c++) {
            double pre = b[c];
            for (int k = 0; k < K; k++) {
                const int j = t - K + 1 + k;
                if (j >= start[t])
                    pre += w[c * K + k] * (j < 0 ? before[(K - 1 + j) * C + c] : x[j * LDX + c]);
            }
            close_to(u[t * C + c], silu_of(pre));
        }
    for (int i = 0; i < (K - 1) * C; i++) close_to(after[i], x[(L - K + 1 + i / C) * LDX + i % C]);
    free(x);
    free(w);
    free(b);
    free(before);
}

/* Without recurrence: y_t = sum over the document's tokens s <= t of (c_t . b_s) exp(A (D_s+1 + ..
 * + D_t)) D_s x_s + d x_t. */
static void scan_formula(void **state) {
    (void)state;
    enum { L = 9, H = 4, P = 2, G = 2, S = 3, WIDE = H * P + 2 * G * S };
    double *u = random_reals(L * WIDE, 1), *dt = random_reals(L * H, 2),
           *a_log = random_reals(H, 3);
    double *d = random_reals(H, 4), *bias = random_reals(H, 5), y[L * H * P];
    const int32_t start[L] = {0, 0, 0, 3, 3, 5, 5, 5, 5};
    dt[1] = 30; /* where softplus(x) = x */
    RUN(scan, .u = u, .dt = dt, .a_log = a_log, .d = d, .dt_bias = bias, .start = start, .y = y,
        .B = 1, .L = L, .H = H, .P = P, .G = G, .S = S, .Q = 4, .lddt = H, .dt_min = 0.4,
        .dt_max = 1.5);
    for (int t = 0; t < L; t++)
        for (int h = 0; h < H; h++) {
            double delta[L];
            for (int s = 0; s < L; s++) {
                const double raw = dt[s * H + h] + bias[h];
                delta[s] = fmin(fmax(raw > 20 ? raw : log(1 + exp(raw)), 0.4), 1.5);
            }
            for (int p = 0; p < P; p++) {
                double sum = d[h] * u[t * WIDE + h * P + p], decay = 0;
                for (int s = t; s >= start[t]; s--) {
                    double product = 0;
                    for (int i = 0; i < S; i++)
                        product += u[t * WIDE + H * P + (G + h / 2) * S + i] *
                                   u[s * WIDE + H * P + h / 2 * S + i];
                    sum +=
                        product * exp(-exp(a_log[h]) * decay) * delta[s] * u[s * WIDE + h * P + p];
                    decay += delta[s];
                }
                close_to(y[(t * H + h) * P + p], sum);
            }
        }
    free(u);
    free(dt);
    free(a_log);
    free(d);
    free(bias);
}

/* softmax over all places -P .. L-1, the unseen ones at probability 0. */
static void attention_formula(void **state) {
    (void)state;
    enum { L = 7, P = 3, H = 4, G = 2, D = 3 };
    double *q = random_reals(L * H * D, 1), *k = random_reals(L * G * D, 2),
           *v = random_reals(L * G * D, 3);
    double *k_past = random_reals(P * G * D, 4), *v_past = random_reals(P * G * D, 5), o[L * H * D],
           lse[L * H];
    const int32_t start[L] = {-2, -2, -2, 3, 3, 5, 5};
    RUN(attention, .q = q, .k = k, .v = v, .start = start, .k_past = k_past, .v_past = v_past,
        .o = o, .lse = lse, .B = 1, .L = L, .P = P, .H = H, .G = G, .D = D, .ldq = H * D,
        .ldk = G * D, .ldv = G * D, .ldp = P * G * D, .scale = 2.5);
    for (int i = 0; i < L; i++)
        for (int h = 0; h < H; h++) {
            double p[P + L] = {0}, sum = 0;
            for (int j = -P; j < L; j++) {
                if (j < start[i] || j > i) continue;
                const double *key = (j < 0 ? k_past + (j + P) * G * D : k + j * G * D) + h / 2 * D;
                for (int c = 0; c < D; c++) p[j + P] += 2.5 * q[(i * H + h) * D + c] * key[c];
                p[j + P] = exp(p[j + P]);
                sum += p[j + P];
            }
            close_to(lse[i * H + h], log(sum));
            for (int c = 0; c < D; c++) {
                double value = 0;
                for (int j = -P; j < L; j++)
                    value += p[j + P] / sum *
                             (j < 0 ? v_past + (j + P) * G * D : v + j * G * D)[h / 2 * D + c];
                close_to(o[(i * H + h) * D + c], value);
            }
        }
    free(q);
    free(k);
    free(v);
    free(k_past);
    free(v_past);
}

/* Every set of groups and then every order of experts is too many; but
 * each expert's rank can be counted. */
static void routing(void **state) {
    (void)state;
    enum { T = 40, E = 12, K = 3, GROUPS = 4, KEPT = 2, SIZE = E / GROUPS };
    double *logits = random_reals(T * E, 1), *bias = random_reals(E, 2), weight[T * K];
    int32_t index[T * K];
    for (int i = 0; i < T * E; i += 5) logits[i] = logits[i / 2 * 2 % (T * E)]; /* some ties */
    for (int e = 0; e < E; e++) bias[e] -= 1; /* most choices are negative */
    RUN(route, .logits = logits, .bias = bias, .index = index, .T = T, .E = E, .K = K,
        .groups = GROUPS, .kept = KEPT);
    RUN(route_weight, .logits = logits, .index = index, .weight = weight, .T = T, .E = E, .K = K,
        .normalise = 1, .scale = 2.5);
    for (int t = 0; t < T; t++) {
        double choice[E], score[GROUPS], sum = 0;
        for (int e = 0; e < E; e++) choice[e] = 1 / (1 + exp(-logits[t * E + e])) + bias[e];
        for (int g = 0; g < GROUPS; g++) {
            score[g] = -INFINITY;
            for (int i = 0; i < SIZE; i++)
                for (int j = 0; j < i; j++)
                    score[g] = fmax(score[g], choice[g * SIZE + i] + choice[g * SIZE + j]);
        }
        for (int e = 0; e < E; e++) {
            int better = 0;
            for (int g = 0; g < GROUPS; g++)
                better +=
                    score[g] > score[e / SIZE] || (score[g] == score[e / SIZE] && g < e / SIZE);
            if (better >= KEPT) choice[e] = -INFINITY;
        }
        for (int k = 0; k < K; k++) sum += 1 / (1 + exp(-logits[t * E + index[t * K + k]]));
        for (int e = 0; e < E; e++) {
            int rank = 0;
            for (int i = 0; i < E; i++)
                rank += choice[i] > choice[e] || (choice[i] == choice[e] && i < e);
            if (rank < K) assert_int_equal(index[t * K + rank], e);
        }
        for (int k = 0; k < K; k++)
            close_to(weight[t * K + k], 2.5 / sum / (1 + exp(-logits[t * E + index[t * K + k]])));
    }
    logits[0] = logits[1] = NAN; /* still K different experts */
    RUN(route, .logits = logits, .bias = bias, .index = index, .T = 1, .E = E, .K = E, .groups = 1,
        .kept = 1);
    for (int i = 0; i < E; i++)
        for (int j = 0; j < i; j++) assert_int_not_equal(index[i], index[j]);
    free(logits);
    free(bias);
}

static void sorting(void **state) {
    (void)state;
    enum { T = 5, K = 2, E = 4, W = 2 };
    const int32_t index[T * K] = {3, 0, 0, 1, 3, 0, 1, 3, 0, 3}; /* nobody chose 2 */
    const int32_t sorted[T * K] = {1, 2, 5, 8, 3, 6, 0, 4, 7, 9}, offsets[E + 1] = {0, 4, 6, 6, 10};
    int32_t order[T * K], position[T * K], offset[E + 1];
    double *x = random_reals(T * W, 1), *weight = random_reals(T * K, 2), y[T * K * W], o[T * W];
    RUN(sort_experts, .index = index, .order = order, .position = position, .offset = offset,
        .T = T, .K = K, .E = E);
    assert_memory_equal(order, sorted, sizeof order);
    assert_memory_equal(offset, offsets, sizeof offset);
    for (int i = 0; i < T * K; i++) assert_int_equal(position[order[i]], i);
    RUN(gather_rows, .x = x, .order = order, .y = y, .T = T, .K = K, .W = W);
    RUN(combine_rows, .y = y, .weight = weight, .position = position, .o = o, .T = T, .K = K,
        .W = W);
    for (int i = 0; i < T * W; i++)
        close_to(o[i], (weight[i / W * K] + weight[i / W * K + 1]) * x[i]);

    /* Two choices are dropped: they come last and add nothing, forward or back. */
    const int32_t some[T * K] = {3, 4, 0, 1, 3, 0, 4, 3, 0, 3};
    const int32_t kept[T * K] = {2, 5, 8, 3, 0, 4, 7, 9, 1, 6}, ends[E + 1] = {0, 3, 4, 4, 8};
    double dy[T * K * W], dweight[T * K], dx[T * W], go[T * W];
    RUN(sort_experts, .index = some, .order = order, .position = position, .offset = offset, .T = T,
        .K = K, .E = E);
    assert_memory_equal(order, kept, sizeof order);
    assert_memory_equal(offset, ends, sizeof offset);
    for (int i = 0; i < T * K; i++) assert_int_equal(position[order[i]], i < offset[E] ? i : -1);
    RUN(gather_rows, .x = x, .order = order, .y = y, .T = T, .K = K, .W = W);
    for (int i = offset[E] * W; i < T * K * W; i++) y[i] = NAN; /* not computed */
    RUN(combine_rows, .y = y, .weight = weight, .position = position, .o = o, .T = T, .K = K,
        .W = W);
    for (int i = 0; i < T * W; i++) {
        const int t = i / W;
        close_to(o[i],
                 (weight[t * K] * (some[t * K] < E) + weight[t * K + 1] * (some[t * K + 1] < E)) *
                     x[i]);
        go[i] = 1 + i;
    }
    RUN(combine_rows_adjoint, .y = y, .weight = weight, .position = position, .go = go, .dy = dy,
        .dweight = dweight, .T = T, .K = K, .W = W);
    RUN(gather_rows_adjoint, .dy = dy, .position = position, .dx = dx, .T = T, .K = K, .W = W);
    for (int i = 0; i < T * K; i++) {
        const int t = i / K;
        close_to(dweight[i], some[i] < E ? go[t * W] * x[t * W] + go[t * W + 1] * x[t * W + 1] : 0);
    }
    for (int i = 0; i < T * W; i++) {
        const int t = i / W;
        close_to(dx[i],
                 (weight[t * K] * (some[t * K] < E) + weight[t * K + 1] * (some[t * K + 1] < E)) *
                     go[i]);
    }
    free(x);
    free(weight);
}

/* Whom each token would take in turn; who chose whom in which
 * document; and what was chosen so far. */
static void loads(void **state) {
    (void)state;
    enum { T = 9, K = 2, E = 4, L = 3, G = 2, FIRST = 2 };
    const int32_t document[T] = {-1, 1, 1, 7, 7, 0, -1, 1, 9};
    int32_t index[T * K], count[G * (E + 1)], sum[E + 1];
    int64_t load[E] = {1, 1, 1, 1}, seen[E + 1] = {5, 4, 3, 2, 1};
    RUN(route_evenly, .index = index, .T = T, .E = E, .K = K, .first = FIRST, .L = L,
        .piece = L - 1, .low = 5, .high = 11);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < K; k++) {
            const int at = (t + FIRST) % L, place = at < L - 1 ? 5 + at : 11;
            assert_int_equal(index[t * K + k], (place * K + k) % E);
        }
    for (int i = 0; i < T * K; i++) index[i] = (i * i + i / 5) % (E + 1); /* E: nobody's */
    for (int all = 0; all < 2; all++) {
        RUN(count_choices, .index = index, .document = document, .count = count, .T = T, .K = K,
            .E = E, .G = G - all, .all = all);
        for (int i = 0; i < (G - all) * (E + 1); i++) {
            const int g = i / (E + 1), e = i % (E + 1);
            int want = 0;
            for (int t = 0; t < T; t++)
                for (int k = 0; k < K; k++)
                    want += (all ? document[t] >= 0 : document[t] == g) &&
                            (e < E ? index[t * K + k] == e : k == 0);
            assert_int_equal(count[i], want);
        }
    }
    RUN(count_experts, .index = index, .document = document, .load = load, .T = T, .K = K, .E = E);
    for (int e = 0; e < E; e++) assert_int_equal(load[e], 1 + count[e]);
    RUN(add_counts, .count = count, .seen = seen, .sum = sum, .n = E + 1);
    for (int e = 0; e <= E; e++) {
        assert_int_equal(sum[e], (e < E ? 5 - e : 1) + count[e]);
        assert_int_equal(seen[e], sum[e]);
    }
}

/* Whose choices are too many, by counting who is better: sequences
 * on one rank and cut for several. */
static void dropping(void **state) {
    (void)state;
    enum { T = 48, K = 2, E = 4, L = 24, LIMIT = 9 };
    double *drawn = random_reals(T * K, 3), weight[T * K];
    int32_t index[T * K], document[T], order[T * K], kept[T * K];
    for (int i = 1; i < T * K; i += 3) drawn[i] = drawn[i - 1]; /* ties */
    for (int C = 1; C <= 3; C++) {
        int token[T]; /* of the sequences: what is stored at each place */
        for (int t = 0, n = 0; t < C; t++)
            for (int b = 0; b < T / L; b++)
                for (int i = 0; i < (C > 1 ? 2 : 1); i++) {
                    const int length = C > 1 ? L / (2 * C) : L, piece = i ? 2 * C - 1 - t : t;
                    for (int k = 0; k < length; k++) token[n++] = b * L + piece * length + k;
                }
        for (int i = 0; i < T * K; i++) {
            const int at = token[i / K] * K + i % K;
            weight[i] = drawn[at];
            index[i] = (at * at + at / 5) % E;
            document[i / K] = token[i / K] % 7 == 0 ? -1 : 0;
        }
        const int first = C == 3 ? 16 : 0, n = C == 3 ? 16 : T;
        RUN(drop_choices, .index = index, .weight = weight, .document = document, .order = order,
            .kept = kept, .T = T, .K = K, .E = E, .L = L, .C = C, .limit = LIMIT, .first = first,
            .n = n);
        int dropped = 0;
        for (int i = first * K; i < (first + n) * K; i++) {
            const int me = token[i / K] * K + i % K;
            int better = 0;
            for (int j = 0; j < T * K; j++) {
                const int other = token[j / K] * K + j % K;
                const bool mine = document[i / K] >= 0, theirs = document[j / K] >= 0;
                if (index[j] != index[i] || other / (L * K) != me / (L * K)) continue;
                if (mine != theirs) better += theirs;
                else better += weight[j] > weight[i] || (weight[j] == weight[i] && other < me);
            }
            assert_int_equal(kept[i - first * K], better < LIMIT ? index[i] : E);
            dropped += better >= LIMIT;
        }
        assert_true(dropped > 0);
    }
    free(drawn);
}

/* The balance loss by its definition, and its least value, 1 a token, where all is even. */
static void balance(void **state) {
    (void)state;
    enum { T = 9, K = 2, E = 3, G = 2 };
    const int32_t document[T] = {1, 1, -1, 5, 5, 5, 8, 0, 1};
    const int32_t count[G * (E + 1)] = {3, 1, 2, 3, 2, 0, 2, 2};
    const int32_t index[T * K] = {0, 1, 1, 2, 0, 1, 2, 0, 2, 1, 2, 0, 1, 0, 0, 2, 1, 2};
    const int32_t of_5[E + 1] = {2, 1, 3, 3}, of_8[E + 1] = {1, 1, 0, 1};
    double *logits = random_reals(T * E, 1), even[T], square[T];
    for (int all = 0; all < 2; all++) {
        RUN(balance_loss, .logits = logits, .index = index, .document = document, .count = count,
            .even = even, .square = square, .T = T, .E = E, .K = K, .G = G - all, .all = all,
            .share = 0.5);
        for (int t = 0; t < T; t++) {
            const int32_t *c = all                ? count
                               : document[t] == 5 ? of_5
                               : document[t] == 8 ? of_8
                                                  : count + document[t] * (E + 1);
            double sum = 0, met = 0, exponentials = 0;
            for (int e = 0; e < E && document[t] >= 0; e++) {
                const double p = 1 / (1 + exp(-logits[t * E + e]));
                sum += p;
                met += p * c[e];
                exponentials += exp(logits[t * E + e]);
            }
            close_to(even[t], document[t] < 0 ? 0 : 0.5 * E / (K * (double)c[E]) * met / sum);
            close_to(square[t], document[t] < 0 ? 0 : 0.5 * pow(log(exponentials), 2));
        }
    }
    const int32_t all_alike[E + 1] = {2, 2, 2, 3}, none[E + 1] = {0};
    RUN(balance_loss, .logits = logits, .index = index, .count = all_alike, .even = even,
        .square = square, .T = 3, .E = E, .K = K, .G = 1, .share = 1);
    close_to(even[0] + even[1] + even[2], 3);
    for (int i = 0; i < 3 * E; i++) logits[i] = i < 3 ? -2000 : 2000; /* no score above 0; all 1 */
    RUN(balance_loss, .logits = logits, .index = index, .count = all_alike, .even = even,
        .square = square, .T = 3, .E = E, .K = K, .G = 1, .share = 1);
    close_to(even[0], 0);
    close_to(even[1], 1);
    close_to(square[1], pow(2000 + log(3), 2));
    RUN(balance_loss, .logits = logits, .index = index, .count = none, .even = even,
        .square = square, .T = 3, .E = E, .K = K, .G = 1, .share = 1);
    for (int t = 0; t < 3; t++) assert_true(even[t] == 0 && square[t] == 0);
    free(logits);
}

/* The words split over three ranks, of which the second has none. */
static void head_and_loss(void **state) {
    (void)state;
    enum { T = 5, H = 3, V = 7, R = 3 };
    const int32_t target[T] = {0, 6, -100, 3, 2};
    const int64_t first[R] = {0, 3, 3}, words[R] = {3, 0, 4};
    double *x = random_reals(T * H, 1), *w = random_reals(V * H, 2), *weight = random_reals(T, 3);
    double lse[R * T], picked[R * T], loss[T], scratch[2 * V];
    for (int r = 0; r < R; r++)
        RUN(head, .x = x, .w = w + first[r] * H, .target = target, .lse = lse + r * T,
            .picked = picked + r * T, .scratch = scratch, .T = T, .H = H, .V = words[r],
            .first = first[r], .C = 2);
    RUN(word_loss, .lse = lse, .picked = picked, .weight = weight, .loss = loss, .T = T, .R = R);
    for (int t = 0; t < T; t++) {
        double sum = 0, at_target = 0;
        for (int v = 0; v < V; v++) {
            double logit = 0;
            for (int c = 0; c < H; c++) logit += x[t * H + c] * w[v * H + c];
            sum += exp(logit);
            if (v == target[t]) at_target = logit;
        }
        assert_true(isinf(lse[T + t]) && lse[T + t] < 0);
        close_to(loss[t], weight[t] * (log(sum) - at_target));
    }
    free(x);
    free(w);
    free(weight);
}

static void optimiser(void **state) {
    (void)state;
    double *g = random_reals(6, 1), *w0 = random_reals(6, 2), w[6], m[6] = {0}, v[6] = {0};
    memcpy(w, w0, sizeof w);
    double mean[6] = {0}, square[6] = {0};
    for (int n = 1; n <= 3; n++) {
        const double c1 = 1 - pow(0.9, n), c2 = 1 - pow(0.95, n);
        RUN(adamw, .w = w, .g = g, .m = m, .v = v, .n = 6, .clip = 0.5, .rate = 0.01, .beta1 = 0.9,
            .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .c1 = c1, .c2 = c2);
        for (int i = 0; i < 6; i++) {
            mean[i] = 0.9 * mean[i] + 0.1 * (0.5 * g[i]);
            square[i] = 0.95 * square[i] + 0.05 * (0.5 * g[i]) * (0.5 * g[i]);
            w0[i] -= 0.01 * 0.1 * w0[i];
            w0[i] -= 0.01 * (mean[i] / c1) / (sqrt(square[i] / c2) + 1e-8);
            close_to(w[i], w0[i]);
        }
    }
    struct exact sum = {0};
    RUN(exact_sum, .x = g, .sum = &sum, .n = 6);
    close_to(exact_value(&sum), g[0] + g[1] + g[2] + g[3] + g[4] + g[5]);
    free(g);
    free(w0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elementwise),  cmocka_unit_test(embedding_rows),
        cmocka_unit_test(products),     cmocka_unit_test(grouped_products),
        cmocka_unit_test(norms),        cmocka_unit_test(convolution),
        cmocka_unit_test(scan_formula), cmocka_unit_test(attention_formula),
        cmocka_unit_test(routing),      cmocka_unit_test(sorting),
        cmocka_unit_test(loads),        cmocka_unit_test(dropping),
        cmocka_unit_test(balance),      cmocka_unit_test(head_and_loss),
        cmocka_unit_test(optimiser),
    };
    device_cpu(&device, 2, false);
    const int n = sizeof tests / sizeof *tests, failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d passed, %d failed\n", n - failed, failed);
    return failed != 0;
}
