/* Sequences on several ranks against the same sequences on one: each rank computes the whole ones
 * too, with the ordinary operations, and what it has of the pieces must be the rows that belong to
 * it, forward and back; gradients of weights after they are added up over the ranks.
 *
 *     mpirun -n N test_context_ranks [SEED]
 *
 * N ranks along context. Attention by ring and by heads; Mamba (halo, convolution, scan) by states
 * and by heads; in double, in float and in BF16; rows that are views; pieces of one token and of
 * many; documents that begin nowhere, everywhere, at the borders of pieces, beside them and
 * anywhere. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_segment.h"
#include "parallel/context_attention.h"
#include "parallel/context_heads.h"
#include "parallel/context_mamba.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

enum { K = 4, DIM = 5, STATE = 3, HEAD_DIM = 2, MOST_PARAMS = 5 };

static struct comm comm;
static struct parallel parallel;
static struct device device;
static struct arena work, scratch, weights;
static int failed;
static uint64_t state = 1;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static double number(uint64_t seed, int64_t i) {
    return (double)(int64_t)(mix(seed ^ mix((uint64_t)i)) >> 11) / 4503599627370496.0 - 1;
}

static int64_t below(int64_t n) {
    return (int64_t)(mix(state++) >> 1) % n;
}

static void promise(bool good, const char *what, const char *detail) {
    const bool bad = comm_max(comm.world, !good) != 0;
    failed += bad;
    if (!good) printf("FAIL %s: rank %d, %s\n", what, comm.rank, detail);
    else if (comm.rank == 0 && !bad) printf("ok %s\n", what);
    fflush(stdout);
}

/* ---------------------------------------------------------------- numbers on the device */

static void put(void *to, enum dtype d, int64_t n, const double *x) {
    dtype_convert(device_host(&device, to), d, x, F64, (size_t)n);
}

static double *get(const void *from, enum dtype d, int64_t n) {
    double *x = die_alloc((uint64_t)n * sizeof *x + 1);
    dtype_convert(x, F64, device_host(&device, from), d, (size_t)n);
    return x;
}

/* What is tried: `rows` sequences of `length` tokens, and their documents. */
struct trial {
    enum dtype stored;
    int64_t rows, length;
    int32_t *start;
    double bound;
    char name[128];
};

/* The tokens of the batch this rank has, as numbers of tokens of the sequences; all of them. */
struct tokens {
    struct batch batch;
    int64_t n, *of;
    bool whole;
};

static struct tokens tokens_of(const struct trial *x, struct tape *t, bool whole) {
    const int C = parallel.shape.context, held = whole ? 1 : context_held(C);
    const int64_t length = whole ? x->length : context_length(C, x->length), rows = x->rows * held;
    struct tokens k = {.n = rows * length, .whole = whole};
    int32_t *start = die_alloc((uint64_t)k.n * sizeof *start);
    struct layout l = {.state = {SPLIT, SPLIT, WHOLE}};
    k.of = die_alloc((uint64_t)k.n * sizeof *k.of);
    for (int64_t i = 0; i < k.n; i++) {
        const int64_t row = i / length;
        const int64_t first =
            whole ? 0 : context_piece(C, parallel.at.context, (int)(row % held)) * length;
        k.of[i] = row / held * x->length + first + i % length;
        start[i] = (int32_t)(x->start[k.of[i]] - first);
    }
    struct tensor *s = tensor_new_ints(t, "start", k.n, 1, &l);
    device_write(&device, s->data, start, (size_t)k.n * sizeof *start);
    k.batch = (struct batch){.rows = rows, .length = length, .start = s};
    free(start);
    return k;
}

/* Rows of an array of random numbers, of all tokens, that are these tokens'. Heads' segments: see
 * parts. */
static struct tensor *input(struct tape *t, const struct tokens *k, int64_t width, uint64_t seed,
                            double scale) {
    struct layout l = {.state = {SPLIT, SPLIT, WHOLE}};
    struct tensor *x = tensor_new(t, "input", k->n, width, &l);
    double *v = die_alloc((uint64_t)(k->n * width) * sizeof *v + 1);
    for (int64_t i = 0; i < k->n * width; i++)
        v[i] = scale * number(seed, k->of[i / width] * width + i % width);
    put(x->data, t->stored, k->n * width, v);
    free(v);
    x->needs_grad = true;
    return x;
}

