#include "io/unicode.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "io/unicode_table.h"
#include "kernels/die.h"

void utf8_text_reserve(struct utf8_text *t, size_t more) {
    if (t->room - t->n >= more) return;
    size_t room = t->room + t->room / 2 + more + 64;
    t->at = die_realloc(t->at, room);
    t->room = room;
}

void utf8_text_add(struct utf8_text *t, const void *bytes, size_t n) {
    utf8_text_reserve(t, n);
    if (n) memcpy(t->at + t->n, bytes, n);
    t->n += n;
}

void utf8_text_add_point(struct utf8_text *t, uint32_t c) {
    utf8_text_reserve(t, 4);
    t->n += (size_t)utf8_put(c, t->at + t->n);
}

void utf8_text_free(struct utf8_text *t) {
    free(t->at);
    *t = (struct utf8_text){0};
}

int utf8_put(uint32_t c, char to[4]) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) to[i] = (char)(0x80 | (c & 63));
    to[0] = (char)((n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | c);
    return n;
}

int utf8_check(const uint8_t *s, size_t n, int *broken, bool *cut) {
    uint8_t c = s[0];
    *broken = 1;
    *cut = false;
    if (c < 0x80) return 1;
    int length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
    if (c < 0xC2 || c > 0xF4) return 0;
    /* The second byte is limited further: no longer form than needed, no surrogates, nothing above
     * U+10FFFF. */
    uint8_t low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    uint8_t high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < length; i++, low = 0x80, high = 0xBF) {
        *broken = i;
        *cut = (size_t)i >= n;
        if (*cut || s[i] < low || s[i] > high) return 0;
    }
    return length;
}

/* Where the first broken sequence begins, or n. Most text is ASCII: eight bytes at a time. */
static size_t valid_until(const uint8_t *s, size_t n) {
    size_t at = 0;
    while (at < n) {
        uint64_t eight;
        if (n - at >= 8 && (memcpy(&eight, s + at, 8), !(eight & 0x8080808080808080u))) {
            at += 8;
            continue;
        }
        int broken, length;
        bool cut;
        if (!(length = utf8_check(s + at, n - at, &broken, &cut))) return at;
        at += (size_t)length;
    }
    return n;
}

bool utf8_text_repair(const char *bytes, size_t n, struct utf8_text *to) {
    const uint8_t *s = (const uint8_t *)bytes;
    size_t good = valid_until(s, n);
    if (good == n) return true;
    to->n = 0;
    for (size_t at = 0; at < n; good = valid_until(s + at, n - at)) {
        utf8_text_add(to, s + at, good);
        at += good;
        if (at == n) break;
        int broken;
        bool cut;
        utf8_check(s + at, n - at, &broken, &cut);
        utf8_text_add(to, "\xEF\xBF\xBD", 3);
        at += (size_t)broken;
    }
    return false;
}

/* ----------------------------------------------------------------------------------------- the
 * table */
static struct unicode *table;

static bool inside(const struct range *r, int n, uint32_t c) {
    int low = 0, high = n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (c > r[middle].last) low = middle + 1;
        else high = middle;
    }
    return low < n && c >= r[low].first;
}

static void table_make(void) {
    enum { ALTERNATING = 31 };
    struct unicode *u = die_alloc(sizeof *u);
    for (int i = 0; i < n_unicode_runs; i++) {
        uint32_t first = unicode_runs[i] >> 5, kind = unicode_runs[i] & 31;
        uint32_t end = i + 1 < n_unicode_runs ? unicode_runs[i + 1] >> 5 : CODE_POINTS;
        for (uint32_t c = first; c < end; c++)
            u->category[c] = (uint8_t)(kind == ALTERNATING ? (c - first) & 1 : kind);
    }
    static const uint8_t of[32] = {
        [CAT_LU] = IS_LETTER | IS_UPPER,
        [CAT_LL] = IS_LETTER | IS_LOWER,
        [CAT_LT] = IS_LETTER | IS_UPPER,
        [CAT_LM] = IS_LETTER | IS_UPPER | IS_LOWER,
        [CAT_LO] = IS_LETTER | IS_UPPER | IS_LOWER,
        [CAT_MN] = IS_UPPER | IS_LOWER,
        [CAT_MC] = IS_UPPER | IS_LOWER,
        [CAT_ME] = IS_UPPER | IS_LOWER,
        [CAT_ND] = IS_NUMBER,
        [CAT_NL] = IS_NUMBER,
        [CAT_NO] = IS_NUMBER,
    };
    for (uint32_t c = 0; c < CODE_POINTS; c++)
        u->is[c] = (uint8_t)(of[u->category[c]] | (unicode_space(c) ? IS_SPACE : 0));
    table = u;
}

