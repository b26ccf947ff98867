/* Samples as a function of seed and number: the order is a permutation, documents begin where they
 * begin, what is left out is counted, and mock text is neither noise nor simple. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <math.h>

#include "io/corpora.h"
#include "io/files.h"
#include "io/token_source.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "tests/place.h"

enum { LENGTH = 32 };

static struct comm comm;
static char top[256], folder[300];

static int begin(void **unused) {
    (void)unused;
    static int number;
    snprintf(folder, sizeof folder, "%s/%d", top, number++);
    return mkdir(folder, 0777);
}

static char *in(const char *name) {
    static char path[8][600];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
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

static struct corpus_text spec_of(uint64_t seed, int n, char **paths, bool mask) {
    return (struct corpus_text){.seed = seed,
                                .length = LENGTH,
                                .mask_documents = mask,
                                .n_paths = n,
                                .paths = paths,
                                .tokens = &token_source_bytes,
                                .cache = in("cache"),
                                .threads = 1};
}

static struct corpus text(int n, char **paths, bool mask) {
    struct corpus c;
    struct mistakes m = {0};
    struct corpus_text spec = spec_of(7, n, paths, mask);
    int result = corpus_text(&c, &spec, comm.world, &m);
    mistakes_print(&m, stderr);
    assert_int_equal(result, 0);
    assert_int_equal(m.n, 0);
    return c;
}

static void refused(int n, char **paths, const char *expected) {
    struct corpus c;
    struct mistakes m = {0};
    struct corpus_text spec = spec_of(7, n, paths, true);
    assert_int_equal(corpus_text(&c, &spec, comm.world, &m), -1);
    bool said = false;
    for (int i = 0; i < m.n; i++) said |= strstr(m.text[i], expected) != NULL;
    if (!said) {
        mistakes_print(&m, stderr);
        fail_msg("expected: %s", expected);
    }
    mistakes_free(&m);
}

static void test_order_is_a_permutation(void **unused) {
    (void)unused;
    const int64_t sizes[] = {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4096, 4097};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (uint64_t key = 0; key < 5; key++) {
            bool *seen = die_alloc((unsigned long)sizes[k]);
            for (int64_t i = 0; i < sizes[k]; i++) {
                int64_t p = corpus_permute(key * 0x123456789abcdefu, sizes[k], i);
                assert_true(p >= 0 && p < sizes[k] && !seen[p]);
                seen[p] = true;
            }
            free(seen);
        }
    int64_t large = ((int64_t)1 << 40) + 12345;
    for (int64_t i = 0; i < 100; i++) {
        int64_t p = corpus_permute(9, large, i);
        assert_true(p >= 0 && p < large && p != corpus_permute(9, large, i + 1));
    }
    /* Not merely some bijection: neighbours must not stay neighbours. */
    int near = 0;
    for (int64_t i = 0; i < 999; i++)
        near += llabs(corpus_permute(1, 1000, i) - corpus_permute(1, 1000, i + 1)) < 10;
    assert_true(near < 60);
}

/* The stream of documents as the corpus should see it. */
static int32_t stream[20000];
static int64_t document[20000], n_stream;

static void stream_add(const char *words) {
    int64_t at = n_stream;
    for (const char *p = words; *p; p++) stream[n_stream++] = (unsigned char)*p;
    stream[n_stream++] = 256;
    for (int64_t i = at; i < n_stream; i++) document[i] = at;
}

static void check_against_stream(const struct corpus *c, bool mask) {
    assert_int_equal(c->samples, (n_stream - 1) / LENGTH);
    bool seen[1000] = {false};
    for (int64_t i = 0; i < c->samples; i++) {
        struct sample s = sample(c, i);
        int64_t at = -1;
        for (int64_t k = 0; k < c->samples && at < 0; k++)
            if (!seen[k] && memcmp(stream + k * LENGTH, s.tokens, sizeof s.tokens) == 0) at = k;
        assert_true(at >= 0);
        seen[at] = true;
        at *= LENGTH;
        for (int t = 0; t < LENGTH; t++) {
            int64_t start = document[at + t] - at;
            assert_int_equal(s.start[t], mask && start > 0 ? start : 0);
            assert_int_equal(s.counts[t], !mask || document[at + t] == document[at + t + 1]);
        }
    }
}