static struct param param_new(enum dtype d, int64_t rows, int64_t width, uint64_t seed) {
    struct param p = {.name = "weight", .rows = rows, .width = width, .dtype = d, .trained = true};
    const int64_t n = rows * width;
    double *v = die_alloc((uint64_t)n * sizeof *v);
    arena_take(&weights, (size_t)n * dtype_size(d), "value", &p.value);
    arena_take(&weights, (size_t)n * dtype_size(d), "gradient", &p.grad);
    for (int64_t i = 0; i < n; i++) v[i] = number(seed, i);
    put(p.value, d, n, v);
    device_zero(&device, p.grad, (size_t)n * dtype_size(d));
    free(v);
    return p;
}

/* ---------------------------------------------------------------- what is computed */

enum way { PLAIN, PASSING, BY_HEADS };

/* A function of x[tokens, width] and weights, on whole sequences or on pieces. */
struct subject {
    const char *name;
    int64_t heads, groups, width, result;
    struct tensor *(*run)(struct tape *t, const struct subject *s, const struct tokens *k,
                          enum way way, const struct batch *all, struct tensor *x, struct param *p);
    int n_params;
    int64_t rows[MOST_PARAMS], columns[MOST_PARAMS];
};

static struct tensor *run_attention(struct tape *t, const struct subject *s, const struct tokens *k,
                                    enum way way, const struct batch *all, struct tensor *x,
                                    struct param *p) {
    const int64_t q = s->heads * DIM, kv = s->groups * DIM;
    const int C = parallel.shape.context;
    const struct heads_segment part[] = {{q, s->heads}, {kv, s->groups}, {kv, s->groups}};
    struct tensor *v[3], *y = way == BY_HEADS ? context_to_heads(t, &k->batch, x, 3, part) : x;
    int64_t width[3];
    (void)p;
    for (int i = 0; i < 3; i++)
        width[i] = way == BY_HEADS ? heads_width(C, 1, &part[i]) : part[i].width;
    tensor_columns(t, y, 3, width, v);
    if (way == PLAIN) return attention(t, &k->batch, v[0], v[1], v[2], DIM, NULL, NULL);
    if (way == PASSING) return context_attention(t, &k->batch, v[0], v[1], v[2], DIM, NULL);
    return context_from_heads(t, &k->batch, attention(t, all, v[0], v[1], v[2], DIM, NULL, NULL));
}

/* x | B | C | dt: convolution and scan. */
static struct tensor *run_mamba(struct tape *t, const struct subject *s, const struct tokens *k,
                                enum way way, const struct batch *all, struct tensor *x,
                                struct param *p) {
    const int64_t inner = s->heads * HEAD_DIM, bc = s->groups * STATE;
    const int C = parallel.shape.context;
    struct scan_shape shape = {s->heads, HEAD_DIM, s->groups, STATE, 7, 0, INFINITY};
    const struct heads_segment part[] = {
        {inner, s->heads}, {bc, s->groups}, {bc, s->groups}, {s->heads, s->heads}};
    struct tensor *v[2], *u, *w[5];
    if (way == BY_HEADS) {
        struct tensor *y = context_to_heads(t, &k->batch, x, 4, part);
        shape.heads = heads_width(C, 1, &part[3]);
        shape.groups = heads_width(C, 1, &part[1]) / STATE;
        tensor_columns(t, y, 2, (int64_t[]){heads_width(C, 3, part), shape.heads}, v);
        for (int i = 0; i < 5; i++)
            w[i] = context_heads_weight(t, &p[i], v[0], i < 2 ? 3 : 1, i < 2 ? part : part + 3);
        u = conv_with(t, all, v[0], w[0], w[1], NULL, NULL);
        return context_from_heads(t, &k->batch,
                                  scan(t, all, &shape, u, v[1], w[2], w[3], w[4], NULL, NULL));
    }
    tensor_columns(t, x, 2, (int64_t[]){inner + 2 * bc, s->heads}, v);
    struct tensor *halo = way == PASSING ? context_halo(t, &k->batch, v[0], K - 1, NULL) : NULL;
    u = conv(t, &k->batch, v[0], &p[0], &p[1], halo, NULL);
    if (way == PASSING)
        return context_scan(t, &k->batch, &shape, u, v[1], &p[2], &p[3], &p[4], NULL);
    for (int i = 2; i < 5; i++) w[i] = tape_use_real(t, &p[i], u);
    return scan(t, &k->batch, &shape, u, v[1], w[2], w[3], w[4], NULL, NULL);
}

