#include "kernels/die.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int speaker = -1; /* -1: ranks are not known yet, or there is only this process */
static void (*say_last)(const char *text);
static void (*end_all)(int code);

void die_set_rank(int rank) {
    speaker = rank;
}

void die_set_hooks(void (*last_words)(const char *text), void (*abort_all)(int code)) {
    say_last = last_words;
    end_all = abort_all;
}

/* One write, so that the lines of ranks dying together do not mix. */
static _Noreturn void end(const char *what, const char *text) {
    static int dying;
    if (dying) _exit(1); /* a hook failed: the first text has been printed */
    dying = 1;
    /* What many ranks meet at once need be told once: the first speaks and ends the others while
     * they wait. */
    if (speaker > 0 && end_all) usleep(500000u * (unsigned)(speaker < 4 ? speaker : 4));
    char host[256] = "?", line[4096];
    if (gethostname(host, sizeof host - 1)) snprintf(host, sizeof host, "?");
    if (speaker < 0) snprintf(line, sizeof line, "mestar: %s%s", what, text);
    else snprintf(line, sizeof line, "mestar: rank %d on %s: %s%s", speaker, host, what, text);
    fflush(stdout);
    fprintf(stderr, "%s\n", line);
    fflush(stderr);
    if (say_last) say_last(line);
    if (end_all) end_all(1);
    exit(1);
}

void die(const char *fmt, ...) {
    char text[3072];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    end("", text);
}

void die_bug(const char *file, int line, const char *fmt, ...) {
    char text[3072], where[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(where, sizeof where, "%s:%d: a mistake in mestar itself, please report it: ", file,
             line);
    end(where, text);
}

void *die_alloc(unsigned long bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p)
        die("no memory for a table of %lu bytes; free memory on this host or start fewer ranks",
            bytes);
    return p;
}

void *die_realloc(void *p, unsigned long bytes) {
    void *q = realloc(p, bytes ? bytes : 1);
    if (!q)
        die("no memory for a table of %lu bytes; free memory on this host or start fewer ranks",
            bytes);
    return q;
}

char *die_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(die_alloc(n), s, n);
}

char *die_format(const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) die("text could not be formatted: %s", fmt);
    char *s = die_alloc((unsigned long)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}
