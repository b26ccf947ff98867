/* Decks: what is read, what is refused and in which words, what is written. Run from the repository
 * root. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/yaml.h"
#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/mesh.h"
#include "src/config.h"
#include "src/deck.h"
#include "src/deck_rules.h"
#include "src/deck_table.h"
#include "tests/place.h"

static char folder[256];

static char *put_bytes(const char *name, const char *text, size_t n) {
    char *path = die_format("%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
    return path;
}

static char *put(const char *name, const char *text) {
    return put_bytes(name, text, strlen(text));
}

/* All that the program does with a deck before it runs. */
static void everything(struct deck *d, struct config *c, const char *path, int n, char **overrides,
                       int ranks, struct mistakes *m) {
    struct mesh_shape mesh;
    deck_read(d, path, n, overrides, m);
    config_settle(c, d, m);
    deck_check(d, m);
    deck_mesh(d, ranks, &mesh, m);
}

static void expect_none(const struct mistakes *m) {
    mistakes_print(m, stderr);
    assert_int_equal(m->n, 0);
}

/* ---------------------------------------------------------------- bad decks */

enum { MOST = 32 };

struct expected {
    int n, n_overrides, ranks;
    char *text[MOST], *override[MOST];
};

static void read_expected(const char *path, struct expected *e) {
    char line[1024];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    *e = (struct expected){0};
    while (fgets(line, sizeof line, f) && line[0] == '#') {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "# expect: ", 10)) e->text[e->n++] = die_strdup(line + 10);
        if (!strncmp(line, "# override: ", 12))
            e->override[e->n_overrides++] = die_strdup(line + 12);
        if (!strncmp(line, "# ranks: ", 9)) e->ranks = atoi(line + 9);
    }
    fclose(f);
}

/* Each expected text in a mistake of its own, and no mistake besides. */
static int check_bad(const char *path) {
    struct expected e;
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    bool used[256] = {false};
    read_expected(path, &e);
    everything(&d, &c, path, e.n_overrides, e.override, e.ranks, &m);
    int wrong = e.n == 0 || m.n != e.n;
    for (int i = 0; i < e.n; i++) {
        int j = 0;
        while (j < m.n && (used[j] || !strstr(m.text[j], e.text[i]))) j++;
        if (j < m.n) used[j] = true;
        else {
            wrong = 1;
            fprintf(stderr, "%s: not told: %s\n", path, e.text[i]);
        }
        free(e.text[i]);
    }
    for (int j = 0; j < m.n; j++)
        if (!used[j]) fprintf(stderr, "%s: told besides: %s\n", path, m.text[j]);
    for (int i = 0; i < e.n_overrides; i++) free(e.override[i]);
    mistakes_free(&m);
    config_free(&c);
    deck_free(&d);
    return wrong;
}

static void bad_decks(void **state) {
    (void)state;
    int n = 0, wrong = 0;
    DIR *dir = opendir("tests/bad_decks");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strstr(e->d_name, ".yaml")) continue;
        char *path = die_format("tests/bad_decks/%s", e->d_name);
        wrong += check_bad(path);
        n++;
        free(path);
    }
    closedir(dir);
    assert_true(n >= 30);
    assert_int_equal(wrong, 0);
}

static void not_a_deck(void **state) {
    (void)state;
    static const char *const what[][2] = {{"/nonexistent.yaml", "No such file"},
                                          {"/tmp", "is a folder"},
                                          {"/dev/null", "not a regular file"}};
    char *large = die_alloc(2 << 20);
    memset(large, '#', 2 << 20);
    char *path = put_bytes("large.yaml", large, 2 << 20);
    for (int i = 0; i < 4; i++) {
        struct deck d;
        struct mistakes m = {0};
        deck_read(&d, i < 3 ? what[i][0] : path, 0, NULL, &m);
        assert_int_equal(m.n, 1);
        assert_non_null(strstr(m.text[0], i < 3 ? what[i][1] : "too many for a deck"));
        mistakes_free(&m);
        deck_free(&d);
    }
    free(large);
    free(path);
}

/* ---------------------------------------------------------------- good decks */

