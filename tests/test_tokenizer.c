/* Tokenizers against what the `tokenizers` package made of the same strings (tests/tokenizers, by
 * tests/reference/tokenizing.py), several threads against one, files that must be refused, and
 * files that are damaged at random.
 *
 *     test_tokenizer live FOLDER STRINGS [IDS]      ids and texts of length-prefixed strings, as
 *                                                   32-bit numbers, for comparing
 *     test_tokenizer cases FOLDER STRINGS TOKENS    the fixture's strings as lines of JSON, and
 *                                                   what `mestar` is to make of them
 *     test_tokenizer bench FOLDER TEXT [THREADS]    the speed on one text
 */
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "io/files.h"
#include "io/tokenizer.h"
#include "io/unicode.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "tests/place.h"
#include "tests/tokenizing.h"

static char *whole_file(const char *path, int64_t *n) {
    char why[WHY_BYTES], *s = file_text(path, (int64_t)1 << 34, n, why);
    if (!s) die("%s: %s", path, why);
    return s;
}

/* -------------------------------------------------------------------------------------------
 * answers */
static void add_number(struct utf8_text *to, int64_t n) {
    int32_t x = (int32_t)n;
    utf8_text_add(to, &x, 4);
}

/* Decoded at once; the same given id by id must agree, and never give half a character. */
static void answer_text(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip,
                        struct utf8_text *to) {
    struct utf8_text once = {0}, slowly = {0}, ignored = {0};
    struct detokenizer *d = detokenizer_make(t, skip);
    tokenizer_decode(t, ids, n, skip, &once);
    for (int64_t i = 0; i <= n; i++) {
        size_t before = slowly.n;
        if (i < n) detokenizer_push(d, ids[i], &slowly);
        else detokenizer_finish(d, &slowly);
        if (slowly.n > before && !utf8_text_repair(slowly.at + before, slowly.n - before, &ignored))
            die("half a character was given out");
    }
    if (once.n != slowly.n || (once.n && memcmp(once.at, slowly.at, once.n) != 0))
        die("decoding id by id differs");
    add_number(to, (int64_t)once.n);
    utf8_text_add(to, once.at, once.n);
    detokenizer_free(d);
    utf8_text_free(&once);
    utf8_text_free(&slowly);
    utf8_text_free(&ignored);
}

static void answer(const struct tokenizer *t, struct encoder *e, const char *at, size_t n,
                   struct utf8_text *to) {
    struct ids ids = {0};
    char *copy = die_alloc(n ? n : 1); /* of its own, so that a sanitizer sees the ends */
    memcpy(copy, at, n);
    if (tokenizer_encode(e, copy, n, true, &ids) != 0) die("%s", encoder_why(e));
    free(copy);
    add_number(to, ids.n);
    utf8_text_add(to, ids.at, (size_t)ids.n * sizeof *ids.at);
    answer_text(t, ids.at, ids.n, false, to);
    answer_text(t, ids.at, ids.n, true, to);
    ids_free(&ids);
}

static uint32_t number_at(const char *at) {
    uint32_t n;
    memcpy(&n, at, 4);
    return n;
}

static void answers(const char *folder, const char *strings, size_t n, struct utf8_text *to) {
    struct tokenizer *t = opened(folder);
    if (!t) exit(2);
    struct encoder *e = encoder_make(t);
    for (size_t i = 0; i < n; i += 4 + number_at(strings + i))
        answer(t, e, strings + i + 4, number_at(strings + i), to);
    encoder_free(e);
    tokenizer_close(t);
}

static int live(int argc, char **argv) {
    struct utf8_text to = {0};
    int64_t n;
    char *s = whole_file(argv[3], &n);
    answers(argv[2], s, (size_t)n, &to);
    free(s);
    if (argc > 4) { /* lists of ids, each after its number */
        struct tokenizer *t = opened(argv[2]);
        s = whole_file(argv[4], &n);
        for (int64_t i = 0; i < n; i += 4 + 4 * (int64_t)number_at(s + i)) {
            int32_t many[64];
            uint32_t k = number_at(s + i);
            memcpy(many, s + i + 4, 4 * (size_t)k);
            add_number(&to, 0);
            answer_text(t, many, k, false, &to);
            answer_text(t, many, k, true, &to);
        }
        free(s);
        tokenizer_close(t);
    }
    fwrite(to.at, 1, to.n, stdout);
    utf8_text_free(&to);
    return 0;
}

