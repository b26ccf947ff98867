#include "io/tokenizer_syntax.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

enum { DEEPEST = 40, MOST_REPEATS = 1000 };

struct reader {
    const uint8_t *s;
    size_t n, at;
    struct syntax *to;
    bool fold;         /* within (?i) */
    uint32_t previous; /* the literal letter just before, under (?i) */
    int depth;
    char *why;
    size_t n_why;
    bool failed;
};

__attribute__((format(printf, 2, 3))) static void fail(struct reader *r, const char *fmt, ...);

static void fail(struct reader *r, const char *fmt, ...) {
    if (r->failed) return;
    r->failed = true;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(r->why, r->n_why, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < r->n_why)
        snprintf(r->why + n, r->n_why - (size_t)n, " (at character %zu of the pattern)", r->at + 1);
}

static bool more(const struct reader *r) {
    return r->at < r->n && !r->failed;
}

static bool take(struct reader *r, const char *word) {
    size_t n = strlen(word);
    if (r->n - r->at < n || memcmp(r->s + r->at, word, n) != 0) return false;
    r->at += n;
    return true;
}

static void say(struct reader *r, const char *words) {
    utf8_text_add(&r->to->out, words, strlen(words));
}

static uint32_t take_point(struct reader *r) {
    int bytes;
    uint32_t c = utf8_at(r->s + r->at, &bytes);
    r->at += (size_t)bytes;
    return c;
}

/* ------------------------------------------------------------------------------------------- sets
 */
/* A set gets a number and its mark goes to the output. The set is ours afterwards. */
static void put_set(struct reader *r, struct set *s) {
    struct syntax *to = r->to;
    set_tidy(s);
    int i = 0;
    for (; i < to->n_sets; i++)
        if (to->sets[i].n == s->n &&
            (!s->n || !memcmp(to->sets[i].at, s->at, s->n * sizeof *s->at)))
            break;
    if (i == MAX_SETS) fail(r, "holds more than %d different characters and sets", MAX_SETS);
    else if (i == to->n_sets) {
        to->sets[to->n_sets++] = *s;
        *s = (struct set){0};
    }
    char mark[2] = {SET_MARK, (char)(i + 1)};
    if (!r->failed) utf8_text_add(&to->out, mark, 2);
    set_free(s);
}

/* Characters first to last, and under (?i) their other case as Unicode folds: the long s is an s,
 * the Kelvin sign a k. */
static void set_add_points(struct reader *r, struct set *s, uint32_t first, uint32_t last) {
    set_add(s, first, last);
    if (!r->fold) return;
    for (uint32_t c = first; c <= last && c < 0x80; c++) {
        uint32_t low = c | 32;
        if (low < 'a' || low > 'z') continue;
        set_add(s, c ^ 32, c ^ 32);
        if (low == 's') set_add(s, 0x17F, 0x17F);
        if (low == 'k') set_add(s, 0x212A, 0x212A);
    }
    if (last < 0x80) return;
    uint8_t k = unicode()->category[last];
    if (first != last || k <= CAT_ME || k == CAT_NL || k == CAT_SO)
        fail(r, "ignores case beyond ASCII, which is not built");
}

static uint32_t read_hex(struct reader *r, int most) {
    uint32_t c = 0;
    int n = 0;
    for (; n < most && r->at < r->n; n++, r->at++) {
        int d = r->s[r->at];
        if (d >= '0' && d <= '9') d -= '0';
        else if ((d | 32) >= 'a' && (d | 32) <= 'f') d = (d | 32) - 'a' + 10;
        else break;
        c = c << 4 | (uint32_t)d;
    }
    if (!n) fail(r, "has no hexadecimal digits where some should be");
    return c;
}