static void values(void **state) {
    (void)state;
    char *path = put("values.yaml",
                     "%YAML 1.1\n---\n# a comment with a\ttab\nrun:\n  name: 5   # a number is a "
                     "name too\n  debug: true\n"
                     "model: {preset: debug, time_step_limit: [1e-3]}\n"
                     "train:\n  steps: 7\n  clip: .5\n"
                     "data:\n  kind: text\n  path:\n  - /a b\n  - \"c: d\"\n"
                     "compare:\n  tolerance: [1e-3, 0, 1.]\nmemory:\nlog:\n  # nothing set\n");
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    everything(&d, &c, path, 0, NULL, 1, &m);
    expect_none(&m);
    assert_string_equal(d.run.name, "5");
    assert_string_equal(d.run.output, "outputs/5");
    assert_true(d.run.debug);
    assert_int_equal(d.train.steps, 7);
    assert_true(d.train.clip == 0.5);
    assert_int_equal(d.data.path.n, 2);
    assert_string_equal(d.data.path.v[1], "c: d");
    assert_true(d.compare.tolerance.v[0] == 1e-3 && d.compare.tolerance.v[2] == 1);
    assert_true(c.dt_min == 1e-3 && c.dt_max > 1e300);
    assert_true(deck_given(&d, "train.steps") && !deck_given(&d, "train.micro_batch"));
    assert_non_null(strstr(deck_where(&d, "train.steps"), "values.yaml:9"));
    assert_string_equal(deck_where(&d, "model.hidden_size"), "");
    assert_int_equal(d.model.hidden_size, 32);
    deck_set(&d, "train.global_batch", "4", "worked out");
    assert_int_equal(d.train.global_batch, 4);
    assert_false(deck_given(&d, "train.global_batch"));
    const char *name;
    char type;
    void *value;
    int n = 0;
    while (deck_row(&d, "train", n, &name, &type, &value) && strcmp(name, "global_batch")) n++;
    assert_string_equal(name, "global_batch");
    assert_true(type == 'i' && *(int64_t *)value == 4);
    while (deck_row(&d, "train", n, &name, &type, &value)) n++;
    assert_true(n > 3);
    config_free(&c);
    deck_free(&d);
    free(path);
}

static void overrides(void **state) {
    (void)state;
    char *path =
        put("overrides.yaml",
            "model:\n  preset: tiny\ntrain:\n  steps: 7\ndata:\n  kind: text\n  path: [a, b]\n");
    char *given[] = {"train.steps=8",           "train.steps=9",
                     "run.name=a=b: [c",        "data.path=one two",
                     "data.path=[x, \"y, z\"]", "compare.tolerance=[1, 2, 3]",
                     "model.preset=",           "model.hybrid_override_pattern=*-M",
                     "run.debug=true",          "compare.dump=",
                     "model.tokenizer=bytes"};
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    everything(&d, &c, path, sizeof given / sizeof *given, given, 0, &m);
    expect_none(&m);
    assert_int_equal(d.train.steps, 9);
    assert_string_equal(d.run.name, "a=b: [c");
    assert_int_equal(d.data.path.n, 2);
    assert_string_equal(d.data.path.v[1], "y, z");
    assert_true(d.compare.tolerance.v[2] == 3);
    assert_string_equal(c.kinds, "*-M");
    assert_int_equal(c.keys.hidden_size, 4096);
    assert_string_equal(deck_where(&d, "run.debug"), "command line");
    config_free(&c);
    deck_free(&d);
    free(path);
}

static void bases(void **state) {
    (void)state;
    char *sub = die_format("%s/sub", folder);
    mkdir(sub, 0777);
    char *a = put("sub/a.yaml",
                  "train:\n  steps: 1\n  clip: 2\ndata:\n  kind: text\n  path: [a, b, c]\n");
    char *b = put("sub/b.yaml", "base: a.yaml\ntrain:\n  steps: 2\nmodel:\n  preset: tiny\n");
    char *c2 = put("c.yaml", "train:\n  micro_batch: 3\n  steps: 3\nbase: [sub/a.yaml, "
                             "sub/b.yaml]\ndata:\n  path: [z]\n");
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    everything(&d, &c, c2, 0, NULL, 0, &m);
    expect_none(&m);
    assert_int_equal(d.train.steps, 3);
    assert_int_equal(d.train.micro_batch, 3);
    assert_true(d.train.clip == 2);
    assert_int_equal(d.data.path.n, 1);
    assert_int_equal(c.keys.hidden_size, 128);
    assert_non_null(strstr(deck_where(&d, "train.clip"), "sub/a.yaml:3"));
    config_free(&c);
    deck_free(&d);
    free(a);
    free(b);
    free(c2);
    free(sub);
}