/* The fixture's strings that JSON can spell, a line each, and {ids, text} for each as
 * convert.what tokens writes it. */
static int cases_as_lines(char **argv) {
    int64_t n;
    char *path = die_format("%s/cases", argv[2]), *s = whole_file(path, &n);
    FILE *in = fopen(argv[3], "w"), *out = fopen(argv[4], "w");
    if (!in || !out) die("cannot write %s and %s", argv[3], argv[4]);
    const char *string = s + 4, *end = string + number_at(s), *answer = end;
    for (; string < end; string += 4 + number_at(string)) {
        json_t *text = json_stringn(string + 4, number_at(string));
        uint32_t ids = number_at(answer);
        const char *at = answer + 4, *whole = at + 4 * (size_t)ids,
                   *skipped = whole + 4 + number_at(whole);
        answer = skipped + 4 + number_at(skipped);
        if (!text) continue;
        json_dumpf(text, in, JSON_ENCODE_ANY);
        fprintf(in, "\n");
        fprintf(out, "{\"ids\": [");
        for (uint32_t i = 0; i < ids; i++)
            fprintf(out, i ? ", %u" : "%u", number_at(at + 4 * (size_t)i));
        fprintf(out, "], \"text\": ");
        json_t *decoded = json_stringn(skipped + 4, number_at(skipped));
        json_dumpf(decoded, out, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        fprintf(out, "}\n");
        json_decref(decoded);
        json_decref(text);
    }
    free(s);
    free(path);
    return fclose(in) || fclose(out);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int bench(int argc, char **argv) {
    int threads = argc > 4 ? atoi(argv[4]) : 1;
    struct ids ids = {0};
    int64_t n;
    double before = now();
    struct tokenizer *t = opened(argv[2]);
    if (!t) return 2;
    double open_s = now() - before;
    char *s = whole_file(argv[3], &n);
    before = now();
    if (tokenizer_encode_threads(t, threads, s, (size_t)n, false, &ids) != 0)
        die("a pattern ran wild");
    double encode_s = now() - before;
    struct utf8_text text = {0};
    before = now();
    tokenizer_decode(t, ids.at, ids.n, false, &text);
    printf("%.1f MB/s by %d threads, decoding %.1f MB/s, opened in %.3f s, %lld ids\n",
           (double)n / encode_s * 1e-6, threads, (double)text.n / (now() - before) * 1e-6, open_s,
           (long long)ids.n);
    utf8_text_free(&text);
    ids_free(&ids);
    free(s);
    tokenizer_close(t);
    return 0;
}

/* --------------------------------------------------------------------------------------------
 * fixtures */
static void each_fixture(void (*test)(const char *folder)) {
    glob_t found;
    assert_int_equal(glob("tests/tokenizers/*/tokenizer.json", 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= 10);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *folder = die_strdup(found.gl_pathv[i]);
        *strrchr(folder, '/') = 0;
        test(folder);
        free(folder);
    }
    globfree(&found);
}

/* The file `cases`: the bytes of all strings, the strings, and the right answers. */
static void fixture_equal(const char *folder) {
    struct utf8_text got = {0};
    int64_t n;
    char *path = die_format("%s/cases", folder), *s = whole_file(path, &n);
    size_t strings = number_at(s), want = (size_t)n - 4 - strings;
    answers(folder, s + 4, strings, &got);
    size_t same = 0;
    while (same < got.n && same < want && got.at[same] == s[4 + strings + same]) same++;
    if (same != got.n || same != want)
        fail_msg("%s: answers differ at byte %zu of %zu (%zu)", folder, same, want, got.n);
    utf8_text_free(&got);
    free(s);
    free(path);
}

static void test_fixtures(void **unused) {
    (void)unused;
    each_fixture(fixture_equal);
}

/* Text of many kinds, long enough to be shared out. */
static void strange_text(struct utf8_text *to, size_t n) {
    static const char *const parts[] = {" the",
                                        " of\n",
                                        "int",
                                        "\n",
                                        "\n\n",
                                        "A",
                                        " 12345",
                                        "...",
                                        "\xC3\xA9",
                                        "\xE4\xB8\xAD",
                                        "e\xCC\x81",
                                        "  ",
                                        "\t",
                                        "<|endoftext|>",
                                        "<s>",
                                        "'s",
                                        "\xF0\x9F\x98\x80",
                                        "word",
                                        "\xE2\x96\x81",
                                        "\r\n",
                                        "a-b",
                                        "Hello",
                                        "\xFF",
                                        "\xD0\xBF\xD1\x80\xD0\xB8",
                                        "=====",
                                        "/",
                                        " x",
                                        "<mask>",
                                        "\xC5\xBF"};
    while (to->n < n) {
        const char *p = parts[draw(sizeof parts / sizeof *parts)];
        for (uint32_t k = draw(16) ? 1 : draw(300); k > 0; k--) utf8_text_add(to, p, strlen(p));
    }
}

static void threads_equal(const char *folder) {
    struct tokenizer *t = opened(folder);
    struct encoder *e = encoder_make(t);
    struct utf8_text text = {0};
    struct ids one = {0}, many = {0};
    strange_text(&text, 900000);
    assert_int_equal(tokenizer_encode(e, text.at, text.n, true, &one), 0);
    assert_int_equal(tokenizer_encode_threads(t, 3, text.at, text.n, true, &many), 0);
    if (one.n != many.n || memcmp(one.at, many.at, (size_t)one.n * sizeof *one.at) != 0)
        fail_msg("%s", folder);
    ids_free(&one);
    ids_free(&many);
    utf8_text_free(&text);
    encoder_free(e);
    tokenizer_close(t);
}

static void test_threads(void **unused) {
    (void)unused;
    each_fixture(threads_equal);
}

/* -----------------------------------------------------------------------------------------------
 * files */
static void file_write(const char *path, const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, n, f) != n || fclose(f) != 0) die("cannot write %s", path);
}