/* The layer as a segment, which is computed again in backward. */
struct replayed {
    const struct subject *s;
    const struct tokens *k;
    const struct batch *all;
    enum way way;
    struct param *p;
};

static struct tensor *replay(struct tape *t, void *context, struct tensor *x) {
    const struct replayed *r = context;
    struct tensor *y = relu2(t, x); /* what is made inside may be split into views */
    return r->s->run(t, r->s, r->k, r->way, r->all, y, r->p);
}

struct results {
    double *y, *dx, *dp[MOST_PARAMS];
    int64_t *of, n; /* tokens */
};

static struct results compute(const struct trial *x, const struct subject *s, enum way way,
                              bool again) {
    struct tape tape, *t = &tape;
    struct param p[MOST_PARAMS];
    struct results r = {0};
    tape_init(t, &device, &work, &scratch, x->stored, &parallel);
    for (int i = 0; i < s->n_params; i++)
        p[i] = param_new(t->real, s->rows[i], s->columns[i], 100 + (uint64_t)i);
    struct tokens k = tokens_of(x, t, way == PLAIN), all = tokens_of(x, t, true);
    struct replayed inside = {s, &k, &all.batch, way, p};
    struct tensor *in = input(t, &k, s->width, 7, 1.5);
    struct tensor *y = again ? tape_segment(t, replay, &inside, in) : replay(t, &inside, in);
    r.n = k.n;
    r.of = k.of;
    r.y = get(y->data, y->dtype, k.n * s->result);
    struct tensor *given = input(t, &k, s->result, 8, 1);
    tape_backward_given(t, y, given, again ? MASK_ALL : MASK_INPUT);
    tape_backward_weights(t);
    r.dx = get(in->grad, in->dtype, k.n * s->width);
    for (int i = 0; i < s->n_params; i++) {
        if (way != PLAIN) sum_over(t, context_group(t), p[i].grad, p[i].rows * p[i].width, t->real);
        r.dp[i] = get(p[i].grad, t->real, p[i].rows * p[i].width);
    }
    free(all.of);
    tape_free(t);
    arena_check_empty(&work);
    arena_check_empty(&scratch);
    arena_free_all(&weights);
    arena_init(&weights, "weights", &device);
    return r;
}

static void results_free(struct results *r) {
    free(r->y);
    free(r->dx);
    free(r->of);
    for (int i = 0; i < MOST_PARAMS; i++) free(r->dp[i]);
}

/* The largest difference, in the largest number. NULL as `of`: row by row. */
static double difference(const double *found, const double *want, const int64_t *of, int64_t n,
                         int64_t all, int64_t width) {
    double most = 0, largest = 1e-30;
    for (int64_t i = 0; i < all * width; i++) largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n * width; i++) {
        const double d =
            fabs(found[i] - want[(of ? of[i / width] : i / width) * width + i % width]);
        most = d <= most ? most : isfinite(d) ? d : INFINITY;
    }
    return most / largest;
}

static void try_subject(const struct trial *x, const struct subject *s) {
    static const char *const ways[] = {"plain", "passing", "heads"};
    const int C = parallel.shape.context;
    const int64_t all = x->rows * x->length;
    struct results want = compute(x, s, PLAIN, false);
    for (int i = 0; i < 4; i++) {
        const enum way way = i < 2 ? PASSING : BY_HEADS;
        const bool again = i % 2;
        char name[256], detail[256] = "";
        if (C == 1 && way != BY_HEADS) continue; /* layers take the plain way then */
        if (way == BY_HEADS && (s->heads % C || (s->groups % C && C % s->groups))) continue;
        struct results found = compute(x, s, way, again);
        snprintf(name, sizeof name, "%s %s%s, %s", s->name, ways[way], again ? " replayed" : "",
                 x->name);
        double worst = difference(found.y, want.y, found.of, found.n, all, s->result), e;
        snprintf(detail, sizeof detail, "result %.3g", worst);
        e = difference(found.dx, want.dx, found.of, found.n, all, s->width);
        snprintf(detail + strlen(detail), 64, ", gradient %.3g", e);
        worst = fmax(worst, e);
        for (int p = 0; p < s->n_params; p++) {
            e = difference(found.dp[p], want.dp[p], NULL, s->rows[p], s->rows[p], s->columns[p]);
            snprintf(detail + strlen(detail), 32, ", weight %d %.3g", p, e);
            worst = fmax(worst, e);
        }
        promise(worst <= x->bound, name, detail);
        results_free(&found);
    }
    results_free(&want);
}

