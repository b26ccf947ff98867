/* Where a sequence is cut makes no difference: two calls, the first's state (keys, values) handed
 * to the second, are one call, in values and in gradients; and documents that lie in one row are as
 * if each had a row of its own. For the three operations that look back: conv, scan, attention. In
 * double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/operands.h"

#define RUN(name, ...) DEVICE_RUN(&device, name, F64, __VA_ARGS__)

enum { L = 11, K = 4, C = 3, H = 4, P = 2, G = 2, S = 3, D = 3, Q = 3 };
enum { WIDE = H * P + 2 * G * S, CONV_STATE = (K - 1) * C, STATE = H * P * S };

static struct device device;

static void same(const double *found, const double *expected, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(found[i] - expected[i]) <= 1e-11 * (1 + fabs(expected[i]))))
            fail_msg("%s[%d]: got %.15g, want %.15g", what, (int)i, found[i], expected[i]);
}

/* Where the documents of the row begin. The first began two tokens before it. */
static const int32_t whole_start[L] = {-2, -2, -2, 3, 3, 3, 3, 3, 8, 9, 9};

/* The starts of the tokens from `from` on, as a row of their own. */
static void starts_from(int32_t *start, int from) {
    for (int t = from; t < L; t++) start[t - from] = whole_start[t] - from;
}

/* ---- convolution ---- */

struct conv_run {
    double u[L * C], after[CONV_STATE], dx[L * C], dw[C * K], db[C], dbefore[CONV_STATE];
};

/* n tokens from `from` on. w_add: the sums over tokens go on. */
static void conv_part(struct conv_run *r, const double *x, const double *w, const double *b,
                      const double *before, const double *du, const double *dafter, int from, int n,
                      int w_add) {
    int32_t start[L];
    starts_from(start, from);
    RUN(conv, .x = x + from * C, .w = w, .b = b, .start = start, .state_in = before,
        .u = r->u + from * C, .state_out = r->after, .B = 1, .L = n, .C = C, .K = K, .ldx = C);
    RUN(conv_adjoint, .x = x + from * C, .w = w, .b = b, .start = start, .state_in = before,
        .du = du + from * C, .dstate_out = dafter, .dx = r->dx + from * C, .dw = r->dw,
        .dw_add = w_add, .db = r->db, .db_add = w_add, .dstate_in = r->dbefore, .B = 1, .L = n,
        .C = C, .K = K, .ldx = C);
}

static void conv_cut(void **state) {
    (void)state;
    double *x = random_reals(L * C, 1), *w = random_reals(C * K, 2), *b = random_reals(C, 3);
    double *before = random_reals(CONV_STATE, 4), *du = random_reals(L * C, 5),
           *dafter = random_reals(CONV_STATE, 6);
    static struct conv_run whole, parts;
    conv_part(&whole, x, w, b, before, du, dafter, 0, L, 0);
    for (int cut = 0; cut <= L; cut++) {
        double between[CONV_STATE], dbetween[CONV_STATE];
        conv_part(&parts, x, w, b, before, du, dafter, 0, cut, 0);
        memcpy(between, parts.after, sizeof between);
        conv_part(&parts, x, w, b, between, du, dafter, cut, L - cut,
                  0); /* values, and what flows back */
        same(parts.after, whole.after, CONV_STATE, "state");
        memcpy(dbetween, parts.dbefore, sizeof dbetween);
        conv_part(&parts, x, w, b, before, du, dbetween, 0, cut, 1);
        same(parts.u, whole.u, L * C, "u");
        same(parts.dx, whole.dx, L * C, "dx");
        same(parts.dw, whole.dw, C * K, "dw");
        same(parts.db, whole.db, C, "db");
        same(parts.dbefore, whole.dbefore, CONV_STATE, "dstate_in");
    }
    free(x), free(w), free(b), free(before), free(du), free(dafter);
}

/* ---- scan ---- */

struct scan_run {
    double y[L * H * P], after[STATE], states[L * STATE], du[L * WIDE], ddt[L * H], da[H], dd[H],
        dbias[H];
    double dbefore[STATE];
};