/* before, then `n` times open, middle, n times close, after: deep nesting does not tire anyone. */
static void refused_deep(const char *path, const char *before, const char *open, const char *close,
                         const char *after, int n, const char *said) {
    struct utf8_text t = {0};
    struct mistakes m = {0};
    utf8_text_add(&t, before, strlen(before));
    for (int i = 0; i < n; i++) utf8_text_add(&t, open, strlen(open));
    for (int i = 0; i < n; i++) utf8_text_add(&t, close, strlen(close));
    utf8_text_add(&t, after, strlen(after));
    file_write(path, t.at, t.n);
    assert_null(tokenizer_open(path, &m));
    assert_true(m.n == 1 && strstr(m.text[0], said));
    mistakes_free(&m);
    utf8_text_free(&t);
}

#define MODEL(more)                                                                                \
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a " \
    "b\"]" more "}"
#define ADDED(id, content)                                                                         \
    "{\"id\": " id ", \"content\": \"" content                                                     \
    "\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "                           \
    "\"normalized\": false, \"special\": true}"
static const struct {
    const char *file, *said;
} bad[] = {
    {"", "is not JSON"},
    {"[]", "is not an object"},
    {"{", "is not JSON"},
    {"{}", "model.type"},
    {"{\"model\": {\"type\": \"WordPiece\"}}", "model.type: WordPiece is not built"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}, \"merges\": []}}",
     "model.vocab: the id of \"a\""},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 4294967296}, \"merges\": []}}",
     "model.vocab: the id of \"a\""},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1.5}, \"merges\": []}}",
     "model.vocab: the id of \"a\""},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1, \"b\": 1}, \"merges\": []}}",
     "two tokens have the id 1"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1, \"a\": 2}, \"merges\": []}}",
     "is not JSON: duplicate"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1}, \"merges\": [\"a a\"]}}",
     "model.merges[0]: names a token"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1}, \"merges\": [\"a\"]}}",
     "model.merges[0]: must be two tokens"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1}, \"merges\": [[\"a\"]]}}",
     "model.merges[0]: must be two tokens"},
    {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1}}}", "model.merges: must be a list"},
    {"{" MODEL(", \"dropout\": 0.1") "}", "model.dropout"},
    {"{" MODEL(", \"unk_token\": \"<unk>\"") "}", "model.unk_token"},
    {"{" MODEL(", \"fuse_unk\": 1") "}", "fuse_unk must be true or false"},
    {"{" MODEL("") ", \"truncation\": {}}", "truncation: must be null"},
    {"{" MODEL("") ", \"padding\": {}}", "padding: must be null"},
    {"{" MODEL("") ", \"version\": \"2.0\"}", "version"},
    {"{" MODEL("") ", \"normalizer\": {\"type\": \"Nmt\"}}",
     "normalizer: the normalizer Nmt is not built"},
    {"{" MODEL("") ", \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": "
                   "\"NFC\"}, {\"type\": \"Precompiled\"}]}}",
     "normalizer[1]: the normalizer Precompiled"},
    {"{" MODEL("") ", \"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(\"}, "
                   "\"content\": \"\"}}",
     "normalizer: pattern ("},
    {"{" MODEL("") ", \"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}}",
     "pre_tokenizer: the pre-tokenizer BertPreTokenizer"},
    {"{" MODEL("") ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": "
                   "\"a\"}, \"behavior\": \"Up\", \"invert\": false}}",
     "behavior must be"},
    {"{" MODEL("") ", \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}}",
     "replacement must be one character"},
    {"{" MODEL("") ", \"decoder\": {\"type\": \"CTC\"}}", "decoder: the decoder CTC is not built"},
    {"{" MODEL("") ", \"post_processor\": {\"type\": \"Mystery\"}}",
     "post_processor: Mystery is not built"},
    {"{" MODEL("") ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": "
                   "[{\"SpecialToken\": {\"id\": \"x\"}}]}}",
     "post_processor.single"},
    {"{" MODEL("") ", \"added_tokens\": [" ADDED("7", "<s>") "]}",
     "has the id 7, by its place it has 3"},
    {"{" MODEL("") ", \"added_tokens\": [" ADDED("3", "<s>") ", " ADDED("3", "<s>") "]}",
     "added_tokens[1]"},
    {"{" MODEL("") ", \"added_tokens\": [{\"id\": 3, \"content\": \"<s>\"}]}",
     "single_word must be true or false"},
};