/* The presets as files may be the base of a deck, and say the same. */
static void preset_as_base(void **state) {
    (void)state;
    char cwd[2048];
    assert_non_null(getcwd(cwd, sizeof cwd));
    char *text = die_format("base: %s/inputs/models/super-120b.yaml\n", cwd);
    char *path = put("preset_base.yaml", text);
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    everything(&d, &c, path, 0, NULL, 0, &m);
    expect_none(&m);
    assert_int_equal(c.n_layers, 88);
    assert_string_equal(c.mtp_kinds, "*E");
    config_free(&c);
    deck_free(&d);
    free(path);
    free(text);
}

/* ---------------------------------------------------------------- used.yaml */

static char *used_of(const char *path, int n, char **given) {
    struct deck d;
    struct config c;
    struct mistakes m = {0};
    char *text = NULL;
    size_t size;
    everything(&d, &c, path, n, given, 0, &m);
    expect_none(&m);
    FILE *f = open_memstream(&text, &size);
    deck_write_used(&d, f);
    fclose(f);
    config_free(&c);
    deck_free(&d);
    return text;
}

/* The lines without their comments. */
static void strip(char *text) {
    char *to = text;
    bool quoted = false;
    for (char *c = text; *c; c++) {
        if (*c == '"' && (c == text || c[-1] != '\\')) quoted = !quoted;
        if (*c == '#' && !quoted) {
            while (to > text && to[-1] == ' ') to--;
            c += strcspn(c, "\n");
        }
        *to++ = *c;
        if (!*c) return;
    }
    *to = 0;
}

static void round_trip(void **state) {
    (void)state;
    static char *const odd[] = {"run.name=true",
                                "run.output=- x: #y \"z\" \\ 'q' \xc3\xa9",
                                "optimizer.learning_rate=1.2345678901234567e-5",
                                "optimizer.epsilon=3e-21",
                                "data.path=[a, \"b, c\", \"#d\", null x, \"null\"]",
                                "data.kind=text",
                                "compare.dump=null",
                                "convert.to=~",
                                "model.time_step_limit=[0.001]",
                                "model.hybrid_override_pattern=-M*E",
                                "run.seed=4294967295",
                                "compare.reference=\ttab\x01",
                                "model.pattern_dialect=hf",
                                "compare.tolerance=[0.1, 0.30000000000000004, 1e-30]",
                                "model.mtp_hybrid_override_pattern=-E",
                                "model.num_nextn_predict_layers=3"};
    char *path = put("odd.yaml", "model:\n  preset: tiny\n");
    char *first = used_of(path, sizeof odd / sizeof *odd, (char **)odd);
    char *again_path = put("used.yaml", first);
    char *second = used_of(again_path, 0, NULL);
    strip(first);
    strip(second);
    assert_string_equal(first, second);
    assert_non_null(strstr(first, "learning_rate: 1.2345678901234568e-05\n"));
    assert_non_null(strstr(first, "hybrid_override_pattern: \"-M*E\"\n"));
    free(first);
    free(second);
    free(path);
    free(again_path);
}

/* ---------------------------------------------------------------- the manual, and the example
 * decks */

static void manual(void **state) {
    (void)state;
    char *text = NULL, *kept = NULL;
    size_t size, kept_size;
    FILE *f = open_memstream(&text, &size);
    assert_int_equal(deck_keys(f, NULL, true), 0);
    fclose(f);
    f = fopen("inputs/KEYS.md", "r");
    assert_non_null(f);
    FILE *to = open_memstream(&kept, &kept_size);
    for (int c; (c = getc(f)) != EOF;) putc(c, to);
    fclose(f);
    fclose(to);
    assert_string_equal(kept, text); /* make keys, or: ./mestar keys --markdown > inputs/KEYS.md */
    free(text);
    free(kept);
    f = fopen("/dev/null", "w");
    assert_int_equal(deck_keys(f, "train", false), 0);
    assert_int_equal(deck_keys(f, "train.steps", false), 0);
    assert_int_equal(deck_keys(f, "steps", false), 0);
    fclose(f);
}