struct scan_in {
    double *u, *dt, *a, *d, *bias, *before, *dy, *dafter;
};

static void scan_part(struct scan_run *r, const struct scan_in *in, const double *before,
                      const double *dafter, int from, int n, int add) {
    int32_t start[L];
    starts_from(start, from);
    RUN(scan, .u = in->u + from * WIDE, .dt = in->dt + from * H, .a_log = in->a, .d = in->d,
        .dt_bias = in->bias, .start = start, .state_in = before, .y = r->y + from * H * P,
        .states = r->states, .state_out = r->after, .B = 1, .L = n, .H = H, .P = P, .G = G, .S = S,
        .Q = Q, .lddt = H, .dt_max = INFINITY);
    RUN(scan_adjoint, .u = in->u + from * WIDE, .dt = in->dt + from * H, .a_log = in->a, .d = in->d,
        .dt_bias = in->bias, .start = start, .states = r->states, .dy = in->dy + from * H * P,
        .dstate_out = dafter, .du = r->du + from * WIDE, .ddt = r->ddt + from * H, .da_log = r->da,
        .da_log_add = add, .dd = r->dd, .dd_add = add, .ddt_bias = r->dbias, .ddt_bias_add = add,
        .dstate_in = r->dbefore, .B = 1, .L = n, .H = H, .P = P, .G = G, .S = S, .Q = Q, .lddt = H,
        .dt_max = INFINITY);
}

static struct scan_in scan_inputs(void) {
    return (struct scan_in){random_reals(L * WIDE, 1),  random_reals(L * H, 2),
                            random_reals(H, 3),         random_reals(H, 4),
                            random_reals(H, 5),         random_reals(STATE, 6),
                            random_reals(L * H * P, 7), random_reals(STATE, 8)};
}

static void free_scan_inputs(struct scan_in *in) {
    free(in->u), free(in->dt), free(in->a), free(in->d), free(in->bias), free(in->before),
        free(in->dy);
    free(in->dafter);
}

static void scan_cut(void **state) {
    (void)state;
    struct scan_in in = scan_inputs();
    static struct scan_run whole, parts;
    scan_part(&whole, &in, in.before, in.dafter, 0, L, 0);
    for (int cut = 0; cut <= L; cut++) {
        double between[STATE], dbetween[STATE];
        scan_part(&parts, &in, in.before, in.dafter, 0, cut, 0);
        memcpy(between, parts.after, sizeof between);
        scan_part(&parts, &in, between, in.dafter, cut, L - cut, 0);
        same(parts.after, whole.after, STATE, "state");
        memcpy(dbetween, parts.dbefore, sizeof dbetween);
        scan_part(&parts, &in, in.before, dbetween, 0, cut, 1);
        same(parts.y, whole.y, L * H * P, "y");
        same(parts.du, whole.du, L * WIDE, "du");
        same(parts.ddt, whole.ddt, L * H, "ddt");
        same(parts.da, whole.da, H, "da_log");
        same(parts.dd, whole.dd, H, "dd");
        same(parts.dbias, whole.dbias, H, "ddt_bias");
        same(parts.dbefore, whole.dbefore, STATE, "dstate_in");
    }
    free_scan_inputs(&in);
}

/* ---- attention ---- */

struct attention_run {
    double o[L * H * D], lse[L * H], dq[L * H * D], dk[2 * L * G * D], dv[2 * L * G * D];
};

struct attention_in {
    double *q, *k, *v, *go; /* k, v: of 2 L tokens, the first L of them before the row */
};

/* The n tokens from `from` on see as past everything from `past` tokens before them. Gradients of
 * keys are added. */
