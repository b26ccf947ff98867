/* A corpus opened by several ranks, against the one that a rank opens alone.
 *
 *     mpirun -n N test_corpora_ranks
 *
 * The work of making a cache is shared, what is made does not depend on how many share it, every
 * rank reads the same samples, and mistakes are told to all alike. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "io/corpora.h"
#include "io/files.h"
#include "kernels/mistakes.h"
#include "io/token_source.h"
#include "kernels/die.h"
#include "parallel/comm.h"
#include "tests/place.h"

enum { LENGTH = 64, FILES = 40 };

static struct comm comm;
static struct group *world, *alone;
static int failed;
static char folder[256];

/* One line a promise, said by rank 0; any rank may have found it broken. */
static void promise(bool good, const char *what, const char *detail) {
    bool bad = comm_max(world, !good) != 0;
    failed += bad;
    if (!good) printf("FAIL %s: rank %d, %s\n", what, comm.rank, detail);
    else if (comm.rank == 0 && !bad) printf("ok %s\n", what);
    fflush(stdout);
}

static char *below(const char *name) {
    return die_format("%s/%s", folder, name);
}

/* Some plain files and one of lines, which alone is worth several pieces. */
static void write_text(void) {
    char *path = below("text"), *lines = below("text/lines.jsonl");
    if (mkdir(path, 0777) != 0) die("cannot make %s", path);
    FILE *l = fopen(lines, "w");
    uint64_t x = 88172645463325252;
    for (int i = 0; i < FILES; i++) {
        char *name = die_format("%s/%02d.txt", path, i);
        FILE *f = fopen(name, "w");
        for (int k = 0; k < 30000 + 100 * i; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            fputc('a' + (int)(x % 26), f);
        }
        fclose(f);
        free(name);
        for (int k = 0; k < 25; k++) fprintf(l, "{\"text\": \"%d\\n%0*d\"}\n", i, 40 * i + k, k);
    }
    fclose(l);
    free(path);
    free(lines);
}

static int64_t encoded;

static int64_t encode(const void *own, const char *text, int64_t n, int32_t **ids, int64_t *room) {
    (void)own;
    if (*room < n) *ids = die_realloc(*ids, (unsigned long)(*room = n) * sizeof **ids);
    for (int64_t i = 0; i < n; i++) (*ids)[i] = 1000 + (unsigned char)text[i];
    __atomic_add_fetch(&encoded, 1, __ATOMIC_RELAXED);
    return n;
}

static const struct token_source shifted = {"shifted", 3, 1257, 1256, NULL, encode};

static int open_text(struct corpus *c, const char *cache, struct group *g, struct mistakes *m) {
    char *text = below("text"), *where = below(cache);
    const struct corpus_text t = {.seed = 5,
                                  .length = LENGTH,
                                  .mask_documents = true,
                                  .n_paths = 1,
                                  .paths = &text,
                                  .split = 0.1,
                                  .tokens = &shifted,
                                  .cache = where,
                                  .threads = 2};
    int result = corpus_text(c, &t, g, m);
    free(text);
    free(where);
    return result;
}

/* All samples of a corpus and of its validation, as one number. */
static uint64_t read_all(const struct corpus *c) {
    int32_t tokens[LENGTH + 1], start[LENGTH];
    bool counts[LENGTH];
    struct corpus v;
    corpus_validation(c, &v);
    uint64_t sum = c->identity;
    for (int half = 0; half < 2; half++) {
        const struct corpus *from = half ? &v : c;
        for (int64_t i = 0; i < from->samples; i++) {
            corpus_sample(from, i, tokens, start, counts);
            sum = XXH3_64bits_withSeed(tokens, sizeof tokens, sum);
            sum = XXH3_64bits_withSeed(start, sizeof start, sum);
            sum = XXH3_64bits_withSeed(counts, sizeof counts, sum);
        }
    }
    return sum;
}

static bool same_everywhere(uint64_t x) {
    uint64_t first = x;
    comm_broadcast(world, &first, sizeof first, 0);
    return comm_max(world, first != x) == 0;
}

