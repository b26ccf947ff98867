/* Every operation of comm.h on the world and on all groups of several meshes, against sums computed
 * here, bit for bit; and the same on `dry`, which must count the same bytes and ask for the same
 * scratch.
 *
 *     mpirun -n N test_comm          N may be 1 and may exceed the cores
 *     mpirun -n N test_comm time     what the operations cost
 *     mpirun -n N test_comm die      the last rank dies; all must end, with code 1
 *     mpirun -n N test_comm hang     all sleep; to kill the launcher under them */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "parallel/mesh.h"
#include "parallel/transport.h"

enum { MOST = 6000, GUARD = 64 };

static struct comm comm, dry;
static int failed, checks;
static const char *part;

static void check(bool good, const char *what, const struct group *g, int64_t n) {
    checks++;
    if (good) return;
    if (failed++ < 5)
        printf("FAIL %s: %s, rank %d, group %s of %d, n %lld\n", part, what, comm.rank, g->name,
               g->size, (long long)n);
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* What world rank `rank` contributes at place i: magnitudes far apart, so that the order of a sum
 * shows. */
static double value(int rank, int64_t i) {
    uint64_t u = mix((uint64_t)rank << 40 ^ (uint64_t)i);
    return ldexp((double)(int64_t)(u >> 11) - 4.5e15, (int)(u % 30) - 60);
}

static void put(void *to, int64_t at, enum dtype d, int rank, int64_t i) {
    if (d == F32) ((float *)to)[at] = (float)value(rank, i);
    else if (d == F64) ((double *)to)[at] = value(rank, i);
    else if (d == BF16) dtype_convert((uint16_t *)to + at, BF16, &(double){value(rank, i)}, F64, 1);
    else if (d == I32) ((int32_t *)to)[at] = (int32_t)mix((uint64_t)(rank * 7919 + i));
    else ((int64_t *)to)[at] = (int64_t)mix((uint64_t)(rank * 7919 + i));
}

static void fill(void *to, enum dtype d, int rank, int64_t n) {
    for (int64_t i = 0; i < n; i++) put(to, i, d, rank, i);
}

/* BF16: the same in float, rounded at the end. */
static void expected_low_sum(uint16_t *to, const struct group *g, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int r = 0; r < g->size; r++) {
            uint16_t low;
            float one;
            put(&low, 0, BF16, g->members[r], i);
            dtype_convert(&one, F32, &low, BF16, 1);
            sum = r == 0 ? one : sum + one;
        }
        dtype_convert(&to[i], BF16, &sum, F32, 1);
    }
}