static void attention_part(struct attention_run *r, const struct attention_in *in, int from, int n,
                           int past) {
    int32_t start[L];
    starts_from(start, from);
    const int64_t at = (int64_t)(L + from) * G * D, early = at - (int64_t)past * G * D,
                  mine = (int64_t)from * H * D;
    RUN(attention, .q = in->q + mine, .k = in->k + at, .v = in->v + at, .start = start,
        .k_past = in->k + early, .v_past = in->v + early, .o = r->o + mine,
        .lse = r->lse + from * H, .B = 1, .L = n, .P = past, .H = H, .G = G, .D = D, .ldq = H * D,
        .ldk = G * D, .ldv = G * D, .ldp = past * G * D, .scale = 1.5);
    RUN(attention_adjoint, .q = in->q + mine, .k = in->k + at, .v = in->v + at, .start = start,
        .k_past = in->k + early, .v_past = in->v + early, .o = r->o + mine,
        .lse = r->lse + from * H, .go = in->go + mine, .dq = r->dq + mine, .dk = r->dk + at,
        .dk_add = 1, .dv = r->dv + at, .dv_add = 1, .dk_past = r->dk + early, .dk_past_add = 1,
        .dv_past = r->dv + early, .dv_past_add = 1, .B = 1, .L = n, .P = past, .H = H, .G = G,
        .D = D, .ldq = H * D, .ldk = G * D, .ldv = G * D, .ldp = past * G * D, .scale = 1.5);
}

static void attention_cut(void **state) {
    (void)state;
    const struct attention_in in = {random_reals(L * H * D, 1), random_reals(2 * L * G * D, 2),
                                    random_reals(2 * L * G * D, 3), random_reals(L * H * D, 4)};
    static struct attention_run whole, parts;
    attention_part(&whole, &in, 0, L, 5); /* more past than the document has: not seen */
    for (int cut = 0; cut <= L; cut++) {
        memset(&parts, 0, sizeof parts);
        attention_part(&parts, &in, 0, cut, 2);
        attention_part(&parts, &in, cut, L - cut, cut + 2);
        same(parts.o, whole.o, L * H * D, "o");
        same(parts.lse, whole.lse, L * H, "lse");
        same(parts.dq, whole.dq, L * H * D, "dq");
        same(parts.dk, whole.dk, 2 * L * G * D, "dk");
        same(parts.dv, whole.dv, 2 * L * G * D, "dv");
    }
    free(in.q), free(in.k), free(in.v), free(in.go);
}

/* ---- states that are replaced where they lie ---- */

static void in_place(void **state) {
    (void)state;
    double *x = random_reals(L * C, 1), *w = random_reals(C * K, 2);
    struct scan_in in = scan_inputs();
    double u[L * C], y[L * H * P], after[STATE], here[STATE];
    for (int n = 0; n <= L; n++) { /* fewer tokens than the convolution looks back, and more */
        int32_t start[L];
        for (int t = 0; t < L; t++) start[t] = -1;
        memcpy(here, in.before, sizeof here);
        for (int own = 0; own < 2; own++)
            RUN(conv, .x = x, .w = w, .start = start, .state_in = own ? here : in.before, .u = u,
                .state_out = own ? here : after, .B = 1, .L = n, .C = C, .K = K, .ldx = C);
        same(here, after, CONV_STATE, "convolution's state");
        memcpy(here, in.before, sizeof here);
        for (int own = 0; own < 2; own++)
            RUN(scan, .u = in.u, .dt = in.dt, .a_log = in.a, .d = in.d, .dt_bias = in.bias,
                .start = start, .state_in = own ? here : in.before, .y = y,
                .state_out = own ? here : after, .B = 1, .L = n, .H = H, .P = P, .G = G, .S = S,
                .Q = Q, .lddt = H, .dt_max = INFINITY);
        same(here, after, STATE, "scan's state");
    }
    free(x), free(w);
    free_scan_inputs(&in);
}

/* ---- states that wait for several tokens ---- */

/* Tokens one by one, the state written after every R of them, are a scan: `rows` rows at once,
 * which begin documents at different tokens. */