static int64_t sum(int64_t x) {
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(world, 1, I64));
    comm_sum_start(world, &x, 1, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
    return x;
}

static void test_shared(void) {
    struct corpus c, again, mine;
    struct mistakes m = {0};
    encoded = 0;
    bool good = open_text(&c, "shared", world, &m) == 0;
    mistakes_print(&m, stderr);
    promise(good, "ranks make a cache together", "it was refused");
    if (!good) return;
    char detail[100];
    int64_t all = sum(encoded);
    snprintf(detail, sizeof detail, "%ld documents were encoded, %ld here", (long)all,
             (long)encoded);
    promise(all == FILES * 26, "each document is encoded by one rank", detail);
    promise(encoded > 0, "every rank has a share of the work", detail);
    uint64_t text = read_all(&c);
    promise(same_everywhere(text), "every rank reads the same samples", "others are here");
    encoded = 0;
    open_text(&again, "shared", world, &m);
    promise(encoded == 0 && read_all(&again) == text, "what is there is not made again",
            "it was, or differs");
    char name[40];
    snprintf(name, sizeof name, "alone-%d", comm.rank);
    open_text(&mine, name, alone, &m);
    promise(read_all(&mine) == text, "one rank alone reads the same samples", "others are here");
    corpus_free(&c);
    corpus_free(&again);
    corpus_free(&mine);
    comm_barrier(world);
    if (comm.rank != 0) return;
    char *command = die_format("diff -r -x lock '%s/shared' '%s/alone-0' >&2", folder, folder);
    bool same = system(command) == 0;
    if (same) printf("ok how many ranks share the work leaves no trace in the files\n");
    else printf("FAIL the files differ\n");
    failed += !same;
    free(command);
}

/* All ranks open a cache of their own run at once: as many runs as ranks. */
static void test_runs_together(void) {
    struct corpus c;
    struct mistakes m = {0};
    encoded = 0;
    bool good = open_text(&c, "together", alone, &m) == 0;
    uint64_t text = good ? read_all(&c) : 0;
    promise(good && same_everywhere(text), "runs that start together read the same samples",
            "one was refused, or differs");
    int64_t all = sum(encoded);
    char detail[100];
    snprintf(detail, sizeof detail, "%ld documents were encoded", (long)all);
    promise(all == FILES * 26, "runs that start together do the work once", detail);
    if (good) corpus_free(&c);
}

static void test_mistakes(void) {
    struct corpus c;
    struct mistakes m = {0};
    char *absent = below("absent"), *where = below("cache");
    struct corpus_text t = {.length = LENGTH,
                            .n_paths = 1,
                            .paths = &absent,
                            .tokens = &shifted,
                            .cache = where,
                            .threads = 1};
    bool good = corpus_text(&c, &t, world, &m) == -1 && m.n == 1 && strstr(m.text[0], absent);
    promise(good, "every rank is told of a path that is not there", "something else");
    mistakes_free(&m);
    char *text = below("text"), *file = below("text/00.txt");
    t.paths = &text;
    t.cache = file;
    good = corpus_text(&c, &t, world, &m) == -1 && m.n == 1 && strstr(m.text[0], "data.cache");
    promise(good, "every rank is told of a cache that cannot be made", "something else");
    mistakes_free(&m);
    free(absent);
    free(where);
    free(text);
    free(file);
}

int main(void) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) die("%s", m.text[0]);
    die_set_rank(comm.rank);
    if (comm.size > 1) die_set_hooks(NULL, comm_abort);
    world = comm.world;
    alone = group_new(&comm, "alone", 1, &comm.rank);
    if (comm.rank == 0) {
        place_make(folder, sizeof folder, "corpora");
        write_text();
    }
    comm_broadcast(world, folder, sizeof folder, 0);
    test_shared();
    test_runs_together();
    test_mistakes();
    comm_barrier(world);
    if (comm.rank == 0) folder_remove(folder);
    int64_t bad = comm_max(world, failed);
    group_free(alone);
    comm_end(&comm);
    return bad != 0;
}