static void read_property(struct reader *r, bool inverted, struct set *s) {
    if (take(r, "^")) inverted = !inverted;
    const uint8_t *close = memchr(r->s + r->at, '}', r->n - r->at);
    size_t n = close ? (size_t)(close - r->s) - r->at : 0;
    struct set of = {0};
    const char *name = (const char *)r->s + r->at;
    if (!close || !set_of(&of, name, n)) {
        fail(r, "names the unknown property \\p{%.*s}", n < 40 ? (int)n : 40, name);
        set_free(&of);
        return;
    }
    if (r->fold && n == 2 && (*name | 32) == 'l')
        fail(r, "folds case in \\p{%.2s}, which is not built", name);
    if (inverted) set_invert(&of);
    set_add_all(s, &of);
    set_free(&of);
    r->at += n + 1;
}

/* After a backslash. True if it was one character (in *point), false if a set was added. */
static bool read_escape(struct reader *r, struct set *s, uint32_t *point) {
    static const char plain[] = "tnrfvae", meant[] = "\t\n\r\f\v\a\033";
    *point = 0;
    if (!more(r)) {
        fail(r, "ends in a backslash");
        return true;
    }
    uint32_t c = take_point(r);
    const char *simple = c < 0x80 ? memchr(plain, (int)c, sizeof plain - 1) : NULL;
    *point = simple ? (uint8_t)meant[simple - plain] : c;
    if (simple || c >= 0x80) return true;
    switch (c) {
    case 'x':
        if (take(r, "{")) {
            *point = read_hex(r, 6);
            if (!take(r, "}")) fail(r, "has an \\x{ that is not closed");
        } else *point = read_hex(r, 2);
        if (*point >= CODE_POINTS) fail(r, "names a character beyond Unicode");
        return true;
    case 'u': *point = read_hex(r, 4); return true;
    case 'p':
    case 'P':
        if (take(r, "{")) read_property(r, c == 'P', s);
        else fail(r, "has a \\%c without {", (int)c);
        return false;
    case 'h':
    case 'H':
    case 's':
    case 'S':
    case 'w':
    case 'W':
    case 'd':
    case 'D': {
        struct set of = {0};
        char name[3] = {'\\', (char)(c | 32)};
        if ((c | 32) == 'h') {
            set_add(&of, '0', '9');
            set_add(&of, 'A', 'F');
            set_add(&of, 'a', 'f');
        } else set_of(&of, name, 2);
        if (c < 'a') set_invert(&of);
        set_add_all(s, &of);
        set_free(&of);
        return false;
    }
    default: break;
    }
    if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'))
        fail(r, "uses \\%c, which is not built", (int)c);
    return true;
}

static void read_set(struct reader *r, struct set *s);

/* What stands at this place of a set: true if it is one character. */
static bool read_member(struct reader *r, struct set *s, uint32_t *point) {
    if (take(r, "[:")) {
        static const char *const names[] = {"space", "\\s", "digit", "\\d", "word", "\\w"};
        for (int i = 0; i < 6; i += 2) {
            if (!take(r, names[i])) continue;
            if (!take(r, ":]")) break;
            set_of(s, names[i + 1], 2);
            return false;
        }
        fail(r, "uses a [: :] set that is not built");
        return false;
    }
    if (take(r, "[")) {
        struct set inner = {0};
        read_set(r, &inner);
        set_add_all(s, &inner);
        set_free(&inner);
        return false;
    }
    if (take(r, "\\")) return read_escape(r, s, point);
    *point = take_point(r);
    return true;
}

/* After the opening bracket, up to and with the closing one. && binds weaker than everything else.
 */
static void read_set(struct reader *r, struct set *s) {
    struct set now = {0}, before = {0};
    bool inverted = take(r, "^"), has_before = false, first = true;
    if (++r->depth > DEEPEST) fail(r, "is nested too deeply");
    for (; more(r) && r->s[r->at] != ']'; first = false) {
        if (take(r, "&&")) {
            set_tidy(&now);
            if (has_before) set_intersect(&before, &now);
            else before = now, now = (struct set){0};
            set_free(&now);
            has_before = true;
            continue;
        }
        uint32_t from, to;
        bool dash = r->s[r->at] == '-';
        if (!read_member(r, &now, &from)) continue;
        if (!(r->n - r->at >= 2 && r->s[r->at] == '-' && r->s[r->at + 1] != ']') ||
            (dash && !first)) {
            set_add_points(r, &now, from, from);
            continue;
        }
        r->at++;
        if (!read_member(r, &now, &to)) { /* a-\d: the dash is one */
            set_add_points(r, &now, from, from);
            set_add(&now, '-', '-');
        } else if (to < from) fail(r, "has a range that runs backwards");
        else set_add_points(r, &now, from, to);
    }
    if (first) fail(r, "holds an empty set");
    if (!take(r, "]")) fail(r, "has a [ that is not closed");
    set_tidy(&now);
    if (has_before) set_intersect(&now, &before);
    if (inverted) set_invert(&now);
    set_free(&before);
    set_add_all(s, &now);
    set_free(&now);
    r->depth--;
}