static void test_refused(void **unused) {
    (void)unused;
    char path[300];
    place_file(path, sizeof path, "tokenizer", "", 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct mistakes m = {0};
        file_write(path, bad[i].file, strlen(bad[i].file));
        struct tokenizer *t = tokenizer_open(path, &m);
        bool said = false;
        for (int j = 0; j < m.n; j++)
            said = said || (strstr(m.text[j], bad[i].said) && strstr(m.text[j], path));
        if (t || !said) {
            mistakes_print(&m, stderr);
            fail_msg("%s: expected %s", bad[i].file, bad[i].said);
        }
        mistakes_free(&m);
    }
    refused_deep(path, "", "[", "]", "", 1000000, "is not JSON");
    refused_deep(
        path, "{" MODEL("") ", \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [",
        "{\"type\": \"Sequence\", \"normalizers\": [", "]}", "]}}", 500, "is nested too deeply");
    refused_deep(path,
                 "{" MODEL("") ", \"normalizer\": {\"type\": \"Replace\", \"content\": \"\", "
                               "\"pattern\": {\"Regex\": \"a",
                 "(", ")", "\"}}}", 100000, "nested too deeply");
    unlink(path);
    struct mistakes m = {0};
    assert_null(tokenizer_open("/nowhere/at/all", &m));
    assert_int_equal(m.n, 1);
    mistakes_free(&m);
}