const struct unicode *unicode(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, table_make);
    return table;
}

bool unicode_space(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool unicode_numeric(uint32_t c) {
    return (unicode()->is[c] & IS_NUMBER) ||
           (c >= 0x80 && inside(numeric_extra, n_numeric_extra, c));
}

bool unicode_punctuation(uint32_t c) {
    if (c < 0x80) return c > ' ' && c < 127 && !(unicode()->is[c] & (IS_LETTER | IS_NUMBER));
    if (c == 0x166D || c == 0x111C9) return true;
    uint8_t k = unicode()->category[c];
    return k >= CAT_PC && k <= CAT_PO && !inside(not_punctuation, n_not_punctuation, c);
}

bool unicode_word(uint32_t c) {
    uint8_t k = unicode()->category[c];
    if (k <= CAT_NL || k == CAT_PC) return true;
    return c == 0x200C || c == 0x200D || (c >= 0x24B6 && inside(word_extra, n_word_extra, c));
}

bool unicode_accent(uint32_t c) {
    uint8_t k = unicode()->category[c];
    if (c == 0x1CF2 || c == 0x1CF3) return true;
    return k >= CAT_MN && k <= CAT_ME && !inside(not_accent, n_not_accent, c);
}

bool unicode_inert(uint32_t c) {
    return c >= 0x300 && inside(inert_runs, n_inert_runs, c);
}

/* Newer than the oldest utf8proc that distributions have (Unicode 12); {first, last, added}. */
static const struct {
    uint32_t first, last;
    int32_t added;
} lowered[] = {
    {0x1C89, 0x1C89, 1},      {0x2C2F, 0x2C2F, 0x30},   {0xA7C0, 0xA7C0, 1},
    {0xA7C7, 0xA7C7, 1},      {0xA7C9, 0xA7C9, 1},      {0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
    {0xA7CC, 0xA7CC, 1},      {0xA7CE, 0xA7CE, 1},      {0xA7D0, 0xA7D0, 1},
    {0xA7D2, 0xA7D2, 1},      {0xA7D4, 0xA7D4, 1},      {0xA7D6, 0xA7D6, 1},
    {0xA7D8, 0xA7D8, 1},      {0xA7DA, 0xA7DA, 1},      {0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
    {0xA7F5, 0xA7F5, 1},      {0x10570, 0x1057A, 0x27}, {0x1057C, 0x1058A, 0x27},
    {0x1058C, 0x10592, 0x27}, {0x10594, 0x10595, 0x27}, {0x10D50, 0x10D65, 0x20},
    {0x16EA0, 0x16EB8, 0x1B},
};

int unicode_lower(uint32_t c, uint32_t to[2]) {
    to[0] = c;
    if (c < 0x80) {
        if (c >= 'A' && c <= 'Z') to[0] = c + 32;
        return 1;
    }
    if (c == 0x130) {
        to[0] = 'i';
        to[1] = 0x307;
        return 2;
    }
    for (size_t i = 0; c >= 0x1C89 && i < sizeof lowered / sizeof *lowered; i++)
        if (c >= lowered[i].first && c <= lowered[i].last) {
            to[0] = (uint32_t)((int32_t)c + lowered[i].added);
            return 1;
        }
    to[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
    return 1;
}
