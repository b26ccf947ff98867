#include "io/tokenizer_normalise.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "kernels/die.h"

uint32_t byte_character(uint8_t byte) {
    if ((byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD)) return byte;
    return byte <= ' ' ? 0x100u + byte : byte <= 0xA0 ? 0x100u + 33 + (byte - 127u) : 0x143;
}

int byte_of_character(uint32_t c) {
    if ((c >= '!' && c <= '~') || (c >= 0xA1 && c <= 0xFF && c != 0xAD)) return (int)c;
    if (c < 0x100 || c > 0x143) return -1;
    c -= 0x100;
    return (int)(c <= 32 ? c : c < 67 ? c - 33 + 127 : 0xAD);
}

void add_byte_characters(struct utf8_text *to, const char *text, size_t n) {
    utf8_text_reserve(to, 2 * n);
    for (size_t i = 0; i < n; i++) utf8_text_add_point(to, byte_character((uint8_t)text[i]));
}

/* ------------------------------------------------------------------------------------- normal
 * forms */
static void point_add(struct normalise_scratch *w, int32_t c) {
    if (w->n_points == w->room) {
        w->room = w->room ? 2 * w->room : 256;
        w->points = die_realloc(w->points, w->room * sizeof *w->points);
    }
    w->points[w->n_points++] = c;
}

/* Marks behind a letter, put in the order of their combining classes: a stable counting sort, since
 * a hostile text may have a million of them. */
static void order_marks(int32_t *points, size_t n) {
    int32_t *copy = NULL;
    for (size_t i = 0; i < n;) {
        size_t end = i, place[257] = {0};
        bool sorted = true;
        for (int c, before = 0;
             end < n && (c = utf8proc_get_property(points[end])->combining_class); end++) {
            sorted = sorted && c >= before;
            before = c;
            place[c + 1]++;
        }
        if (!sorted) {
            if (!copy) copy = die_alloc(n * sizeof *copy);
            for (int c = 0; c < 256; c++) place[c + 1] += place[c];
            memcpy(copy, points + i, (end - i) * sizeof *copy);
            for (size_t j = 0; j < end - i; j++)
                points[i + place[utf8proc_get_property(copy[j])->combining_class]++] = copy[j];
        }
        i = end > i ? end : i + 1;
    }
    free(copy);
}

/* Characters that may interact, normalised: everything between two that never do. */
static void normal_form(struct normalise_scratch *w, enum step_kind kind, const uint8_t *s,
                        size_t n, struct utf8_text *to) {
    bool compose = kind == STEP_NFC || kind == STEP_NFKC;
    int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
    if (kind == STEP_NFKC || kind == STEP_NFKD) options |= UTF8PROC_COMPAT;
    w->n_points = 0;
    for (size_t at = 0; at < n;) {
        int bytes, boundary = 0;
        int32_t c = (int32_t)utf8_at(s + at, &bytes), many[32];
        at += (size_t)bytes;
        long m = utf8proc_decompose_char(c, many, 32, (utf8proc_option_t)options, &boundary);
        if (m < 0 || m > 32) bug("a character decomposes into %ld", m);
        for (long i = 0; i < m; i++) point_add(w, many[i]);
    }
    order_marks(w->points, w->n_points);
    long m = (long)w->n_points;
    if (compose) m = utf8proc_normalize_utf32(w->points, m, (utf8proc_option_t)options);
    if (m < 0) bug("utf8proc: %s", utf8proc_errmsg(m));
    for (long i = 0; i < m; i++) utf8_text_add_point(to, (uint32_t)w->points[i]);
}

/* Characters below the limit are left alone by the form and nothing that follows joins those before
 * them, so a text is worked on from one of them to the next, and runs of them are copied. */
static void step_form(struct normalise_scratch *w, enum step_kind kind, struct piece *p,
                      struct utf8_text *to) {
    static const uint32_t limits[] = {
        [STEP_NFC] = 0x300, [STEP_NFD] = 0xC0, [STEP_NFKC] = 0xA0, [STEP_NFKD] = 0xA0};
    const uint8_t *s = (const uint8_t *)p->at;
    uint32_t limit = limits[kind];
    size_t first = 0;
    for (size_t at = 0, begin = 0; at < p->n; begin = at) {
        size_t safe = at, before = to->n;
        int bytes = 1;
        while (at < p->n && (s[at] < 0x80 || utf8_at(s + at, &bytes) < limit)) {
            safe = at;
            at += (size_t)(s[at] < 0x80 ? 1 : bytes);
        }
        if (at == p->n) safe = at;
        utf8_text_add(to, s + begin, safe - begin);
        if (begin < p->first) first = to->n < p->first ? to->n : p->first;
        if (at == p->n) break;
        uint32_t c = utf8_at(s + at, &bytes);
        if (unicode_inert(c)) {
            normal_form(w, kind, s + safe, at - safe, to);
            utf8_text_add(to, s + at, (size_t)bytes);
            at += (size_t)bytes;
        } else {
            while (at < p->n && (c = utf8_at(s + at, &bytes)) >= limit && !unicode_inert(c))
                at += (size_t)bytes;
            normal_form(w, kind, s + safe, at - safe, to);
        }
        if (safe < p->first && p->first) { /* what the first character alone becomes */
            size_t mark = to->n, alone;
            normal_form(w, kind, s, p->first < p->n ? p->first : p->n, to);
            alone = to->n - mark;
            to->n = mark;
            first = begin == 0 && alone <= to->n - before ? alone
                                                          : (size_t)utf8_length((uint8_t)to->at[0]);
        }
    }
    p->first = first;
}

