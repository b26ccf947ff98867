/* The documents in files of lines: what a line of JSON says, and that it does not matter how a file
 * is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/corpora_documents.h"
#include "io/corpora_files.h"
#include "io/files.h"
#include "kernels/die.h"
#include "tests/place.h"

static void one_line(const char *line, const char *expected, int64_t bytes) {
    char *copy = die_strdup(line);
    int64_t n = (int64_t)strlen(line);
    char *text = jsonl_text(copy, &n);
    if (!text != !expected) fail_msg("%s", line);
    if (expected && (n != bytes || memcmp(text, expected, (size_t)n)))
        fail_msg("%s: %.*s", line, (int)n, text);
    free(copy);
}

static void test_lines(void **unused) {
    (void)unused;
#define SAYS(line, text) one_line(line, text, (int64_t)sizeof text - 1)
    SAYS("{\"text\": \"a b\"}", "a b");
    SAYS(" { \"id\" : 3 , \"text\":\"x\" , \"more\":[1,{\"text\":\"no\"},\"]}\"] } \r", "x");
    SAYS("{\"te\\u0078t\":\"\"}", "");
    SAYS("{\"text\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t");
    SAYS("{\"text\":\"\\u0041\\u00e4\\u20AC\\ud83d\\uDE00\"}",
         "A\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
    SAYS("{\"text\":\"\\ud83d \\ude00 \\ud83d\\u0041\"}",
         "\xef\xbf\xbd \xef\xbf\xbd \xef\xbf\xbd\x41");
    SAYS("{\"text\":\"a\\u0000b\"}", "a\0b");
    SAYS("{\"text\":\"\xff\xc3\x80\"}", "\xff\xc3\x80");
    SAYS("{\"text\":\"first\",\"text\":\"last\"}", "last");
    SAYS("{\"x\":NaN,\"text\":\"kept\",\"y\":-Infinity}", "kept");
#undef SAYS
    const char *without[] = {"",
                             "{}",
                             "[]",
                             "\"text\"",
                             "{\"text\":3}",
                             "{\"text\":null}",
                             "{\"text\":\"a}",
                             "{\"text\":\"a\"",
                             "{\"text\":\"a\"} b",
                             "{\"text\":\"\\x\"}",
                             "{\"text\":\"\\u12g4\"}",
                             "{\"text\":\"\\u12",
                             "{\"text\":\"\\",
                             "{\"text\" \"a\"}",
                             "{text:\"a\"}",
                             "{\"a\":{\"text\":\"inner\"}}",
                             "{\"text\":\"a\",}",
                             "{\"a\":,\"text\":\"b\"}",
                             "{\"a\":[1,\"text\":\"b\"}"};
    for (size_t i = 0; i < sizeof without / sizeof *without; i++) one_line(without[i], NULL, 0);
}

struct gathered {
    char *text;
    size_t n;
};

static void gather(void *to, const char *text, int64_t n) {
    struct gathered *g = to;
    g->text = die_realloc(g->text, g->n + (size_t)n + 1);
    memcpy(g->text + g->n, text, (size_t)n);
    g->text[g->n + (size_t)n] = '|';
    g->n += (size_t)n + 1;
}

/* However a file of lines is cut, each line is given once and in order. */
static void test_lines_in_parts(void **unused) {
    (void)unused;
    const char *lines =
        "{\"text\":\"one\"}\n\n{\"text\":\"two\"}\r\n  \nnonsense\n{\"text\":\"three\"}";
    char path[300];
    int64_t size = (int64_t)strlen(lines);
    place_file(path, sizeof path, "lines", lines, (size_t)size);
    struct text_file f = {.name = path, .size = size, .lines = true};
    for (int64_t a = 0; a <= size; a++)
        for (int64_t b = a; b <= size; b++) {
            struct gathered g = {0};
            int64_t without = 0, cut[] = {0, a, b, size};
            for (int k = 0; k < 3; k++)
                if (cut[k] < cut[k + 1])
                    without += documents_each(&f, cut[k], cut[k + 1], gather, &g);
            assert_int_equal(without, 1);
            assert_true(g.n == 14 && memcmp(g.text, "one|two|three|", 14) == 0);
            free(g.text);
        }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_lines_in_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
