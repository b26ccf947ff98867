#include "io/corpora_documents.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/corpora_files.h"
#include "io/files.h"
#include "kernels/die.h"

enum { CHUNK = 1 << 20 }; /* bytes read at once of a file of lines */

/* ---- a line of JSON ---- */

struct span {
    char *at, *end;
};

static void skip_space(struct span *s) {
    while (s->at < s->end && memchr(" \t\r\n", *s->at, 4)) s->at++;
}

static bool eat(struct span *s, char c) {
    skip_space(s);
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

/* Four hexadecimal digits, or -1. */
static int hex4(struct span *s) {
    int x = 0;
    if (s->end - s->at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = *s->at++;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
        if (digit < 0 || digit > 15 || (c > '9' && digit < 10)) return -1;
        x = x << 4 | digit;
    }
    return x;
}

/* What follows \u as UTF-8; NULL if it is no such escape. */
static char *unicode(struct span *s, char *to) {
    int x = hex4(s);
    if (x < 0) return NULL;
    if (x >= 0xd800 && x < 0xe000) {
        struct span next = *s;
        int low = -1;
        if (x < 0xdc00 && next.end - next.at >= 2 && next.at[0] == '\\' && next.at[1] == 'u') {
            next.at += 2;
            low = hex4(&next);
        }
        if (low >= 0xdc00 && low < 0xe000) {
            x = 0x10000 + ((x - 0xd800) << 10) + (low - 0xdc00);
            *s = next;
        } else {
            x = 0xfffd;
        }
    }
    if (x < 0x80) return *to++ = (char)x, to;
    if (x < 0x800) {
        *to++ = (char)(0xc0 | x >> 6);
    } else {
        if (x < 0x10000) {
            *to++ = (char)(0xe0 | x >> 12);
        } else {
            *to++ = (char)(0xf0 | x >> 18);
            *to++ = (char)(0x80 | (x >> 12 & 63));
        }
        *to++ = (char)(0x80 | (x >> 6 & 63));
    }
    *to++ = (char)(0x80 | (x & 63));
    return to;
}

/* A string after its first quote, undone in place (no escape is shorter than what it stands for).
 */
static char *string(struct span *s, int64_t *n) {
    static const char escape[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    char *begin = s->at, *to = begin;
    while (s->at < s->end) {
        char c = *s->at++;
        if (c == '"') {
            *n = to - begin;
            return begin;
        }
        if (c != '\\') {
            *to++ = c;
            continue;
        }
        if (s->at == s->end) return NULL;
        c = *s->at++;
        if (c == 'u') {
            if (!(to = unicode(s, to))) return NULL;
            continue;
        }
        const char *which = c ? strchr(escape, c) : NULL;
        if (!which) return NULL;
        *to++ = meaning[which - escape];
    }
    return NULL;
}

/* Any value: strings are walked over, brackets counted, the rest is not judged. */
static bool skip_value(struct span *s) {
    int64_t depth = 0, n;
    skip_space(s);
    char *begin = s->at;
    while (s->at < s->end) {
        char c = *s->at;
        if (depth == 0 && (c == ',' || c == '}' || c == ']')) break;
        s->at++;
        if (c == '"' && !string(s, &n)) return false;
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') depth--;
    }
    return depth == 0 && s->at > begin;
}

char *jsonl_text(char *line, int64_t *n) {
    struct span s = {line, line + *n};
    char *text = NULL;
    if (!eat(&s, '{')) return NULL;
    if (eat(&s, '}')) return NULL;
    do {
        int64_t length;
        char *key = eat(&s, '"') ? string(&s, &length) : NULL;
        if (!key || !eat(&s, ':')) return NULL;
        bool is_text = length == 4 && memcmp(key, "text", 4) == 0;
        skip_space(&s);
        if (is_text && s.at < s.end && *s.at == '"') {
            s.at++;
            if (!(text = string(&s, n))) return NULL;
        } else {
            if (is_text) text = NULL;
            if (!skip_value(&s)) return NULL;
        }
    } while (eat(&s, ','));
    if (!eat(&s, '}')) return NULL;
    skip_space(&s);
    return s.at == s.end ? text : NULL;
}

/* ---- a file ---- */

static int open_as_listed(const struct text_file *f) {
    char why[WHY_BYTES];
    int64_t size;
    int fd = file_open(f->name, &size, why);
    if (fd < 0)
        die("%s %s, though it was listed; every rank must be able to read it", f->name, why);
    if (size != f->size) text_file_changed(f->name, "changed its size");
    return fd;
}

static void read_as_listed(const struct text_file *f, int fd, char *to, int64_t n, int64_t at) {
    if (file_read_at(fd, to, n, at) != 0) text_file_changed(f->name, "became unreadable");
}

static bool is_blank(const char *line, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!memchr(" \t\r", line[i], 3)) return false;
    return true;
}

/* A window of the file that slides from line to line and grows where a line does not fit. */
struct window {
    const struct text_file *file;
    int fd;
    char *text;
    int64_t base, n, room; /* text[n] are the file's bytes from base on */
    int64_t at;            /* first byte of text not yet given away */
};

/* The next line without its end, which takes *n bytes; NULL after the last. */
static char *next_line(struct window *w, int64_t *n) {
    int64_t looked = w->at;
    for (;;) {
        char *end = memchr(w->text + looked, '\n', (size_t)(w->n - looked));
        bool all = w->base + w->n == w->file->size;
        if (end || all) {
            char *line = w->text + w->at;
            *n = (end ? end : w->text + w->n) - line;
            if (!end && *n == 0) return NULL;
            w->at += *n + (end ? 1 : 0);
            return line;
        }
        memmove(w->text, w->text + w->at, (size_t)(w->n - w->at));
        w->base += w->at;
        w->n -= w->at;
        w->at = 0;
        looked = w->n;
        if (w->room < w->n + CHUNK)
            w->text = die_realloc(w->text, (unsigned long)(w->room = 2 * w->n + CHUNK));
        int64_t left = w->file->size - w->base - w->n;
        int64_t more = left < CHUNK ? left : CHUNK;
        read_as_listed(w->file, w->fd, w->text + w->n, more, w->base + w->n);
        w->n += more;
    }
}

static int64_t each_line(const struct text_file *f, int fd, int64_t first, int64_t last,
                         void (*take)(void *to, const char *text, int64_t n), void *to) {
    struct window w = {.file = f, .fd = fd, .base = first ? first - 1 : 0};
    w.text = die_alloc((unsigned long)(w.room = CHUNK));
    int64_t n, without = 0;
    char *line;
    if (first) next_line(&w, &n); /* ends before `first`, or began before it */
    while (w.base + w.at < last && (line = next_line(&w, &n))) {
        if (is_blank(line, n)) continue;
        char *text = jsonl_text(line, &n);
        if (text) take(to, text, n);
        else without++;
    }
    free(w.text);
    return without;
}

int64_t documents_each(const struct text_file *f, int64_t first, int64_t last,
                       void (*take)(void *to, const char *text, int64_t n), void *to) {
    int fd = open_as_listed(f);
    int64_t without = 0;
    if (f->lines) {
        without = each_line(f, fd, first, last, take, to);
    } else {
        char *text = die_alloc((unsigned long)f->size);
        read_as_listed(f, fd, text, f->size, 0);
        take(to, text, f->size);
        free(text);
    }
    close(fd);
    return without;
}