static void example_decks(void **state) {
    (void)state;
    DIR *dir = opendir("inputs");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 5, ".yaml")) continue;
        char *path = die_format("inputs/%s", e->d_name);
        struct deck d;
        struct mistakes m = {0};
        deck_read(&d, path, 0, NULL, &m);
        deck_check(&d, &m);
        expect_none(&m);
        /* A deck may continue what another has made, which need not be there. */
        if (!*d.model.from) free(used_of(path, 0, NULL));
        deck_free(&d);
        free(path);
    }
    closedir(dir);
}

/* ---------------------------------------------------------------- mutations */

static uint32_t next(uint32_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

/* Nothing may crash, leak or hang; what is said does not matter. */
static void mutations(void **state) {
    (void)state;
    static const char seed_text[] =
        "run:\n  name: \"a b\"\n  seed: 12\nmodel:\n  hybrid_override_pattern: \"ME*-\"\n  "
        "time_step_limit: [1e-3, 2]\n  hidden_size: 64\n"
        "data:\n  kind: text\n  path: [a, 'b', c]\n  kind: text\ntrain:\n  steps: 5\n  clip: 1e-3 "
        "# "
        "c\nparallel:\n  tensor: 2\n";
    static const char signs[] = "\n\n  ::--*&!|>'\"[]{},#%@`\t?\\0e.~\x80\xff";
    char text[2 * sizeof seed_text];
    uint32_t x = 12345;
    for (int i = 0; i < 3000; i++) {
        size_t n = sizeof seed_text - 1;
        memcpy(text, seed_text, n);
        for (uint32_t k = 0; k < 1 + next(&x) % 6; k++) {
            size_t at = next(&x) % n;
            char sign = signs[next(&x) % (sizeof signs - 1)];
            switch (next(&x) % 4) {
            case 0: text[at] = sign; break;
            case 1: memmove(text + at, text + at + 1, n-- - at - 1); break;
            case 2:
                memmove(text + at + 1, text + at, n++ - at);
                text[at] = sign;
                break;
            default: n -= next(&x) % 8 == 0 ? (n - at) / 2 : 0;
            }
        }
        char *path = put_bytes("mutated.yaml", text, n);
        struct deck d;
        struct config c;
        struct mistakes m = {0};
        everything(&d, &c, path, 0, NULL, 2, &m);
        mistakes_free(&m);
        config_free(&c);
        deck_free(&d);
        free(path);
    }
}

static void nearest_words(void **state) {
    (void)state;
    static const char *const words[] = {"train", "compare", "convert"};
    assert_string_equal(mistakes_nearest("trian", 3, words), "train");
    assert_string_equal(mistakes_nearest("Train", 3, words), "train");
    assert_string_equal(mistakes_nearest("conver", 3, words), "convert");
    assert_null(mistakes_nearest("evaluate", 3, words));
    assert_null(mistakes_nearest("", 3, words));
    struct mistakes m = {0};
    mistake(&m, "a", 3, "x\x1b%d", 1);
    mistake(&m, "a", 3, "x\x1b%d", 1);
    assert_int_equal(m.n, 1);
    assert_string_equal(m.text[0], "a:3: x?1");
    mistakes_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nearest_words),  cmocka_unit_test(bad_decks),
        cmocka_unit_test(not_a_deck),     cmocka_unit_test(values),
        cmocka_unit_test(overrides),      cmocka_unit_test(bases),
        cmocka_unit_test(preset_as_base), cmocka_unit_test(round_trip),
        cmocka_unit_test(manual),         cmocka_unit_test(example_decks),
        cmocka_unit_test(mutations),
    };
    place_make(folder, sizeof folder, "deck");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(folder);
    return failed != 0;
}
