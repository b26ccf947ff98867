#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer_pattern.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_known.h"
#include "io/tokenizer_syntax.h"
#include "kernels/die.h"

/* The classes: two characters are of one class if every set of the pattern holds both or neither.
 */
struct classes {
    int n;
    uint64_t member[256]; /* [class]: the sets it is in */
};

static int cmp_u32(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Class 0 is never given, so that no class is the byte 0. Returns false if there are more than a
 * byte can say. */
static bool classes_make(struct classes *k, const struct syntax *s, uint8_t *class_of) {
    size_t n = 1;
    for (int i = 0; i < s->n_sets; i++) n += 2 * s->sets[i].n;
    uint32_t *edge = die_alloc((n + 1) * sizeof *edge);
    size_t m = 0, at[MAX_SETS] = {0};
    edge[m++] = 0;
    for (int i = 0; i < s->n_sets; i++)
        for (size_t j = 0; j < s->sets[i].n; j++) {
            edge[m++] = s->sets[i].at[j].first;
            edge[m++] = s->sets[i].at[j].last + 1;
        }
    qsort(edge, m, sizeof *edge, cmp_u32);
    edge[m] = CODE_POINTS;
    k->n = 1;
    bool fits = true;
    for (size_t e = 0; e < m && fits; e++) {
        uint32_t first = edge[e], end = edge[e + 1];
        if (first >= CODE_POINTS || first == end) continue;
        uint64_t member = 0;
        for (int i = 0; i < s->n_sets; i++) {
            const struct set *set = &s->sets[i];
            while (at[i] < set->n && set->at[at[i]].last < first) at[i]++;
            if (at[i] < set->n && set->at[at[i]].first <= first) member |= (uint64_t)1 << i;
        }
        int c = 1;
        while (c < k->n && k->member[c] != member) c++;
        fits = c < 256;
        if (!fits) break;
        if (c == k->n) k->member[k->n++] = member;
        memset(class_of + first, c, end - first);
    }
    free(edge);
    return fits;
}

/* The pattern with its sets written as sets of classes. */
static void render(const struct syntax *s, const struct classes *k, struct utf8_text *to) {
    for (size_t i = 0; i < s->out.n; i++) {
        char c = s->out.at[i];
        if (c != SET_MARK) {
            utf8_text_add(to, &c, 1);
            continue;
        }
        int set = (uint8_t)s->out.at[++i] - 1, members = 0;
        size_t begin = to->n;
        utf8_text_add(to, "[", 1);
        for (int j = 1; j < k->n; j++) {
            if (!(k->member[j] >> set & 1)) continue;
            char hex[8] = {'\\', 'x', "0123456789abcdef"[j >> 4], "0123456789abcdef"[j & 15]};
            utf8_text_add(to, hex, 4);
            members++;
        }
        utf8_text_add(to, "]", 1);
        if (members) continue;
        to->n = begin;
        utf8_text_add(to, "(?!)", 4);
    }
}

static bool compile(struct pattern *p, const struct syntax *s, char *why, size_t n_why) {
    p->class_of = die_alloc(CODE_POINTS);
    struct classes *k = die_alloc(sizeof *k);
    struct utf8_text out = {0};
    bool good = classes_make(k, s, p->class_of);
    if (!good) snprintf(why, n_why, "tells more than 255 kinds of characters apart");
    if (good) {
        render(s, k, &out);
        int error;
        size_t at;
        p->code = pcre2_compile((PCRE2_SPTR)out.at, out.n, 0, &error, &at, NULL);
        good = p->code != NULL;
        if (!good) {
            char text[160];
            pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
            snprintf(why, n_why, "%s", text);
        } else
            pcre2_jit_compile(p->code,
                              PCRE2_JIT_COMPLETE); /* where there is none it is interpreted */
    }
    utf8_text_free(&out);
    free(k);
    return good;
}

struct pattern *pattern_compile(const char *text, size_t n, bool literal, char *why, size_t n_why) {
    struct pattern *p = die_alloc(sizeof *p);
    bool good;
    if (literal) {
        good = n > 0;
        if (!good) snprintf(why, n_why, "is empty");
        utf8_text_add(&p->literal, text, n);
    } else {
        struct syntax *s = syntax_read(text, n, why, n_why);
        good = s && compile(p, s, why, n_why);
        syntax_free(s);
        p->known = known_find(text, n);
    }
    if (good) return p;
    pattern_free(p);
    return NULL;
}

void pattern_free(struct pattern *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    free(p->class_of);
    utf8_text_free(&p->literal);
    free(p);
}

/* -----------------------------------------------------------------------------------------
 * matching */
struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

struct matcher *matcher_make(void) {
    struct matcher *m = die_alloc(sizeof *m);
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create(32 * 1024, 16 << 20, NULL);
    if (!m->data || !m->context) die("no memory to match patterns");
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    pcre2_set_match_limit(m->context, 10 * 1000 * 1000);
    pcre2_set_heap_limit(m->context, 1 << 20); /* KiB */
    return m;
}

void matcher_free(struct matcher *m) {
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    if (m->stack) pcre2_jit_stack_free(m->stack);
    free(m);
}

void finder_begin(struct finder *f, const struct pattern *p, struct matcher *m, const char *text,
                  size_t n) {
    f->pattern = p;
    f->matcher = m;
    f->text = (const uint8_t *)text;
    f->n = n;
    f->from = f->char_at = f->at = 0;
    f->last = SIZE_MAX;
    f->classes.n = 0;
    if (!p->code) return;
    utf8_text_reserve(&f->classes, n + 1);
    char *to = f->classes.at;
    for (size_t at = 0; at < n;) {
        int bytes;
        *to++ = (char)p->class_of[utf8_at(f->text + at, &bytes)];
        at += (size_t)bytes;
    }
    f->classes.n = (size_t)(to - f->classes.at);
    f->ascii = f->classes.n == n;
}

void finder_free(struct finder *f) {
    utf8_text_free(&f->classes);
}

static size_t place(struct finder *f, size_t character) {
    if (f->ascii) return character;
    for (; f->char_at < character; f->char_at++) f->at += (size_t)utf8_length(f->text[f->at]);
    return f->at;
}

static int next_literal(struct finder *f, size_t *start, size_t *end) {
    const struct utf8_text *l = &f->pattern->literal;
    const uint8_t *found =
        f->n - f->from < l->n ? NULL : memmem(f->text + f->from, f->n - f->from, l->at, l->n);
    if (!found) return 0;
    *start = (size_t)(found - f->text);
    *end = f->from = *start + l->n;
    return 1;
}

int finder_next(struct finder *f, size_t *start, size_t *end) {
    if (!f->pattern->code) return next_literal(f, start, end);
    PCRE2_SPTR subject = (PCRE2_SPTR)f->classes.at;
    size_t n = f->classes.n;
    const size_t *found = pcre2_get_ovector_pointer(f->matcher->data);
    for (; f->from <= n; f->from++) {
        int r = pcre2_match(f->pattern->code, subject, n, f->from, PCRE2_NO_UTF_CHECK,
                            f->matcher->data, f->matcher->context);
        if (r == PCRE2_ERROR_JIT_STACKLIMIT)
            r = pcre2_match(f->pattern->code, subject, n, f->from,
                            PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, f->matcher->data,
                            f->matcher->context);
        if (r == PCRE2_ERROR_NOMATCH) return 0;
        if (r < 0) return -1;
        size_t s = found[0], e = found[1];
        /* A match of nothing right behind the last one does not count. */
        if (s == e && f->last == e) continue;
        *start = place(f, s);
        *end = place(f, e);
        f->from = f->last = e;
        return 1;
    }
    return 0;
}