/* -------------------------------------------------------------------------------------- other
 * steps */
static void step_points(enum step_kind kind, struct piece *p, struct utf8_text *to) {
    const uint8_t *s = (const uint8_t *)p->at;
    size_t first = 0;
    utf8_text_reserve(to, p->n);
    for (size_t at = 0; at < p->n;) {
        int bytes, n = 1;
        uint32_t c = utf8_at(s + at, &bytes), many[2] = {c};
        if (kind == STEP_LOWER) n = unicode_lower(c, many);
        else if (unicode_accent(c)) n = 0;
        for (int i = 0; i < n; i++) utf8_text_add_point(to, many[i]);
        if (at < p->first) first = to->n;
        at += (size_t)bytes;
    }
    p->first = first;
}

static bool step_replace(struct normalise_scratch *w, const struct step *k, struct piece *p,
                         struct utf8_text *to) {
    size_t done = 0, first = 0, start, end;
    int r = 0;
    if (!p->n) return true;
    finder_begin(&w->finder, k->pattern, w->matcher, p->at, p->n);
    while ((r = finder_next(&w->finder, &start, &end)) > 0) {
        utf8_text_add(to, p->at + done, start - done);
        if (done < p->first) first = to->n - (start > p->first ? start - p->first : 0);
        utf8_text_add(to, k->content.at, k->content.n);
        if (end <= p->first && end > 0) first = to->n;
        done = end;
    }
    utf8_text_add(to, p->at + done, p->n - done);
    if (done < p->first) first = to->n - (p->n - p->first);
    p->first = first;
    return r == 0;
}

static void step_strip(const struct step *k, struct piece *p, struct utf8_text *to) {
    const uint8_t *s = (const uint8_t *)p->at;
    size_t begin = 0, end = p->n;
    int bytes;
    while (k->left && begin < end && unicode_space(utf8_at(s + begin, &bytes)))
        begin += (size_t)bytes;
    while (k->right && end > begin) {
        size_t last = end - 1;
        while ((s[last] & 0xC0) == 0x80) last--;
        if (!unicode_space(utf8_at(s + last, &bytes))) break;
        end = last;
    }
    utf8_text_add(to, s + begin, end - begin);
    p->first = p->first > begin ? p->first - begin : 0;
    if (p->first > to->n) p->first = to->n;
}

static void step_bytes(struct piece *p, struct utf8_text *to) {
    add_byte_characters(to, p->at, p->first);
    size_t first = to->n;
    add_byte_characters(to, p->at + p->first, p->n - p->first);
    p->first = first;
}

static bool step_do(struct normalise_scratch *w, const struct step *k, struct piece *p,
                    struct utf8_text *to) {
    switch (k->kind) {
    case STEP_NFC:
    case STEP_NFD:
    case STEP_NFKC:
    case STEP_NFKD: step_form(w, k->kind, p, to); break;
    case STEP_LOWER:
    case STEP_STRIP_ACCENTS: step_points(k->kind, p, to); break;
    case STEP_REPLACE: return step_replace(w, k, p, to);
    case STEP_STRIP: step_strip(k, p, to); break;
    case STEP_BYTES: step_bytes(p, to); break;
    case STEP_PREPEND:
        if (p->n) utf8_text_add(to, k->content.at, k->content.n);
        utf8_text_add(to, p->at, p->n);
        if (p->first) p->first += k->content.n;
        break;
    }
    return true;
}

bool normalise(const struct normaliser *k, struct normalise_scratch *w, struct piece *p) {
    for (int i = 0; i < k->n; i++) {
        struct utf8_text *to = &w->texts[i & 1];
        to->n = 0;
        if (!step_do(w, &k->steps[i], p, to)) return false;
        p->at = to->at;
        p->n = to->n;
    }
    return true;
}

void normalise_scratch_free(struct normalise_scratch *w) {
    utf8_text_free(&w->texts[0]);
    utf8_text_free(&w->texts[1]);
    finder_free(&w->finder);
    free(w->points);
}

void normaliser_free(struct normaliser *k) {
    for (int i = 0; i < k->n; i++) {
        pattern_free(k->steps[i].pattern);
        utf8_text_free(&k->steps[i].content);
    }
    free(k->steps);
}
