/* Patterns that split text: those written by hand against their regular expressions, the ones that
 * must be refused, and one that would not end. */
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

#include "io/tokenizer.h"
#include "io/tokenizer_known.h"
#include "io/tokenizer_pattern.h"
#include "io/unicode.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "tests/place.h"
#include "tests/tokenizing.h"

static void one_known(const struct known *k, const struct pattern *p, struct finder *f,
                      struct matcher *m) {
    static const uint32_t some[] = {
        ' ',  ' ',  '\n',   '\r',   '\'', 's',   'S',    't',     'l',   'L',    'r',   'e',
        'v',  'd',  'M',    '/',    '.',  '1',   'a',    'Z',     0x17F, 0x301,  0x1C5, 0x2B0,
        0xE9, 0xC9, 0x4E00, 0x3000, 0x85, 0x660, 0x2167, 0x1F600, 0x903, 0x20DD, 0xAA};
    struct utf8_text s = {0};
    for (uint32_t i = draw(24); i > 0; i--) {
        uint32_t c = draw(4)   ? some[draw(sizeof some / sizeof *some)]
                     : draw(8) ? draw(0x3000)
                               : draw(0x20000);
        if (c < 0xD800 || c > 0xDFFF) utf8_text_add_point(&s, c);
    }
    size_t at = 0, start, end;
    finder_begin(f, p, m, s.n ? s.at : "", s.n);
    while (finder_next(f, &start, &end) > 0) {
        size_t own = k->end(k, (const uint8_t *)s.at, s.n, at);
        if (start != at || own != end)
            fail_msg("%s: from %zu to %zu, by hand from %zu to %zu", k->pattern, start, end, at,
                     own);
        at = end;
    }
    assert_int_equal(at, s.n);
    utf8_text_free(&s);
}

static void test_known_patterns(void **unused) {
    (void)unused;
    const struct known *all;
    struct matcher *m = matcher_make();
    struct finder f = {0};
    char why[200];
    int n = known_all(&all);
    for (int i = 0; i < n; i++) {
        struct pattern *p =
            pattern_compile(all[i].pattern, strlen(all[i].pattern), false, why, sizeof why);
        assert_non_null(p);
        assert_ptr_equal(p->known, &all[i]);
        for (int j = 0; j < 20000; j++) one_known(&all[i], p, &f, m);
        pattern_free(p);
    }
    finder_free(&f);
    matcher_free(m);
}

static void test_bad_patterns(void **unused) {
    (void)unused;
    static const char *const bad[] = {
        "(",        ")",       "[",      "[]",           "[z-a]",
        "a{2,1}",   "*a",      "a**",    "\\",           "\\p{Klingon}",
        "\\p{L",    "(?<n>a)", "\\1",    "(?i:ss)",      "\\x{110000}",
        "a{99999}", "(?x)a",   "\\k<a>", "[[:foo:]]",    "(?<=a+)b",
        "\\Ga",     "{",       "a{2}?",  "(?i:\xC3\xA9)"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char why[200] = "";
        struct pattern *p = pattern_compile(bad[i], strlen(bad[i]), false, why, sizeof why);
        if (p || !*why) fail_msg("%s was taken", bad[i]);
    }
}

/* A pattern that runs wild is an answer, not a hang. */
static void test_runaway(void **unused) {
    (void)unused;
    const char *file = "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}, "
                       "\"pre_tokenizer\": {\"type\": \"Split\", "
                       "\"pattern\": {\"Regex\": \"b|(a|a|aa)+[^a]\"}, \"behavior\": \"Isolated\", "
                       "\"invert\": false}}";
    char path[300], text[60];
    place_file(path, sizeof path, "pattern", file, strlen(file));
    struct tokenizer *t = opened(path);
    assert_non_null(t);
    struct encoder *e = encoder_make(t);
    struct ids ids = {0};
    memset(text, 'a', sizeof text);
    assert_int_equal(tokenizer_encode(e, text, sizeof text, false, &ids), -1);
    assert_non_null(strstr(encoder_why(e), "too many steps"));
    ids_free(&ids);
    encoder_free(e);
    tokenizer_close(t);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_patterns),
        cmocka_unit_test(test_bad_patterns),
        cmocka_unit_test(test_runaway),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