/* A file with some bytes changed is refused or works: it never leads astray. */
static void damage(const char *folder) {
    int64_t n;
    char *from = die_format("%s/tokenizer.json", folder), *s = whole_file(from, &n), path[300];
    static const char *const put[] = {"\"",   "{",        "}",       "[",    "]",        "null",
                                      "-1",   "99999999", "\\u0000", "true", "\"type\"", ",",
                                      "\xFF", "(",        "+",       "{3}"};
    place_file(path, sizeof path, "tokenizer", "", 0);
    for (int i = 0; i < (getenv("LONG") ? 400 : 12); i++) {
        struct utf8_text t = {0}, out = {0};
        struct mistakes m = {0};
        utf8_text_add(&t, s, (size_t)n);
        for (uint32_t k = 1 + draw(3); k > 0; k--) {
            /* Half of them near the beginning, where the structure is. */
            size_t at = draw(2) ? draw((uint32_t)t.n) : draw((uint32_t)(t.n < 4000 ? t.n : 4000));
            const char *p = put[draw(sizeof put / sizeof *put)];
            if (draw(3) == 0) t.at[at] ^= (char)(1 << draw(8));
            else if (draw(8) == 0) t.n = at + 1;
            else memcpy(t.at + at, p, strlen(p) < t.n - at ? strlen(p) : t.n - at);
        }
        file_write(path, t.at, t.n);
        struct tokenizer *k = tokenizer_open(path, &m);
        assert_true(k || m.n);
        if (k) {
            struct encoder *e = encoder_make(k);
            struct ids ids = {0};
            struct utf8_text text = {0};
            strange_text(&text, 300);
            tokenizer_encode(e, text.at, text.n, true, &ids);
            tokenizer_decode(k, ids.at, ids.n, false, &out);
            utf8_text_free(&text);
            ids_free(&ids);
            encoder_free(e);
            tokenizer_close(k);
        }
        mistakes_free(&m);
        utf8_text_free(&t);
        utf8_text_free(&out);
    }
    unlink(path);
    free(s);
    free(from);
}

static void test_damaged(void **unused) {
    (void)unused;
    each_fixture(damage);
}

/* --------------------------------------------------------------------------------------- the
 * built-in kind */
static void test_bytes(void **unused) {
    (void)unused;
    struct tokenizer *t = opened("bytes");
    struct encoder *e = encoder_make(t);
    struct ids ids = {0};
    struct utf8_text text = {0};
    assert_int_equal(tokenizer_size(t), 257);
    assert_int_equal(tokenizer_eos(t), 256);
    assert_int_equal(tokenizer_encode(e, "a\0\xC3\xA9\xFF\xE2\x82", 7, true, &ids), 0);
    assert_int_equal(ids.n, 7);
    assert_int_equal(ids.at[4], 0xFF);
    ids_add(&ids, 256);
    tokenizer_decode(t, ids.at, ids.n, true, &text);
    assert_int_equal(text.n, 10);
    assert_memory_equal(text.at, "a\0\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD", 10);
    ids_free(&ids);
    utf8_text_free(&text);
    encoder_free(e);
    tokenizer_close(t);
}

static void test_asking(void **unused) {
    (void)unused;
    struct tokenizer *t = opened("tests/tokenizers/llama3");
    assert_non_null(t);
    int32_t begin = tokenizer_id(t, "<|begin_of_text|>");
    assert_int_equal(tokenizer_bos(t), begin);
    assert_int_equal(tokenizer_eos(t), tokenizer_id(t, "<|end_of_text|>"));
    assert_true(begin >= 0 && begin < tokenizer_size(t) && tokenizer_is_special(t, begin));
    size_t n;
    assert_memory_equal(tokenizer_token(t, begin, &n), "<|begin_of_text|>", 17);
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    assert_null(tokenizer_token(t, tokenizer_size(t), &n));
    tokenizer_close(t);
}

int main(int argc, char **argv) {
    if (argc > 3 && !strcmp(argv[1], "live")) return live(argc, argv);
    if (argc > 3 && !strcmp(argv[1], "bench")) return bench(argc, argv);
    if (argc > 4 && !strcmp(argv[1], "cases")) return cases_as_lines(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures), cmocka_unit_test(test_threads),

        cmocka_unit_test(test_refused),  cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_bytes),    cmocka_unit_test(test_asking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