static void state_kept_back(void **state) {
    (void)state;
    enum { ROWS = 3, TOKENS = 21, Y = H * P, MOST = 8 };
    static const int begins[ROWS] = {-1, 5, 16}; /* documents, beside those before */
    double *u = random_reals(ROWS * TOKENS * WIDE, 1), *dt = random_reals(ROWS * TOKENS * H, 2),
           *a = random_reals(H, 3), *d = random_reals(H, 4), *bias = random_reals(H, 5),
           *before = random_reals(ROWS * STATE, 6);
    static double whole[ROWS * TOKENS * Y], y[ROWS * Y], after[TOKENS][ROWS * STATE];
    static double here[ROWS * STATE], recent[ROWS * (MOST * (Y + G * S) + (MOST + 1) * H)];
    int32_t starts[ROWS * TOKENS], start[ROWS];
    for (int n = 1; n <= TOKENS; n++) { /* the state after each token */
        double un[ROWS * TOKENS * WIDE], dtn[ROWS * TOKENS * H];
        for (int i = 0; i < ROWS * n; i++) {
            const int from = i / n * TOKENS + i % n, begun = begins[i / n];
            memcpy(un + i * WIDE, u + from * WIDE, WIDE * sizeof *un);
            memcpy(dtn + i * H, dt + from * H, H * sizeof *dtn);
            starts[i] = begun <= i % n ? begun : -1;
        }
        RUN(scan, .u = un, .dt = dtn, .a_log = a, .d = d, .dt_bias = bias, .start = starts,
            .state_in = before, .y = whole, .state_out = after[n - 1], .B = ROWS, .L = n, .H = H,
            .P = P, .G = G, .S = S, .Q = Q, .lddt = H, .dt_max = INFINITY);
    }
    for (int R = 1; R <= MOST; R += R < 3 ? 1 : 5) {
        memcpy(here, before, sizeof here);
        memset(recent, 0xff, sizeof recent); /* NaN: nothing of it is read before it is written */
        for (int t = 0; t < TOKENS; t++) {
            double now[ROWS * WIDE], dt_now[ROWS * H];
            const bool last = t % R == R - 1;
            for (int i = 0; i < ROWS; i++) {
                memcpy(now + i * WIDE, u + (i * TOKENS + t) * WIDE, WIDE * sizeof *now);
                memcpy(dt_now + i * H, dt + (i * TOKENS + t) * H, H * sizeof *dt_now);
                start[i] = (begins[i] <= t ? begins[i] : -1) - t;
                /* What lies before a document is not seen, whatever it is. */
                for (int j = 0; start[i] == 0 && j < STATE; j++) here[i * STATE + j] = NAN;
            }
            RUN(scan_next, .u = now, .dt = dt_now, .a_log = a, .d = d, .dt_bias = bias,
                .start = start, .state = here, .recent = recent, .y = y,
                .state_out = last ? here : NULL, .B = ROWS, .H = H, .P = P, .G = G, .S = S, .R = R,
                .n = t % R, .lddt = H, .dt_max = INFINITY);
            for (int i = 0; i < ROWS; i++)
                same(y + i * Y, whole + (i * TOKENS + t) * Y, Y, "y of a token alone");
            if (last) same(here, after[t], ROWS * STATE, "the state after several tokens");
        }
    }
    free(u), free(dt), free(a), free(d), free(bias), free(before);
}

/* Where a document begins, nothing before is seen, though weights, states and tokens are no
 * numbers: by the plain definition and by vectors. */
