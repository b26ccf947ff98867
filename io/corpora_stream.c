#include "io/corpora_stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/corpora_files.h"
#include "io/files.h"
#include "kernels/die.h"

void stream_init(struct token_stream *s, int width, int32_t end, int64_t vocabulary) {
    *s = (struct token_stream){.width = width, .end = end, .vocabulary = vocabulary};
    s->begin = die_alloc(sizeof *s->begin);
}

void stream_add(struct token_stream *s, struct piece p) {
    if (s->n == s->room) {
        s->room = 2 * s->room + 64;
        s->piece = die_realloc(s->piece, (unsigned long)s->room * sizeof *s->piece);
        s->begin = die_realloc(s->begin, (unsigned long)(s->room + 1) * sizeof *s->begin);
    }
    s->piece[s->n] = p;
    s->begin[s->n + 1] = s->begin[s->n] + p.tokens;
    s->n++;
}

void stream_free(struct token_stream *s) {
    for (int i = 0; i < STREAM_OPEN; i++)
        if (s->open[i].piece) close(s->open[i].fd);
    free(s->piece);
    free(s->begin);
    *s = (struct token_stream){0};
}

int64_t stream_tokens(const struct token_stream *s) {
    return s->n ? s->begin[s->n] : 0;
}

static _Noreturn void changed(const struct token_stream *s, const struct piece *p,
                              const char *what) {
    if (s->width == 1) text_file_changed(p->name, what);
    die("%s, tokens made of the text, %s; remove it and start again, and it is made anew", p->name,
        what);
}

/* An open file, from the few that are kept, else in place of the one unused for longest. */
static int piece_open(struct token_stream *s, int64_t number) {
    int oldest = 0;
    for (int i = 0; i < STREAM_OPEN; i++) {
        if (s->open[i].piece == number + 1) {
            s->open[i].used = ++s->clock;
            return s->open[i].fd;
        }
        if (s->open[i].used < s->open[oldest].used) oldest = i;
    }
    if (s->open[oldest].piece) close(s->open[oldest].fd);
    s->open[oldest].piece = 0;
    int64_t size;
    char why[WHY_BYTES];
    int fd = file_open(s->piece[number].name, &size, why);
    if (fd < 0)
        die("%s %s, though it was there; every rank must be able to read it", s->piece[number].name,
            why);
    s->open[oldest].piece = number + 1;
    s->open[oldest].fd = fd;
    s->open[oldest].used = ++s->clock;
    return fd;
}

/* n tokens of a piece from number `first` on; the closing one of a text is not in its file. */
static void piece_read(struct token_stream *s, int64_t number, int64_t first, int64_t n,
                       int32_t *to) {
    const struct piece *p = &s->piece[number];
    _Alignas(8) unsigned char buffer[16384];
    struct stat now;
    int fd = piece_open(s, number);
    if (fstat(fd, &now) != 0 || now.st_size != p->file_bytes) changed(s, p, "changed its size");
    int64_t most = (int64_t)sizeof buffer / s->width;
    while (n > 0) {
        int64_t k = n < most ? n : most;
        if (file_read_at(fd, buffer, k * s->width, p->at + first * s->width) != 0)
            changed(s, p, "became unreadable");
        for (int64_t i = 0; i < k; i++) {
            uint32_t x = buffer[i];
            if (s->width == 2) x = ((const uint16_t *)(const void *)buffer)[i];
            if (s->width == 4) x = ((const uint32_t *)(const void *)buffer)[i];
            if (x >= (uint64_t)s->vocabulary) changed(s, p, "holds what is no token");
            to[i] = (int32_t)x;
        }
        first += k;
        to += k;
        n -= k;
    }
}

void stream_read(struct token_stream *s, int64_t first, int64_t n, int32_t *to) {
    int64_t lo = 0, hi = s->n; /* begin[lo] <= first < begin[hi] */
    while (hi - lo > 1) {
        int64_t mid = lo + (hi - lo) / 2;
        if (s->begin[mid] <= first) lo = mid;
        else hi = mid;
    }
    for (int64_t number = lo; n > 0; number++) {
        int64_t in_file = s->piece[number].tokens - (s->width == 1);
        int64_t at = first - s->begin[number];
        int64_t here = s->piece[number].tokens - at < n ? s->piece[number].tokens - at : n;
        int64_t take = in_file - at < here ? in_file - at : here;
        piece_read(s, number, at, take, to);
        if (take < here) to[take] = s->end;
        to += here;
        first += here;
        n -= here;
    }
}
