/* Tokens made once: what comes from the cache is what comes from the text, some documents are held
 * out and stay so, and whatever happens to a cache or to those who make it, the next run has it
 * whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/corpora.h"
#include "io/corpora_files.h"
#include "io/files.h"
#include "io/token_source.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "tests/place.h"

enum { LENGTH = 48 };

static struct comm comm;
static char top[256], folder[300], cache[320];

static int begin(void **unused) {
    (void)unused;
    static int number;
    snprintf(folder, sizeof folder, "%s/%d", top, number++);
    snprintf(cache, sizeof cache, "%s.cache", folder);
    return mkdir(folder, 0777);
}

static char *in(const char *name) {
    static char path[8][600];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* A text that is like no other. */
static void put_story(const char *path, int number, int n) {
    char *text = die_alloc((unsigned long)n);
    uint64_t x = (uint64_t)number * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < n; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        text[i] = (char)(x % 6 ? 'a' + (x >> 8) % 26 : ' ');
    }
    place_put(path, text, (size_t)n);
    free(text);
}

/* ---- token sources ---- */

static int64_t *encoded; /* documents, over all processes */
static int64_t delay_ns; /* each costs */

static int64_t encode(const void *own, const char *text, int64_t n, int32_t **ids, int64_t *room) {
    int32_t shift = own ? *(const int32_t *)own : 0;
    if (*room < n) *ids = die_realloc(*ids, (unsigned long)(*room = n) * sizeof **ids);
    for (int64_t i = 0; i < n; i++) (*ids)[i] = (unsigned char)text[i] + shift;
    __atomic_add_fetch(encoded, 1, __ATOMIC_RELAXED);
    if (delay_ns) nanosleep(&(struct timespec){0, delay_ns}, NULL);
    return n;
}

static const int32_t shift = 70000;
static const struct token_source narrow = {"narrow", 1, 257, 256, NULL, encode};
static const struct token_source wide = {"wide", 2, 100000, 70256, &shift, encode};

static struct corpus_text spec(char **paths, int n, const struct token_source *tokens) {
    return (struct corpus_text){.seed = 11,
                                .length = LENGTH,
                                .mask_documents = true,
                                .n_paths = n,
                                .paths = paths,
                                .tokens = tokens,
                                .cache = cache,
                                .threads = 1};
}

static struct corpus opened(const struct corpus_text *t) {
    struct corpus c;
    struct mistakes m = {0};
    int result = corpus_text(&c, t, comm.world, &m);
    mistakes_print(&m, stderr);
    assert_int_equal(result, 0);
    return c;
}

struct sample {
    int32_t tokens[LENGTH + 1], start[LENGTH];
    bool counts[LENGTH];
};

static struct sample sample(const struct corpus *c, int64_t i) {
    struct sample s;
    memset(&s, 0x5a, sizeof s);
    corpus_sample(c, i, s.tokens, s.start, s.counts);
    return s;
}

static void same_samples(const struct corpus *a, const struct corpus *b, int32_t shifted) {
    assert_int_equal(a->samples, b->samples);
    for (int64_t i = 0; i < 2 * a->samples; i++) {
        struct sample s = sample(a, i), t = sample(b, i);
        for (int k = 0; k <= LENGTH; k++) t.tokens[k] -= shifted;
        assert_memory_equal(s.tokens, t.tokens, sizeof s.tokens);
        assert_memory_equal(s.start, t.start, sizeof s.start);
        assert_memory_equal(s.counts, t.counts, sizeof s.counts);
    }
}

/* ---- what is in it ---- */

