/* corpora_stream: many files of tokens read as one long row.
 *
 * A stream is a list of pieces, each lying in a file: a file of text, whose bytes are the tokens
 * and which is closed by one token more, or a part of a file of a token cache, 2 or 4 bytes a
 * token. Known are names and lengths alone; what is asked for is read, and a few files are kept
 * open. For corpora*.c alone. */
#ifndef IO_CORPORA_STREAM_H
#define IO_CORPORA_STREAM_H

#include <stdint.h>

enum { STREAM_OPEN = 16 };

struct piece {
    const char *name;   /* borrowed */
    int64_t tokens;     /* in this piece, the closing one included */
    int64_t at;         /* first byte of it in the file */
    int64_t file_bytes; /* size that the file must have */
};

struct token_stream {
    int width;          /* bytes a token has; 1: text, closed by `end` */
    int32_t end;        /* closes a document */
    int64_t vocabulary; /* every token is below */
    int64_t n, room;
    struct piece *piece;
    int64_t *begin; /* [n + 1] */
    struct {
        int64_t piece; /* number + 1; 0: none */
        int64_t used;  /* when last */
        int fd;
    } open[STREAM_OPEN];
    int64_t clock;
};

void stream_init(struct token_stream *s, int width, int32_t end, int64_t vocabulary);
void stream_add(struct token_stream *s, struct piece p);
void stream_free(struct token_stream *s);
int64_t stream_tokens(const struct token_stream *s);

/* Tokens first to first + n, all within the stream. Dies if a file is not what it was. */
void stream_read(struct token_stream *s, int64_t first, int64_t n, int32_t *to);

#endif