static void begins_clean(void **state) {
    (void)state;
    enum { R = 8, RECENT = R * (H * P + G * S) + (R + 1) * H };
    const int32_t start = 0;
    float u[WIDE], dt[H], a[H], d[H], bias[H], before[STATE], recent[RECENT], y[2][H * P];
    double wide_u[WIDE], wide_dt[H], wide[3][H], wide_before[STATE], wide_recent[RECENT],
        wide_y[2][H * P];
    for (int i = 0; i < WIDE; i++) u[i] = (float)(wide_u[i] = sin(i + 1));
    for (int i = 0; i < H; i++) {
        dt[i] = (float)(wide_dt[i] = cos(i));
        a[i] = d[i] = bias[i] = (float)(wide[0][i] = wide[1][i] = wide[2][i] = 0.25 * i);
    }
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < STATE; i++) before[i] = (float)(wide_before[i] = n ? NAN : 0);
        for (int i = 0; i < RECENT; i++) recent[i] = (float)(wide_recent[i] = n ? NAN : 0);
        DEVICE_RUN(&device, scan_next, F32, .u = u, .dt = dt, .a_log = a, .d = d, .dt_bias = bias,
                   .start = &start, .state = before, .recent = recent, .y = y[n], .B = 1, .H = H,
                   .P = P, .G = G, .S = S, .R = R, .n = n, .lddt = H, .dt_max = INFINITY);
        RUN(scan_next, .u = wide_u, .dt = wide_dt, .a_log = wide[0], .d = wide[1],
            .dt_bias = wide[2], .start = &start, .state = wide_before, .recent = wide_recent,
            .y = wide_y[n], .B = 1, .H = H, .P = P, .G = G, .S = S, .R = R, .n = n, .lddt = H,
            .dt_max = INFINITY);
    }
    for (int i = 0; i < H * P; i++) {
        assert_true(isfinite(wide_y[0][i]) && wide_y[0][i] != 0);
        assert_true(wide_y[1][i] == wide_y[0][i]);
        assert_true(y[1][i] == y[0][i]);
        assert_true(fabs((double)y[0][i] - wide_y[0][i]) <= 1e-5 * (1 + fabs(wide_y[0][i])));
    }
}

/* ---- documents ---- */

/* Each document in a row of its own: the cuts at the documents' starts, with nothing handed over.
 */
static void documents_apart(void **state) {
    (void)state;
    static const int first[] = {0, 3, 8, 9, L};
    struct scan_in in = scan_inputs();
    const struct attention_in ai = {random_reals(L * H * D, 1), random_reals(2 * L * G * D, 2),
                                    random_reals(2 * L * G * D, 3), random_reals(L * H * D, 4)};
    double *x = random_reals(L * C, 11), *w = random_reals(C * K, 12),
           *du = random_reals(L * C, 15);
    double nothing[STATE + CONV_STATE] = {0};
    static struct conv_run conv_whole, conv_parts;
    static struct scan_run scan_whole, scan_parts;
    static struct attention_run whole, parts;
    conv_part(&conv_whole, x, w, NULL, NULL, du, NULL, 0, L, 0);
    scan_part(&scan_whole, &in, NULL, NULL, 0, L, 0);
    attention_part(&whole, &ai, 0, L, 0);
    for (int i = 0; i < 4; i++) {
        const int from = first[i], n = first[i + 1] - from;
        conv_part(&conv_parts, x, w, NULL, nothing, du, nothing, from, n, i > 0);
        scan_part(&scan_parts, &in, nothing, nothing, from, n, i > 0);
        attention_part(&parts, &ai, from, n, 0);
    }
    same(conv_parts.u, conv_whole.u, L * C, "u");
    same(conv_parts.dx, conv_whole.dx, L * C, "dx");
    same(conv_parts.dw, conv_whole.dw, C * K, "dw");
    same(scan_parts.y, scan_whole.y, L * H * P, "y");
    same(scan_parts.du, scan_whole.du, L * WIDE, "du");
    same(scan_parts.ddt, scan_whole.ddt, L * H, "ddt");
    same(scan_parts.da, scan_whole.da, H, "da_log");
    same(parts.o, whole.o, L * H * D, "o");
    same(parts.dq, whole.dq, L * H * D, "dq");
    same(parts.dk, whole.dk, 2 * L * G * D, "dk");
    same(parts.dv, whole.dv, 2 * L * G * D, "dv");
    free_scan_inputs(&in);
    free(ai.q), free(ai.k), free(ai.v), free(ai.go), free(x), free(w), free(du);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv_cut),        cmocka_unit_test(scan_cut),
        cmocka_unit_test(state_kept_back), cmocka_unit_test(attention_cut),
        cmocka_unit_test(in_place),        cmocka_unit_test(begins_clean),
        cmocka_unit_test(documents_apart)};
    device_cpu(&device, 2, false);
    const int n = sizeof tests / sizeof *tests, failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d passed, %d failed\n", n - failed, failed);
    return failed != 0;
}