static void test_text_is_the_stream(void **unused) {
    (void)unused;
    static char words[60][200];
    n_stream = 0;
    for (int i = 0; i < 60; i++) {
        char name[20];
        int n = 1 + (i * 37) % 150;
        for (int k = 0; k < n; k++) words[i][k] = (char)(33 + (i * 7 + k * k) % 90);
        words[i][n] = 0;
        snprintf(name, sizeof name, "f%02d", i);
        place_put_text(in(name), words[i]);
        stream_add(words[i]);
    }
    char *paths[] = {folder};
    for (int mask = 0; mask < 2; mask++) {
        struct corpus c = text(1, paths, mask);
        assert_int_equal(c.vocabulary, 257);
        check_against_stream(&c, mask);
        corpus_free(&c);
    }
}

static void test_passes_differ(void **unused) {
    (void)unused;
    char words[4000];
    for (int i = 0; i < 3999; i++) words[i] = (char)('a' + (i * i / 7) % 26);
    words[3999] = 0;
    place_put_text(in("f"), words);
    char *paths[] = {folder};
    struct corpus c = text(1, paths, true), other;
    struct mistakes m = {0};
    struct corpus_text spec = spec_of(8, 1, paths, true);
    assert_int_equal(corpus_text(&other, &spec, comm.world, &m), 0);
    assert_true(c.identity != other.identity);
    int same_pass = 0, same_seed = 0;
    for (int64_t i = 0; i < c.samples; i++) {
        struct sample a = sample(&c, i), b = sample(&c, i + c.samples), d = sample(&other, i),
                      again = sample(&c, i);
        same_pass += memcmp(a.tokens, b.tokens, sizeof a.tokens) == 0;
        same_seed += memcmp(a.tokens, d.tokens, sizeof a.tokens) == 0;
        assert_memory_equal(a.tokens, again.tokens, sizeof a.tokens);
    }
    assert_true(same_pass < 10 && same_seed < 10);
    sample(&c, INT64_MAX);
    corpus_free(&c);
    corpus_free(&other);
}

static void test_folders(void **unused) {
    (void)unused;
    n_stream = 0;
    mkdir(in("b"), 0777);
    mkdir(in("b/d"), 0777);
    mkdir(in(".git"), 0777);
    place_put_text(in("a.txt"), "the first of the texts, forty letters or so");
    place_put_text(in("b/c.txt"), "\xc3\xa4 second");
    place_put_text(in("b/d/e"), "third, deep below");
    place_put_text(in("b-"), "sorts before b/");
    place_put_text(in("b/.hidden"), "a file, so it is read");
    place_put_text(in(".git/config"), "not read");
    place_put(in("binary"), "a\0b", 3);
    place_put(in("empty"), "", 0);
    mkfifo(in("pipe"), 0600);
    assert_int_equal(symlink("a.txt", in("z-link")), 0);
    assert_int_equal(symlink("nowhere", in("z-dangling")), 0);
    assert_int_equal(symlink("..", in("b/loop")), 0);
    stream_add("the first of the texts, forty letters or so");
    stream_add("sorts before b/");
    stream_add("a file, so it is read");
    stream_add("\xc3\xa4 second");
    stream_add("third, deep below");
    stream_add("the first of the texts, forty letters or so");
    char *paths[] = {folder, in("a.*"), in("b/c.txt")};
    struct corpus c = text(3, paths, true);
    check_against_stream(&c, true);
    const char *line = corpus_describe(&c);
    if (!strstr(line, "6 files, ") ||
        !strstr(
            line,
            "left out: 1 binary, 2 unreadable, 1 empty, 2 named twice, 2 folders linked or hidden"))
        fail_msg("%s", line);
    corpus_free(&c);
}

static void test_refused(void **unused) {
    (void)unused;
    char *paths[] = {in("absent"), in("*.none")};
    refused(1, paths, "absent: No such file");
    refused(2, paths, "*.none: no file has a name like this");
    char *empty[] = {folder};
    refused(1, empty, "no text file found");
    place_put(in("binary"), "\0", 1);
    refused(1, empty, "1 binary");
    place_put_text(in("short"), "only thirty-one letters, oh why");
    refused(1, empty, "32 tokens, too few for one sample of 32");
    place_put_text(in("short"), "with thirty-two letters, it goes");
    struct corpus c = text(1, empty, true);
    assert_int_equal(c.samples, 1);
    corpus_free(&c);
}

static void test_changed_file(void **unused) {
    (void)unused;
    place_put_text(in("f"),
                   "a text that will be longer when it is read than it was when it was listed");
    char *paths[] = {folder};
    struct corpus c = text(1, paths, true);
    for (int opened = 0; opened < 2; opened++) {
        place_put_text(in("f"), opened ? "and now it is much shorter"
                                       : "a text that is longer when it is read than it was when "
                                         "it was listed, as has been promised");
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            freopen("/dev/null", "w", stderr);
            die_set_hooks(NULL, _exit);
            sample(&c, 0);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    }
    corpus_free(&c);
}