/* The definition: member 0's value, then the others' in order. */
static void expected_sum(void *to, enum dtype d, const struct group *g, int64_t n) {
    char one[8] = {0};
    if (d == BF16) {
        expected_low_sum(to, g, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        for (int r = 0; r < g->size; r++) {
            if (r == 0) {
                put(to, i, d, g->members[0], i);
                continue;
            }
            put(one, 0, d, g->members[r], i);
            if (d == F32) ((float *)to)[i] += *(float *)one;
            else if (d == F64) ((double *)to)[i] += *(double *)one;
            else if (d == I32) ((uint32_t *)to)[i] += *(uint32_t *)one;
            else ((uint64_t *)to)[i] += *(uint64_t *)one;
        }
}

/* A buffer whose bytes behind the end must stay. */
static char *guarded(size_t bytes) {
    char *p = die_alloc(bytes + GUARD);
    memset(p + bytes, 0x5a, GUARD);
    return p;
}

static bool free_guarded(char *p, size_t bytes) {
    bool whole = true;
    for (int i = 0; i < GUARD; i++) whole = whole && p[bytes + (size_t)i] == 0x5a;
    free(p);
    return whole;
}

static void check_traffic(const char *what, const struct group *g, const struct group *d,
                          int64_t n) {
    check(g->bytes_sent == d->bytes_sent, what, g, n);
    check(g->calls == d->calls, "calls as on dry", g, n);
}

static void test_sum(struct group *g, struct group *dg, enum dtype d, int64_t n) {
    size_t bytes = (size_t)n * dtype_size(d), room = comm_sum_scratch(g, n, d);
    char *buf = guarded(bytes), *want = guarded(bytes), *scratch = guarded(room);
    struct request r;
    fill(buf, d, comm.rank, n);
    expected_sum(want, d, g, n);
    comm_sum_start(g, buf, n, d, scratch, &r);
    comm_wait(&r);
    check(memcmp(buf, want, bytes) == 0, "sum", g, n);
    check(r.state == NULL, "request is over", g, n);
    check(room == comm_sum_scratch(dg, n, d), "scratch of sum as on dry", g, n);
    comm_sum_start(dg, NULL, n, d, NULL, &r);
    comm_wait(&r);
    check_traffic("bytes of sum as on dry", g, dg, n);
    check(free_guarded(buf, bytes) & free_guarded(want, bytes) & free_guarded(scratch, room),
          "guards", g, n);
}

/* Counts that need not be alike, some of them zero; shape chooses how. */
static int64_t uneven(int64_t *counts, int size, int64_t n, int shape) {
    int64_t sum = 0;
    for (int i = 0; i < size; i++) {
        if (shape == 0) counts[i] = n;
        else if (shape == 1) counts[i] = part_begin(n, size, i + 1, 1) - part_begin(n, size, i, 1);
        else
            counts[i] = i % 3 == 1 ? 0 : (int64_t)(mix((uint64_t)(i * 31 + n)) % (uint64_t)(n + 1));
        sum += counts[i];
    }
    return sum;
}

static int64_t sum_before(const int64_t *counts, int i) {
    int64_t sum = 0;
    while (i-- > 0) sum += counts[i];
    return sum;
}

static void test_sum_scatter(struct group *g, struct group *dg, enum dtype d, int64_t n, int shape,
                             bool in_place) {
    int64_t *counts = die_alloc((size_t)g->size * sizeof *counts),
            all = uneven(counts, g->size, n, shape);
    int64_t before = sum_before(counts, g->rank);
    size_t e = dtype_size(d), bytes = (size_t)all * e, own = (size_t)counts[g->rank] * e;
    size_t room = comm_sum_scatter_scratch(g, counts, d);
    char *send = guarded(bytes), *want = guarded(bytes), *recv = guarded(own),
         *scratch = guarded(room);
    char *at = in_place ? send + (size_t)before * e : recv;
    struct request r;
    fill(send, d, comm.rank, all);
    expected_sum(want, d, g, all);
    comm_sum_scatter_start(g, send, at, counts, d, scratch, &r);
    comm_wait(&r);
    check(memcmp(at, want + (size_t)before * e, own) == 0, "sum_scatter", g, n);
    check(room == comm_sum_scatter_scratch(dg, counts, d), "scratch of sum_scatter as on dry", g,
          n);
    comm_sum_scatter_start(dg, NULL, NULL, counts, d, NULL, &r);
    comm_wait(&r);
    check_traffic("bytes of sum_scatter as on dry", g, dg, n);
    check(free_guarded(send, bytes) & free_guarded(want, bytes) & free_guarded(recv, own) &
              free_guarded(scratch, room),
          "guards", g, n);
    free(counts);
}

static void test_gather(struct group *g, struct group *dg, int64_t n, int shape, bool in_place) {
    int64_t *counts = die_alloc((size_t)g->size * sizeof *counts),
            all = uneven(counts, g->size, n, shape);
    int64_t before = sum_before(counts, g->rank), own = counts[g->rank];
    size_t bytes = (size_t)all * sizeof(double);
    double *recv = (double *)guarded(bytes),
           *send = (double *)guarded((size_t)own * sizeof(double));
    struct request r;
    fill(in_place ? recv + before : send, F64, comm.rank, own);
    comm_gather_start(g, in_place ? recv + before : send, recv, counts, sizeof(double), &r);
    comm_wait(&r);
    bool good = true;
    const double *at = recv;
    for (int m = 0; m < g->size; m++)
        for (int64_t i = 0; i < counts[m]; i++) good = good && *at++ == value(g->members[m], i);
    check(good, "gather", g, n);
    comm_gather_start(dg, NULL, NULL, counts, sizeof(double), &r);
    comm_wait(&r);
    check_traffic("bytes of gather as on dry", g, dg, n);
    check(free_guarded((char *)recv, bytes) &
              free_guarded((char *)send, (size_t)own * sizeof(double)),
          "guards", g, n);
    free(counts);
}

/* Bytes that member `from` sends to member `to`. */
static int64_t traffic(int from, int to, int64_t n, int shape) {
    if (shape == 0) return n;
    if (shape == 1) return from == 0 ? n : 0;
    return (from + to) % 3 == 0 ? 0
                                : (int64_t)(mix((uint64_t)(from * 131 + to)) % (uint64_t)(n + 1));
}

static void test_exchange(struct group *g, struct group *dg, int64_t n, int shape) {
    int64_t *out = die_alloc((size_t)g->size * sizeof *out),
            *in = die_alloc((size_t)g->size * sizeof *in);
    for (int i = 0; i < g->size; i++) {
        out[i] = traffic(g->rank, i, n, shape);
        in[i] = traffic(i, g->rank, n, shape);
    }
    size_t all_out = (size_t)sum_before(out, g->size), all_in = (size_t)sum_before(in, g->size),
           at = 0;
    char *send = guarded(all_out), *recv = guarded(all_in);
    struct request r;
    for (int to = 0; to < g->size; to++)
        for (int64_t i = 0; i < out[to]; i++)
            send[at++] = (char)mix((uint64_t)(g->rank * 977 + to * 31 + i));
    comm_exchange_start(g, send, out, recv, in, &r);
    comm_wait(&r);
    bool good = true;
    at = 0;
    for (int from = 0; from < g->size; from++)
        for (int64_t i = 0; i < in[from]; i++)
            good = good && recv[at++] == (char)mix((uint64_t)(from * 977 + g->rank * 31 + i));
    check(good, "exchange", g, n);
    comm_exchange_start(dg, NULL, out, NULL, in, &r);
    comm_wait(&r);
    check_traffic("bytes of exchange as on dry", g, dg, n);
    check(free_guarded(send, all_out) & free_guarded(recv, all_in), "guards", g, n);
    free(out);
    free(in);
}

/* Messages of all sizes under way together, waited for out of order; each is the one that was sent
 * as many before it. */
static void test_pass(struct group *g, struct group *dg) {
    enum { N = 40 };
    static const int64_t sizes[] = {0, 1, 17, 4096, 300000};
    struct request r[N], dry_r;
    char *buf[N];
    bool good = true;
    if (g->size != 2) return;
    for (int k = 0; k < N; k++) {
        int64_t n = sizes[k % 5];
        buf[k] = guarded((size_t)n);
        for (int64_t i = 0; i < n; i++)
            buf[k][i] = g->rank ? 0 : (char)mix((uint64_t)(k * 7919 + i));
        comm_pass_start(g, buf[k], (size_t)n, &r[k]);
        comm_pass_start(dg, NULL, (size_t)n, &dry_r);
        comm_wait(&dry_r);
        if (k % 3 == 0) comm_progress(&comm);
    }
    for (int k = 0; k < N; k++) {
        int at = (k * 7 + 3) % N; /* 7 and N have no common divisor */
        comm_wait(&r[at]);
        for (int64_t i = 0; i < sizes[at % 5]; i++)
            good = good && buf[at][i] == (char)mix((uint64_t)(at * 7919 + i));
        good = free_guarded(buf[at], (size_t)sizes[at % 5]) && good;
    }
    check(good, "messages of a pair", g, N);
    check_traffic("bytes of messages as on dry", g, dg, N);
}

static void test_small(struct group *g, struct group *dg) {
    int64_t largest = INT64_MIN;
    for (int i = 0; i < g->size; i++) {
        int64_t v = (int64_t)mix((uint64_t)g->members[i]);
        if (v > largest) largest = v;
    }
    check(comm_max(g, (int64_t)mix((uint64_t)comm.rank)) == largest, "max", g, 0);
    comm_max(dg, 0);
    check_traffic("bytes of max as on dry", g, dg, 0);
    comm_barrier(g);
    comm_barrier(dg);
    check_traffic("bytes of barrier as on dry", g, dg, 0);
    static const size_t sizes[] = {0, 1, 1000};
    for (int root = 0; root < g->size; root++)
        for (int k = 0; k < 3; k++) {
            char *buf = guarded(sizes[k]), *want = guarded(sizes[k]);
            for (size_t i = 0; i < sizes[k]; i++) want[i] = (char)mix(i + (size_t)root * 57);
            if (g->rank == root) memcpy(buf, want, sizes[k]);
            comm_broadcast(g, buf, sizes[k], root);
            check(memcmp(buf, want, sizes[k]) == 0, "broadcast", g, (int64_t)sizes[k]);
            comm_broadcast(dg, NULL, sizes[k], root);
            check_traffic("bytes of broadcast as on dry", g, dg, (int64_t)sizes[k]);
            check(free_guarded(buf, sizes[k]) & free_guarded(want, sizes[k]), "guards", g,
                  (int64_t)sizes[k]);
        }
    struct exact sum = {0}, all = {0};
    for (int i = 0; i < 50; i++) exact_add(&sum, value(comm.rank, i));
    for (int m = g->size - 1; m >= 0; m--)
        for (int i = 0; i < 50; i++) exact_add(&all, value(g->members[m], i));
    comm_sum_exact(g, &sum);
    double a = exact_value(&sum), b = exact_value(&all);
    check(memcmp(&a, &b, sizeof a) == 0, "sum_exact", g, 50);
}

/* Several operations of two groups at once, waited for in an order that differs from rank to rank;
 * more of them than a group has tags. */
static void test_overlap(struct group *a, struct group *b) {
    enum { OPS = 150, N = 40 };
    static double buf[OPS][N];
    struct request r[OPS];
    char *scratch[OPS];
    for (int k = 0; k < OPS; k++) {
        struct group *g = k % 3 == 2 ? b : a;
        fill(buf[k], F64, comm.rank + 100 * k, N);
        scratch[k] = die_alloc(comm_sum_scratch(g, N, F64));
        comm_sum_start(g, buf[k], N, F64, scratch[k], &r[k]);
    }
    for (int k = 0; k < OPS; k++) comm_wait(&r[(k * 7 + comm.rank * 11) % OPS]);
    for (int k = 0; k < OPS; k++) {
        struct group *g = k % 3 == 2 ? b : a;
        bool good = true;
        for (int i = 0; i < N; i++) {
            double want = value(g->members[0] + 100 * k, i);
            for (int m = 1; m < g->size; m++) want += value(g->members[m] + 100 * k, i);
            good = good && want == buf[k][i];
        }
        check(good, "operations that overlap", g, k);
        free(scratch[k]);
    }
}

static void test_group(struct group *g, struct group *dg, bool all_types) {
    static const int64_t sizes[] = {0, 1, 2, 17, 255, 1024, MOST};
    for (int k = 0; k < 7; k++) {
        int64_t n = sizes[k];
        test_sum(g, dg, F32, n);
        test_sum(g, dg, I64, n);
        test_sum(g, dg, BF16, n);
        if (all_types) {
            test_sum(g, dg, F64, n);
            test_sum(g, dg, I32, n);
        }
        for (int shape = 0; shape < 3; shape++) {
            int64_t each = shape == 1 ? n : n / 4;
            test_sum_scatter(g, dg, k % 2 ? F64 : F32, each, shape, shape == 2);
            test_sum_scatter(g, dg, BF16, each, shape, shape == 2);
            test_gather(g, dg, each, shape, k % 2);
            test_exchange(g, dg, each, shape);
        }
    }
    test_pass(g, dg);
    test_small(g, dg);
}

static void test_members(const char *name, int n, const int *members, bool all_types) {
    struct group *g = group_new(&comm, name, n, members), *dg = group_new(&dry, name, n, members);
    check(g->size == n && g->members[g->rank] == comm.rank, "group", g, n);
    test_group(g, dg, all_types);
    group_free(g);
    group_free(dg);
}

static void test_mesh(struct mesh_shape s) {
    int *members = die_alloc((size_t)comm.size * sizeof *members);
    for (int axis = 0; axis < MESH_AXES; axis++) {
        int n = mesh_members(&s, comm.rank, axis, members);
        test_members(mesh_axis_name(axis), n, members, false);
        if (n % 2 == 0 && n > 2)
            test_members("share", mesh_share_members(&s, comm.rank, axis, 2, members), members,
                         false);
    }
    test_members("replicas", mesh_replica_members(&s, comm.rank, members), members, false);
    struct group *a =
        group_new(&comm, "a", mesh_members(&s, comm.rank, MESH_TENSOR, members), members);
    struct group *b =
        group_new(&comm, "b", mesh_members(&s, comm.rank, MESH_DATA, members), members);
    test_overlap(a, b);
    group_free(a);
    group_free(b);
    free(members);
}

static void limits(const char *name, size_t message, size_t slice, size_t small) {
    part = name;
    transport_message_limit = message;
    transport_slice_bytes = slice;
    transport_small_bytes = small;
}

static void test_all(void) {
    int n = comm.size, *backwards = die_alloc((size_t)n * sizeof *backwards);
    for (int i = 0; i < n; i++) backwards[i] = n - 1 - i;
    struct {
        const char *name;
        size_t message, slice, small;
    } settings[] = {
        {"as it is", 1 << 30, 8 << 20, 64 << 10},
        {"cut messages, large path", 100, 8 << 20, 0},
        {"slices", 1 << 30, 2000, 0},
        {"small path", 1 << 30, 8 << 20, 1 << 30},
    };
    for (int k = 0; k < 4; k++) {
        limits(settings[k].name, settings[k].message, settings[k].slice, settings[k].small);
        test_members("backwards", n, backwards, true);
        test_overlap(comm.world, comm.world);
    }
    free(backwards);
    /* All meshes of few ranks; of many, those whose axes are alike. */
    for (int tensor = 1; tensor <= n; tensor++)
        for (int data = 1; n % tensor == 0 && data <= n / tensor; data++) {
            if (n / tensor % data || (n > 8 && tensor != 4)) continue;
            int rest = n / tensor / data;
            struct mesh_shape s = {
                .pipeline = rest % 2 ? rest : rest / 2, .data = data, .tensor = tensor};
            s.context = rest / s.pipeline;
            s.expert = data;
            struct mistakes m = {0};
            if (mesh_complete(&s, n, &m)) die("%s", m.text[0]);
            limits("mesh, as it is", 1 << 30, 8 << 20, 64 << 10);
            test_mesh(s);
            limits("mesh, slices", 1 << 30, 5000, 0);
            test_mesh(s);
        }
}

/* What the traces of launchers in the environment are taken for. */
static void test_launch(void) {
    static const struct {
        const char *variables[8];
        int size, rank;
    } cases[] = {
        {{NULL}, 1, 0},
        {{"PMI_RANK", "3", "PMI_SIZE", "8"}, 8, 3},
        {{"PMI_RANK", "0", "PMI_SIZE", "1"}, 1, 0},
        {{"OMPI_COMM_WORLD_SIZE", "4", "OMPI_COMM_WORLD_RANK", "1", "PMIX_RANK", "1"}, 4, 1},
        {{"PMIX_RANK", "2"}, 0, 2},
        {{"SLURM_PROCID", "0", "SLURM_NTASKS", "16"}, 1, 0}, /* a batch script */
        {{"SLURM_PROCID", "5", "SLURM_NTASKS", "16", "SLURM_STEP_NUM_TASKS", "16"}, 16, 5},
        {{"SLURM_PROCID", "1", "SLURM_STEP_NUM_TASKS", "2", "PMI_RANK", "7", "PMI_SIZE", "8"},
         8,
         7},
        {{"PMI_RANK", "x", "PMI_SIZE", "8"}, 1, 0},
    };
    part = "launch";
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        clearenv();
        for (int i = 0; i < 8 && cases[k].variables[i]; i += 2)
            setenv(cases[k].variables[i], cases[k].variables[i + 1], 1);
        struct launch l;
        launch_find(&l);
        struct group none = {.name = "none"};
        check(l.size == cases[k].size && l.rank == cases[k].rank, "launch_find", &none, (int64_t)k);
        check((l.by != NULL) ==
                  (cases[k].variables[0] && cases[k].variables[1][0] != 'x' && k != 5),
              "launcher", &none, (int64_t)k);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void time_all(double started) {
    struct group *w = comm.world;
    static const int64_t sizes[] = {1, 1024, 262144, 4 << 20};
    if (comm.rank == 0)
        printf("n=%d cores=%d yield=%d start %.0f ms\n", comm.size, comm.host_cores, comm.yield,
               1e3 * (now() - started));
    double t = now();
    int reps = 50;
    for (int i = 0; i < reps; i++) comm_barrier(w);
    if (comm.rank == 0) printf("barrier %.1f us\n", 1e6 * (now() - t) / reps);
    t = now();
    int *members = die_alloc((size_t)comm.size * sizeof *members);
    for (int i = 0; i < comm.size; i++) members[i] = i;
    struct group *g = group_new(&comm, "new", comm.size, members);
    if (comm.rank == 0) printf("group_new %.1f us\n", 1e6 * (now() - t));
    group_free(g);
    free(members);
    for (int k = 0; k < (comm.size > 16 ? 3 : 4); k++) {
        int64_t n = sizes[k];
        float *x = die_alloc((size_t)n * sizeof *x);
        void *scratch = die_alloc(comm_sum_scratch(w, n, F32));
        double best = 1e9, all = 0;
        reps = n > 100000 ? 10 : 50;
        for (int i = 0; i < reps; i++) {
            struct request r;
            t = now();
            comm_sum_start(w, x, n, F32, scratch, &r);
            comm_wait(&r);
            t = now() - t;
            all += t;
            if (t < best) best = t;
        }
        if (comm.rank == 0)
            printf("sum of %lld floats: mean %.1f us, best %.1f us\n", (long long)n,
                   1e6 * all / reps, 1e6 * best);
        free(x);
        free(scratch);
    }
    int64_t *bytes = die_alloc((size_t)comm.size * sizeof *bytes);
    for (int i = 0; i < comm.size; i++) bytes[i] = 256;
    char *send = die_alloc(256ul * (size_t)comm.size), *recv = die_alloc(256ul * (size_t)comm.size);
    t = now();
    reps = 20;
    for (int i = 0; i < reps; i++) {
        struct request r;
        comm_exchange_start(w, send, bytes, recv, bytes, &r);
        comm_wait(&r);
    }
    if (comm.rank == 0) printf("exchange of 256 bytes each: %.1f us\n", 1e6 * (now() - t) / reps);
    free(bytes);
    free(send);
    free(recv);
}

int main(int argc, char **argv) {
    double started = now();
    struct mistakes m = {0};
    if (comm_init(&comm, &m)) {
        if (comm.rank == 0) mistakes_print(&m, stderr);
        mistakes_free(&m);
        comm_end(&comm);
        return 2;
    }
    const char *mode = argc > 1 ? argv[1] : "test";
    if (strcmp(mode, "die") == 0 && comm.rank == comm.size - 1) die("as it was told");
    if (strcmp(mode, "die") == 0 || strcmp(mode, "hang") == 0) {
        if (comm.rank == 0) puts("waiting"), fflush(stdout);
        for (int i = 0; i < 60; i++) sleep(1);
        return 0;
    }
    if (strcmp(mode, "time") == 0) {
        time_all(started);
        double t = now();
        int rank = comm.rank;
        comm_end(&comm);
        if (rank == 0) printf("end %.1f ms\n", 1e3 * (now() - t));
        return 0;
    }
    comm_init_dry(&dry, comm.size, comm.rank);
    test_all();
    part = "end";
    int64_t all_failed = comm_max(comm.world, failed);
    int size = comm.size, rank = comm.rank;
    comm_end(&dry);
    comm_end(&comm);
    failed = 0;
    test_launch();
    if (failed) all_failed = 1;
    if (rank == 0 && !all_failed) printf("ok comm on %d ranks, %d checks a rank\n", size, checks);
    return all_failed ? 1 : 0;
}