static void test_cache_is_the_text(void **unused) {
    (void)unused;
    int64_t before = *encoded;
    for (int i = 0; i < 70; i++) {
        char name[20];
        snprintf(name, sizeof name, "%02d", i);
        put_story(in(name), i, i % 10 == 3 ? 300000 : 1 + i * 31);
    }
    place_put_text(in("broken"), "\xff\xfe\xc3(\x80 not UTF-8 at all, and 0 \xed\xa0\x80 neither");
    char *paths[] = {folder};
    for (int split = 0; split < 2; split++) {
        struct corpus_text t = spec(paths, 1, &token_source_bytes);
        t.split = split ? 0.2 : 0;
        struct corpus direct = opened(&t), v, w;
        t.tokens = &narrow;
        struct corpus two = opened(&t), again = opened(&t);
        t.tokens = &wide;
        t.threads = 3;
        struct corpus four = opened(&t);
        same_samples(&direct, &two, 0);
        same_samples(&direct, &again, 0);
        same_samples(&direct, &four, shift);
        corpus_validation(&direct, &v);
        corpus_validation(&four, &w);
        assert_true(split ? v.samples < direct.samples : v.samples >= direct.samples);
        same_samples(&v, &w, shift);
        corpus_free(&v);
        corpus_free(&direct);
        corpus_free(&two);
        corpus_free(&again);
        corpus_free(&four);
    }
    /* Two splits, two tokenizers, one of which was opened twice. */
    assert_int_equal(*encoded - before, 4 * 71);
}

/* The same documents as files and as lines, and lines longer than what is read at once. */
static void test_lines_are_documents(void **unused) {
    (void)unused;
    enum { N = 40 };
    mkdir(in("files"), 0777);
    FILE *f = fopen(in("all.jsonl"), "w");
    for (int i = 0; i < N; i++) {
        char name[40], why[WHY_BYTES];
        int64_t n;
        snprintf(name, sizeof name, "files/%02d", i);
        put_story(in(name), i, i == 7 ? 3000000 : 200 + i);
        char *text = file_text(in(name), 1 << 30, &n, why);
        fprintf(f, "{\"n\": %d, \"text\": \"%s\"}\n%s", i, text, i % 5 ? "" : "{\"other\": 1}\n\n");
        free(text);
    }
    fprintf(f, "{\"text\": \"\"}\n");
    fclose(f);
    char *files[] = {in("files")}, *lines[] = {in("*.jsonl")};
    struct corpus_text t = spec(files, 1, &token_source_bytes), u = spec(lines, 1, t.tokens);
    t.split = u.split = 0.3;
    struct corpus a = opened(&t), b = opened(&u), v, w;
    same_samples(&a, &b, 0);
    corpus_validation(&a, &v);
    corpus_validation(&b, &w);
    same_samples(&v, &w, 0);
    assert_non_null(strstr(corpus_describe(&b), "1 files, "));
    assert_non_null(strstr(corpus_describe(&b), "8 lines without \"text\""));
    corpus_free(&a);
    corpus_free(&b);
}

/* ---- held out ---- */

/* Which of the stories, which name themselves in their first three bytes, are in a corpus. */
static void stories(const struct corpus *c, bool seen[1000]) {
    memset(seen, 0, 1000);
    for (int64_t i = 0; i < c->samples; i++) {
        struct sample s = sample(c, i);
        for (int t = 0; t + 2 < LENGTH; t++) {
            if (s.tokens[t] != '#') continue;
            int number = (s.tokens[t + 1] - '0') * 10 + s.tokens[t + 2] - '0';
            if (number >= 0 && number < 1000) seen[number] = true;
        }
    }
}