/* More files than are kept open. */
static void test_many_files(void **unused) {
    (void)unused;
    n_stream = 0;
    for (int i = 0; i < 300; i++) {
        char name[20], words[20];
        snprintf(name, sizeof name, "%03d", i);
        snprintf(words, sizeof words, "%d %d", i, i * i);
        place_put_text(in(name), words);
        stream_add(words);
    }
    char *paths[] = {in("*")};
    struct corpus c = text(1, paths, true);
    check_against_stream(&c, true);
    corpus_free(&c);
}

static void test_mock_is_pure(void **unused) {
    (void)unused;
    const int64_t vocabularies[] = {1, 2, 3, 101, 257, 131072};
    for (size_t v = 0; v < sizeof vocabularies / sizeof *vocabularies; v++) {
        struct corpus c, other;
        corpus_mock(&c, 5, vocabularies[v], LENGTH);
        corpus_mock(&other, 6, vocabularies[v], LENGTH);
        int equal = 0, seeds = 0;
        for (int64_t i = 0; i < 200; i++) {
            struct sample a = sample(&c, i), b = sample(&c, i + 1), again = sample(&c, i),
                          d = sample(&other, i);
            assert_memory_equal(a.tokens, again.tokens, sizeof a.tokens);
            assert_memory_equal(a.start, again.start, sizeof a.start);
            equal += memcmp(a.tokens, b.tokens, sizeof a.tokens) == 0;
            seeds += memcmp(a.tokens, d.tokens, sizeof a.tokens) == 0;
            for (int t = 0; t <= LENGTH; t++)
                assert_true(a.tokens[t] >= 0 && a.tokens[t] < vocabularies[v]);
            for (int t = 0; t < LENGTH; t++) {
                assert_true(a.start[t] >= 0 && a.start[t] <= t);
                assert_int_equal(a.counts[t], a.tokens[t] != 0);
                if (t) assert_int_equal(a.start[t], a.tokens[t - 1] == 0 ? t : a.start[t - 1]);
            }
        }
        if (vocabularies[v] > 50) assert_true(equal == 0 && seeds == 0);
        c.mask_documents = false;
        struct sample s = sample(&c, 3);
        for (int t = 0; t < LENGTH; t++) assert_true(s.start[t] == 0 && s.counts[t]);
        corpus_free(&c);
        corpus_free(&other);
    }
}

/* Bits a token by counts of tokens, of pairs: what a model gains by each step of understanding. */
static void test_mock_can_be_learned(void **unused) {
    (void)unused;
    enum { V = 257, LONG = 1024, SAMPLES = 400 };
    struct corpus c;
    corpus_mock(&c, 1, V, LONG);
    static double one[V], pair[V][V], tokens;
    static int32_t t[LONG + 1], start[LONG];
    static bool counts[LONG];
    int documents = 0;
    for (int64_t i = 0; i < SAMPLES; i++) {
        corpus_sample(&c, i, t, start, counts);
        for (int k = 0; k < LONG; k++) {
            documents += !counts[k];
            if (!counts[k]) continue;
            one[t[k + 1]]++;
            pair[t[k]][t[k + 1]]++;
            tokens++;
        }
    }
    double h1 = 0, h2 = 0;
    for (int a = 0; a < V; a++) {
        double row = 0;
        for (int b = 0; b < V; b++) row += pair[a][b];
        if (one[a] > 0) h1 -= one[a] / tokens * log(one[a] / tokens);
        for (int b = 0; b < V; b++)
            if (pair[a][b] > 0) h2 -= pair[a][b] / tokens * log(pair[a][b] / row);
    }
    print_message("nats a token: uniform %.2f, by token %.2f, by pair %.2f; %d documents\n", log(V),
                  h1, h2, documents);
    assert_true(h1 < log(V) - 0.3 && h2 < h1 - 0.3 && h2 > 1);
    assert_true(documents > SAMPLES);
}

int main(void) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) die("%s", m.text[0]);
    place_make(top, sizeof top, "corpora");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_is_a_permutation),
        cmocka_unit_test_setup(test_text_is_the_stream, begin),
        cmocka_unit_test_setup(test_passes_differ, begin),
        cmocka_unit_test_setup(test_folders, begin),
        cmocka_unit_test_setup(test_refused, begin),
        cmocka_unit_test_setup(test_changed_file, begin),
        cmocka_unit_test_setup(test_many_files, begin),
        cmocka_unit_test(test_mock_is_pure),
        cmocka_unit_test(test_mock_can_be_learned),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(top);
    comm_end(&comm);
    return result;
}