/* ----------------------------------------------------------------------------------------- the
 * rest */
static void read_alternatives(struct reader *r);

static void put_named(struct reader *r, const char *before, const char *name, const char *after) {
    struct set s = {0};
    if (*name == '\n') set_add(&s, '\n', '\n');
    else set_of(&s, name, strlen(name));
    say(r, before);
    put_set(r, &s);
    say(r, after);
}

static void put_point(struct reader *r, uint32_t c) {
    struct set s = {0};
    set_add_points(r, &s, c, c);
    if (r->fold) {
        /* Two letters that Unicode folds to one sign would have to match that sign. */
        static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
        uint32_t low = c < 0x80 ? c | 32 : c;
        for (int i = 0; i < 5; i++)
            if (r->previous == (uint8_t)pairs[i][0] && low == (uint8_t)pairs[i][1])
                fail(r, "ignores case in \"%s\", which is not built", pairs[i]);
        r->previous = low;
    }
    put_set(r, &s);
}

static void read_group(struct reader *r) {
    bool fold = r->fold;
    static const char *const plain[] = {"?:", "?=", "?!", "?<=", "?<!", "?>"};
    size_t i = 0;
    if (++r->depth > DEEPEST) fail(r, "is nested too deeply");
    while (i < 6 && !take(r, plain[i])) i++;
    say(r, "(");
    if (i < 6) say(r, plain[i]);
    else if (take(r, "?i:")) {
        r->fold = true;
        say(r, "?:");
    } else if (take(r, "?-i:")) {
        r->fold = false;
        say(r, "?:");
    } else if (take(r, "?")) fail(r, "has a group (?... of a kind that is not built");
    else say(r, "?:");
    r->previous = 0;
    read_alternatives(r);
    if (!r->failed && !take(r, ")")) fail(r, "has a ( that is not closed");
    say(r, ")");
    r->fold = fold;
    r->previous = 0;
    r->depth--;
}

static bool read_anchor_escape(struct reader *r) {
    static const char boundary[] = "(?:(?<=%)(?!%)|(?<!%)(?=%))",
                      inner[] = "(?:(?<=%)(?=%)|(?<!%)(?!%))";
    if (take(r, "\\A")) say(r, "\\A");
    else if (take(r, "\\z")) say(r, "\\z");
    else if (take(r, "\\Z")) put_named(r, "(?=", "\n", "?\\z)");
    else if (r->n - r->at >= 2 && r->s[r->at] == '\\' && (r->s[r->at + 1] | 32) == 'b') {
        const char *form = r->s[r->at + 1] == 'b' ? boundary : inner;
        r->at += 2;
        for (char one[2] = {0}; *form; form++) {
            one[0] = *form;
            if (*form == '%') put_named(r, "", "\\w", "");
            else say(r, one);
        }
    } else return false;
    return true;
}

/* One thing that can be repeated. False if it was an anchor. */
static bool read_atom(struct reader *r) {
    struct set s = {0};
    uint32_t point;
    if (read_anchor_escape(r)) return false;
    if (take(r, "(")) read_group(r);
    else if (take(r, "[")) {
        read_set(r, &s);
        put_set(r, &s);
        r->previous = 0;
    } else if (take(r, ".")) {
        set_add(&s, '\n', '\n');
        set_invert(&s);
        put_set(r, &s);
        r->previous = 0;
    } else if (take(r, "^")) {
        /* Line starts; not behind a newline that ends the text. */
        put_named(r, "(?:\\A|(?<=", "\n", ")(?!\\z))");
        return false;
    } else if (take(r, "$")) {
        put_named(r, "(?:\\z|(?=", "\n", "))");
        return false;
    } else if (take(r, "\\")) {
        if (read_escape(r, &s, &point)) put_point(r, point);
        else {
            put_set(r, &s);
            r->previous = 0;
        }
    } else put_point(r, take_point(r));
    set_free(&s);
    return true;
}