static void test_held_out_stay_so(void **unused) {
    (void)unused;
    bool trained[1000] = {false}, was_held[1000] = {false}, train[1000], held[1000];
    for (int n = 2; n <= 90; n += n < 6 ? 1 : 21) {
        int in_training = 0, in_held = 0;
        for (int i = 0; i < n; i++) {
            char name[20], text[100];
            snprintf(name, sizeof name, "%02d", (i * 37) % 100);
            snprintf(text, sizeof text, "#%02d and then %d times the same, to the end of the story",
                     i, i);
            place_put_text(in(name), text);
        }
        char *paths[] = {folder};
        struct corpus_text t = spec(paths, 1, n % 2 ? &token_source_bytes : &narrow);
        t.split = 0.15;
        struct corpus c = opened(&t), v;
        corpus_validation(&c, &v);
        stories(&c, train);
        stories(&v, held);
        for (int i = 0; i < n; i++) {
            assert_false(train[i] && held[i]);
            in_training += train[i];
            in_held += held[i];
        }
        assert_true(in_held > 0 && in_training > 0);
        if (n > 30) assert_true(in_held < n / 3);
        /* Beyond the first few, where one had to be found, nobody changes sides. */
        for (int i = 0; n > 48 && i < n; i++)
            assert_false((trained[i] && held[i]) || (was_held[i] && train[i]));
        memcpy(trained, train, sizeof train);
        memcpy(was_held, held, sizeof held);
        corpus_free(&c);
    }
}

/* Every held-out token once, the last sample filled up, the order always the same. */
static void test_validation_is_whole(void **unused) {
    (void)unused;
    for (int i = 0; i < 9; i++) {
        char name[20];
        snprintf(name, sizeof name, "%d", i);
        put_story(in(name), i, 100 + 17 * i);
    }
    char *paths[] = {folder};
    struct corpus_text t = spec(paths, 1, &token_source_bytes);
    for (int way = 0; way < 4; way++) {
        bool mask = way % 2;
        t.mask_documents = mask;
        t.split = way / 2 * 0.5;
        struct corpus c = opened(&t), v;
        corpus_validation(&c, &v);
        int64_t counted = 0, closing = 0, fillings = 0;
        for (int64_t i = 0; i < v.samples; i++) {
            struct sample s = sample(&v, i), again = sample(&v, i + 3 * v.samples);
            assert_memory_equal(s.tokens, again.tokens, sizeof s.tokens);
            bool fills = s.tokens[LENGTH] == 256 && s.tokens[LENGTH - 1] == 256;
            fillings += fills;
            for (int k = 0; k < LENGTH; k++) {
                counted += s.counts[k];
                closing += s.counts[k] && s.tokens[k + 1] == 256;
                assert_true(s.start[k] >= 0 && s.start[k] <= k);
                if (fills && s.start[k] == k && k) assert_false(s.counts[k] && !mask);
            }
        }
        assert_true(fillings <= 1);
        /* All tokens are targets but the first of each document (without masks: of the text); and
         * one that begins a sample, which is the last target of the sample before. */
        int64_t documents = 0, bytes = 0;
        for (int i = 0; i < 9; i++) {
            char name[20], why[WHY_BYTES];
            int64_t n;
            snprintf(name, sizeof name, "%d", i);
            char *text = file_text(in(name), 1 << 20, &n, why);
            if (t.split <= 0 || document_hash(text, n) < split_threshold(t.split))
                bytes += n, documents++;
            free(text);
        }
        assert_int_equal(closing, documents);
        assert_int_equal(counted, mask ? bytes : bytes + documents - 1);
        corpus_free(&c);
    }
}