/* ---------------------------------------------------------------- documents */

enum { ONE, EACH_TOKEN, AT_BORDERS, BESIDE_BORDERS, ANYWHERE, LAST_TOKEN, N_KINDS };
static const char *const kinds[] = {"one document",         "a document a token",
                                    "documents at borders", "documents beside borders",
                                    "documents anywhere",   "a last token alone"};

static void make_starts(struct trial *x, int kind) {
    const int64_t piece = x->length / context_pieces(parallel.shape.context);
    x->start = die_alloc((uint64_t)(x->rows * x->length) * sizeof *x->start);
    for (int64_t i = 0; i < x->rows * x->length; i++) {
        const int64_t t = i % x->length;
        const bool first = t == 0 || kind == EACH_TOKEN || (kind == AT_BORDERS && t % piece == 0) ||
                           (kind == BESIDE_BORDERS && (t % piece == 1 || t % piece == piece - 1)) ||
                           (kind == ANYWHERE && below(6) == 0) ||
                           (kind == LAST_TOKEN && t == x->length - 1);
        x->start[i] = first ? (int32_t)t : x->start[i - 1];
    }
}

int main(int argc, char **argv) {
    struct mistakes *none = NULL;
    if (comm_init(&comm, none)) return 2;
    if (argc > 1) state = strtoull(argv[1], NULL, 10);
    const struct mesh_shape shape = {1, 1, comm.size, 1, comm.size, 1, 1};
    device_cpu(&device, 2, true);
    arena_init(&work, "work", &device);
    arena_init(&scratch, "scratch", &device);
    arena_init(&weights, "weights", &device);
    parallel_init(&parallel, &comm, &shape, false, 0, NULL);
    const int C = shape.context;
    const struct subject subjects[] = {
        {"attention", 2 * C, C, 4 * C * DIM, 2 * C * DIM, run_attention, 0, {0}, {0}},
        {"attention of one key head",
         3 * C,
         1,
         (3 * C + 2) * DIM,
         3 * C * DIM,
         run_attention,
         0,
         {0},
         {0}},
        {"Mamba",
         2 * C,
         C,
         2 * C * (HEAD_DIM + 1) + 2 * C * STATE,
         2 * C * HEAD_DIM,
         run_mamba,
         5,
         {2 * C * (HEAD_DIM + STATE), 2 * C * (HEAD_DIM + STATE), 2 * C, 2 * C, 2 * C},
         {K, 1, 1, 1, 1}},
        {"Mamba of one group",
         C,
         1,
         C * (HEAD_DIM + 1) + 2 * STATE,
         C * HEAD_DIM,
         run_mamba,
         5,
         {C * HEAD_DIM + 2 * STATE, C * HEAD_DIM + 2 * STATE, C, C, C},
         {K, 1, 1, 1, 1}},
    };
    static const struct {
        enum dtype d;
        double bound;
    } formats[] = {{F64, 1e-11}, {F32, 3e-5}, {BF16, 0.06}};
    static const int64_t lengths[] = {1, 2, 5, 33};
    for (int f = 0; f < 3; f++)
        for (int i = 0; i < 4; i++)
            for (int kind = 0; kind < N_KINDS; kind++) {
                const int64_t rows = 1 + (f + i + kind) % 2;
                /* all of them as exact numbers, and on few ranks; else some */
                if (f > 0 ? (i + kind) % 3 : C > 3 && (i * N_KINDS + kind) % 5 != C % 5) continue;
                if (f > 0 && C > 3 && i != 1) continue;
                struct trial x = {.stored = formats[f].d,
                                  .rows = rows,
                                  .length = lengths[i] * context_pieces(C),
                                  .bound = formats[f].bound};
                make_starts(&x, kind);
                snprintf(x.name, sizeof x.name, "%s, %ld x %ld tokens, %s", dtype_name(x.stored),
                         (long)rows, (long)x.length, kinds[kind]);
                for (int s = 0; s < 4; s++) try_subject(&x, &subjects[s]);
                free(x.start);
            }
    arena_free_all(&work);
    arena_free_all(&scratch);
    arena_free_all(&weights);
    parallel_free(&parallel);
    const bool speaks = comm.rank == 0;
    comm_end(&comm);
    if (speaks && failed) printf("%d failed\n", failed);
    return failed != 0;
}