/* {n} {n,} {n,m} {,m} after the brace. */
static void read_counts(struct reader *r, char *to, size_t n_to) {
    int count[2] = {-1, -1}, i = 0;
    for (; more(r) && r->s[r->at] != '}'; r->at++) {
        uint8_t c = r->s[r->at];
        if (c == ',' && i == 0) i = 1;
        else if (c >= '0' && c <= '9') {
            count[i] = (count[i] < 0 ? 0 : count[i]) * 10 + (c - '0');
            if (count[i] > MOST_REPEATS) fail(r, "repeats more than %d times", MOST_REPEATS);
        } else fail(r, "has a { that begins no repeat; a brace itself is \\{");
    }
    if (!take(r, "}") || (count[0] < 0 && count[1] < 0)) fail(r, "has a { that begins no repeat");
    if (i && count[1] >= 0 && count[1] < count[0])
        fail(r, "has a repeat whose bounds run backwards");
    if (!i) snprintf(to, n_to, "{%d}", count[0]);
    else if (count[1] < 0) snprintf(to, n_to, "{%d,}", count[0]);
    else snprintf(to, n_to, "{%d,%d}", count[0] < 0 ? 0 : count[0], count[1]);
}

static void read_repeat(struct reader *r, size_t begin, bool may) {
    char count[32];
    bool braces = false;
    if (take(r, "*")) strcpy(count, "*");
    else if (take(r, "+")) strcpy(count, "+");
    else if (take(r, "?")) strcpy(count, "?");
    else if (take(r, "{")) {
        braces = true;
        read_counts(r, count, sizeof count);
    } else return;
    if (!may) fail(r, "repeats a place, not a character");
    if (r->failed) return;
    say(r, count);
    r->previous = 0;
    if (take(r, "?")) {
        if (braces && !strchr(count, ',')) fail(r, "has {n}?, which is not built");
        say(r, "?");
    } else if (take(r, "+")) {
        if (!braces) say(r, "+");
        else {
            /* Not possessive to Oniguruma: one or more times the counted repeat. */
            struct utf8_text *out = &r->to->out;
            utf8_text_add(out, "(?:", 3);
            memmove(out->at + begin + 3, out->at + begin, out->n - 3 - begin);
            memcpy(out->at + begin, "(?:", 3);
            say(r, ")+");
        }
    }
    if (more(r) && strchr("*+?", r->s[r->at])) fail(r, "repeats a repeat, which is not built");
}

static void read_alternatives(struct reader *r) {
    if (take(r, "(?i)")) r->fold = true;
    while (more(r) && r->s[r->at] != ')') {
        if (take(r, "|")) {
            say(r, "|");
            r->previous = 0;
            continue;
        }
        if (strchr("*+?{", r->s[r->at])) {
            fail(r, "repeats nothing");
            return;
        }
        size_t begin = r->to->out.n;
        bool may = read_atom(r);
        if (more(r)) read_repeat(r, begin, may);
    }
}

struct syntax *syntax_read(const char *pattern, size_t n, char *why, size_t n_why) {
    struct syntax *s = die_alloc(sizeof *s);
    struct reader r = {.s = (const uint8_t *)pattern, .n = n, .to = s, .why = why, .n_why = n_why};
    if (memchr(pattern, 0, n)) fail(&r, "holds a NUL");
    read_alternatives(&r);
    if (more(&r)) fail(&r, "closes a group that was not opened");
    if (!r.failed) return s;
    syntax_free(s);
    return NULL;
}

void syntax_free(struct syntax *s) {
    if (!s) return;
    utf8_text_free(&s->out);
    for (int i = 0; i < s->n_sets; i++) set_free(&s->sets[i]);
    free(s);
}