static void test_refused(void **unused) {
    (void)unused;
    static const struct {
        const char *text[2];
        double split;
        const char *expected;
    } all[] = {
        {{"only one document, long enough for several samples, one would say"},
         0.1,
         "data.split needs at least two documents that differ"},
        {{"twice the same document, long enough for several samples, one would say",
          "twice the same document, long enough for several samples, one would say"},
         0.1,
         "data.split needs at least two documents that differ"},
        {{"short", "shorter"}, 0.1, "tokens for training, too few for one sample"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (int cached = 0; cached < 2; cached++) {
            begin(NULL);
            place_put_text(in("a"), all[i].text[0]);
            if (all[i].text[1]) place_put_text(in("b"), all[i].text[1]);
            char *paths[] = {folder};
            struct corpus_text t = spec(paths, 1, cached ? &narrow : &token_source_bytes);
            t.split = all[i].split;
            struct corpus c;
            struct mistakes m = {0};
            assert_int_equal(corpus_text(&c, &t, comm.world, &m), -1);
            if (m.n != 1 || !strstr(m.text[0], all[i].expected)) {
                mistakes_print(&m, stderr);
                fail_msg("expected: %s", all[i].expected);
            }
            mistakes_free(&m);
        }
    /* A cache that cannot be made is the person's mistake. */
    place_put_text(in("file"), "not a folder");
    char *paths[] = {folder};
    struct corpus_text t = spec(paths, 1, &narrow);
    t.cache = in("file");
    struct corpus c;
    struct mistakes m = {0};
    assert_int_equal(corpus_text(&c, &t, comm.world, &m), -1);
    assert_true(m.n == 1 && strstr(m.text[0], "data.cache: "));
    mistakes_free(&m);
}

static void test_blend(void **unused) {
    (void)unused;
    char *paths[3];
    for (int k = 0; k < 3; k++) {
        char name[20], *text = die_alloc(5000);
        memset(text, 'a' + k, k == 1 ? 60 : 4000);
        snprintf(name, sizeof name, "%d", k);
        paths[k] = die_strdup(in(name));
        place_put_text(paths[k], text);
        free(text);
    }
    const double weights[] = {0.25, 0.75, 0};
    struct corpus_text t = spec(paths, 3, &token_source_bytes);
    t.n_weights = 3;
    t.weights = weights;
    struct corpus c = opened(&t);
    int count[3] = {0};
    for (int64_t i = 1000; i < 2000; i++) {
        struct sample s = sample(&c, i);
        count[s.tokens[0] - 'a']++;
    }
    assert_true(count[0] == 250 && count[1] == 750 && count[2] == 0);
    const char *line = corpus_describe(&c);
    assert_true(strstr(line, "25 % ") && strstr(line, "75 % "));
    corpus_free(&c);
    for (int k = 0; k < 3; k++) free(paths[k]);
}

/* ---- what may happen to it ---- */

static char *only_cache(void) {
    char *found = NULL, *command = die_format("echo %s/*", cache), line[600] = "";
    FILE *f = popen(command, "r");
    if (fgets(line, sizeof line, f)) line[strcspn(line, " \n")] = 0, found = die_strdup(line);
    pclose(f);
    free(command);
    return found;
}

static void test_damage_is_mended(void **unused) {
    (void)unused;
    for (int i = 0; i < 12; i++) {
        char name[20];
        snprintf(name, sizeof name, "%02d", i);
        put_story(in(name), i, 120000);
    }
    char *paths[] = {folder};
    struct corpus_text t = spec(paths, 1, &token_source_bytes);
    struct corpus direct = opened(&t);
    t.tokens = &narrow;
    struct corpus first = opened(&t);
    corpus_free(&first);
    char *where = only_cache();
    static const char *const damage[] = {
        "truncate -s 1000 '%s/000001.tokens'",
        "truncate -s 0 '%s/000000.tokens'",
        "rm '%s/000002.tokens'",
        "rm '%s/index'",
        "truncate -s 8 '%s/index'",
        "truncate -s 0 '%s/index'",
        "printf x | dd of='%s/index' bs=1 seek=100 conv=notrunc status=none",
        "rm '%s/index'; printf x | dd of='%s/000001.tokens' bs=1 seek=5000 conv=notrunc "
        "status=none",
        "rm '%s/index'; printf x | dd of='%s/000001.tokens' bs=1 seek=30 conv=notrunc status=none",
        "cp '%s/000000.tokens' '%s/000001.tokens'; rm '%s/index'",
        "rm -r '%s'",
        "touch '%s/000000.tokens.elsewhere-1.part'; rm '%s/index'",
    };
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        char command[3000];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(command, sizeof command, damage[i], where, where, where);
#pragma GCC diagnostic pop
        if (system(command) != 0) die("%s", command);
        struct corpus mended = opened(&t);
        same_samples(&direct, &mended, 0);
        corpus_free(&mended);
    }
    char *leftover = die_format("%s/000000.tokens.elsewhere-1.part", where);
    assert_false(file_exists(leftover));
    /* Another text under the same names is another cache. */
    put_story(in("03"), 99, 120000);
    struct corpus other = opened(&t);
    assert_true(other.identity != direct.identity);
    corpus_free(&other);
    corpus_free(&direct);
    free(leftover);
    free(where);
}

static pid_t in_another_process(const struct corpus_text *t) {
    fflush(NULL);
    pid_t child = fork();
    if (child != 0) return child;
    struct corpus c;
    struct mistakes m = {0};
    freopen("/dev/null", "w", stderr);
    int failed = corpus_text(&c, t, comm.world, &m);
    if (!failed) sample(&c, 0);
    _exit(failed ? 1 : 0);
}

static bool ended_well(pid_t child) {
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

enum { MANY = 60, KILLS = 6 };

static void put_many(void) {
    for (int i = 0; i < MANY; i++) {
        char name[20];
        snprintf(name, sizeof name, "%02d", i);
        put_story(in(name), i, 60000);
    }
}

/* Several start together: one makes it, the others wait, nothing is done twice. */
static void test_together(void **unused) {
    (void)unused;
    put_many();
    char *paths[] = {folder};
    struct corpus_text t = spec(paths, 1, &narrow);
    pid_t child[5];
    int64_t before = *encoded;
    delay_ns = 5000000;
    for (int i = 0; i < 5; i++) child[i] = in_another_process(&t);
    for (int i = 0; i < 5; i++) assert_true(ended_well(child[i]));
    delay_ns = 0;
    assert_int_equal(*encoded - before, MANY);
}

/* Builders killed at many moments: none blocks the next, who takes over what was complete. */
static void test_killed(void **unused) {
    (void)unused;
    put_many();
    char *paths[] = {folder};
    struct corpus_text t = spec(paths, 1, &narrow), u = spec(paths, 1, &token_source_bytes);
    struct corpus direct = opened(&u);
    int64_t before = *encoded;
    delay_ns = 5000000;
    for (int i = 0; i < KILLS; i++) {
        pid_t child = in_another_process(&t), waiting = i % 4 ? 0 : in_another_process(&t);
        nanosleep(&(struct timespec){0, 3000000 + 17000000 * (i % 5)}, NULL);
        if (waiting) kill(waiting, SIGKILL), waitpid(waiting, NULL, 0);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    int64_t by_the_dead = *encoded - before;
    struct corpus c = opened(&t);
    delay_ns = 0;
    int64_t by_the_last = *encoded - before - by_the_dead;
    print_message("documents encoded by %d killed builders: %ld, by the last: %ld of %d\n", KILLS,
                  (long)by_the_dead, (long)by_the_last, MANY);
    assert_true(by_the_last <= MANY);
    same_samples(&direct, &c, 0);
    corpus_free(&c);
    corpus_free(&direct);
}

int main(void) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) die("%s", m.text[0]);
    encoded = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    place_make(top, sizeof top, "cache");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_together, begin), /* these fork: before any threads */
        cmocka_unit_test_setup(test_killed, begin),
        cmocka_unit_test_setup(test_lines_are_documents, begin),
        cmocka_unit_test_setup(test_held_out_stay_so, begin),
        cmocka_unit_test_setup(test_validation_is_whole, begin),
        cmocka_unit_test(test_refused),
        cmocka_unit_test_setup(test_blend, begin),
        cmocka_unit_test_setup(test_damage_is_mended, begin),
        cmocka_unit_test_setup(test_cache_is_the_text, begin),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(top);
    comm_end(&comm);
    return result;
}
