/* tokenizer_decode: from tokens back to text, as a chain of small machines.
 *
 * Each takes tokens, one after the other in fragments, and hands on tokens; the last one's
 * fragments are the text.  A machine holds back only what later tokens can still change: the bytes
 * of an unfinished character, a token whose end has to be seen, the token that may be the last.  So
 * decoding while a model generates is the same code as decoding at once. */
#ifndef IO_TOKENIZER_DECODE_H
#define IO_TOKENIZER_DECODE_H

#include <stdbool.h>

#include "io/tokenizer_pattern.h"

enum machine_kind {
    MACHINE_JOIN,
    MACHINE_BYTES,
    MACHINE_BYTE_FALLBACK,
    MACHINE_FUSE,
    MACHINE_REPLACE,
    MACHINE_STRIP,
    MACHINE_METASPACE,
    MACHINE_BPE
};

struct machine {
    enum machine_kind kind;
    struct pattern *pattern;  /* REPLACE */
    struct utf8_text content; /* REPLACE; BPE: the suffix */
    uint32_t character;       /* STRIP, METASPACE */
    int start, stop;          /* STRIP: at most so many characters */
    bool drop_first;          /* METASPACE: its character vanishes from the first token */
};

enum { MOST_MACHINES = 16 };

struct chain {
    int n;
    struct machine machines[MOST_MACHINES];
};

struct chain_state {
    const struct chain *chain;
    struct matcher *matcher;
    struct finder finder;
    struct utf8_text *to;
    struct {
        struct utf8_text held, spare;
        int stripped;  /* STRIP: so far; -1: no more */
        int64_t token; /* how many ended */
    } machines[MOST_MACHINES];
};

void chain_begin(struct chain_state *s, const struct chain *c);
void chain_token(struct chain_state *s, const char *token, size_t n, struct utf8_text *to);
void chain_finish(struct chain_state *s, struct utf8_text *to); /* and begins anew */
void chain_state_free(struct chain_state *s);
void chain_free(struct chain *c);

#endif
