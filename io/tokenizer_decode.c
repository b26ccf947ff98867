#include "io/tokenizer_decode.h"

#include <string.h>

#include "io/tokenizer_normalise.h"

/* Machine i is given a fragment of its current token, or told that the token ends, or that there
 * are no more. */
static void give(struct chain_state *s, int i, const char *at, size_t n);
static void end_token(struct chain_state *s, int i);

static void give_token(struct chain_state *s, int i, const char *at, size_t n) {
    give(s, i, at, n);
    end_token(s, i);
}

static int hex(char c) {
    return c >= '0' && c <= '9'                 ? c - '0'
           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                : -1;
}

/* The byte that a token <0x0A> means, or -1. (A plus sign is a digit of value nothing to Rust.) */
static int fallback_byte(const struct utf8_text *t) {
    if (t->n != 6 || memcmp(t->at, "<0x", 3) != 0 || t->at[5] != '>') return -1;
    int high = t->at[3] == '+' ? 0 : hex(t->at[3]), low = hex(t->at[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* What is held are bytes: complete characters go on, the rest waits. */
static void flush_bytes(struct chain_state *s, int i, bool all) {
    struct utf8_text *held = &s->machines[i].held;
    const uint8_t *at = (const uint8_t *)held->at;
    size_t done = 0, good = 0;
    while (done < held->n) {
        int broken;
        bool cut;
        int length = utf8_check(at + done, held->n - done, &broken, &cut);
        if (length) {
            done += (size_t)length;
            continue;
        }
        if (cut && !all) break;
        give(s, i + 1, held->at + good, done - good);
        give(s, i + 1, "\xEF\xBF\xBD", 3);
        good = done += (size_t)broken;
    }
    if (done > good) give(s, i + 1, held->at + good, done - good);
    if (held->n > done) memmove(held->at, held->at + done, held->n - done);
    held->n -= done;
}

/* Tokens whose characters all stand for bytes are these bytes, others their own text. */
static void bytes_token(struct chain_state *s, int i) {
    struct utf8_text *token = &s->machines[i].spare, *held = &s->machines[i].held;
    size_t before = held->n;
    for (size_t at = 0; at < token->n;) {
        int bytes, byte = byte_of_character(utf8_at((const uint8_t *)token->at + at, &bytes));
        at += (size_t)bytes;
        char c = (char)byte;
        if (byte >= 0) {
            utf8_text_add(held, &c, 1);
            continue;
        }
        held->n = before;
        utf8_text_add(held, token->at, token->n);
        break;
    }
    flush_bytes(s, i, false);
}

/* Runs of byte tokens are one token if they are text together; else U+FFFD for each. */
static void fallback_end(struct chain_state *s, int i) {
    struct utf8_text *run = &s->machines[i].held;
    struct utf8_text ignored = {0};
    if (!run->n) return;
    if (utf8_text_repair(run->at, run->n, &ignored)) give_token(s, i + 1, run->at, run->n);
    else
        for (size_t j = 0; j < run->n; j++) give_token(s, i + 1, "\xEF\xBF\xBD", 3);
    utf8_text_free(&ignored);
    run->n = 0;
}

static void fallback_token(struct chain_state *s, int i) {
    struct utf8_text *token = &s->machines[i].spare;
    int byte = fallback_byte(token);
    char c = (char)byte;
    if (byte >= 0) {
        utf8_text_add(&s->machines[i].held, &c, 1);
        return;
    }
    fallback_end(s, i);
    give_token(s, i + 1, token->at, token->n);
}

static void replace_token(struct chain_state *s, int i) {
    const struct machine *m = &s->chain->machines[i];
    struct utf8_text *token = &s->machines[i].spare;
    size_t done = 0, start, end;
    if (token->n) finder_begin(&s->finder, m->pattern, s->matcher, token->at, token->n);
    while (token->n && finder_next(&s->finder, &start, &end) > 0) {
        give(s, i + 1, token->at + done, start - done);
        give(s, i + 1, m->content.at, m->content.n);
        done = end;
    }
    give(s, i + 1, token->at + done, token->n - done);
    end_token(s, i + 1);
}

static void metaspace_token(struct chain_state *s, int i) {
    const struct machine *m = &s->chain->machines[i];
    struct utf8_text *token = &s->machines[i].spare;
    bool drop = m->drop_first && s->machines[i].token == 0;
    for (size_t at = 0; at < token->n;) {
        int bytes;
        uint32_t c = utf8_at((const uint8_t *)token->at + at, &bytes);
        if (c != m->character) give(s, i + 1, token->at + at, (size_t)bytes);
        else if (!drop) give(s, i + 1, " ", 1);
        at += (size_t)bytes;
    }
    end_token(s, i + 1);
}

/* The suffix becomes a space, or nothing in the last token. */
static void bpe_token_out(struct chain_state *s, int i, bool last) {
    const struct utf8_text *suffix = &s->chain->machines[i].content, *token = &s->machines[i].held;
    size_t done = 0;
    if (!s->machines[i].token) return;
    while (suffix->n && done < token->n) {
        const char *found = memmem(token->at + done, token->n - done, suffix->at, suffix->n);
        if (!found) break;
        give(s, i + 1, token->at + done, (size_t)(found - token->at) - done);
        if (!last) give(s, i + 1, " ", 1);
        done = (size_t)(found - token->at) + suffix->n;
    }
    give(s, i + 1, token->at + done, token->n - done);
    end_token(s, i + 1);
}

/* Leading characters are dropped as they come; those at the end can only be when it is there. */
static void strip_fragment(struct chain_state *s, int i, const char *at, size_t n) {
    const struct machine *m = &s->chain->machines[i];
    int *stripped = &s->machines[i].stripped;
    while (n && *stripped >= 0 && *stripped < m->start) {
        int bytes;
        if (utf8_at((const uint8_t *)at, &bytes) != m->character) {
            *stripped = -1;
            break;
        }
        ++*stripped;
        at += bytes;
        n -= (size_t)bytes;
    }
    if (m->stop) utf8_text_add(&s->machines[i].held, at, n);
    else give(s, i + 1, at, n);
}

static void strip_end(struct chain_state *s, int i) {
    const struct machine *m = &s->chain->machines[i];
    struct utf8_text *held = &s->machines[i].held;
    for (int k = 0; k < m->stop && held->n; k++) {
        size_t last = held->n - 1;
        int bytes;
        while ((held->at[last] & 0xC0) == 0x80) last--;
        if (utf8_at((const uint8_t *)held->at + last, &bytes) != m->character) break;
        held->n = last;
    }
    give(s, i + 1, held->at, held->n);
    held->n = 0;
    s->machines[i].stripped = 0;
    end_token(s, i + 1);
}

static void give(struct chain_state *s, int i, const char *at, size_t n) {
    if (!n) return;
    if (i == s->chain->n) utf8_text_add(s->to, at, n);
    else if (s->chain->machines[i].kind == MACHINE_FUSE) give(s, i + 1, at, n);
    else if (s->chain->machines[i].kind == MACHINE_STRIP) strip_fragment(s, i, at, n);
    else utf8_text_add(&s->machines[i].spare, at, n);
}

static void end_token(struct chain_state *s, int i) {
    if (i == s->chain->n) return;
    struct utf8_text *token = &s->machines[i].spare;
    switch (s->chain->machines[i].kind) {
    case MACHINE_FUSE: break;
    case MACHINE_STRIP: strip_end(s, i); break;
    case MACHINE_BYTES: bytes_token(s, i); break;
    case MACHINE_BYTE_FALLBACK: fallback_token(s, i); break;
    case MACHINE_REPLACE: replace_token(s, i); break;
    case MACHINE_METASPACE: metaspace_token(s, i); break;
    case MACHINE_JOIN:
        if (s->machines[i].token) give(s, i + 1, " ", 1);
        give(s, i + 1, token->at, token->n);
        break;
    case MACHINE_BPE:
        bpe_token_out(s, i, false);
        s->machines[i].held.n = 0;
        utf8_text_add(&s->machines[i].held, token->at, token->n);
        break;
    }
    s->machines[i].token++;
    token->n = 0;
}

static void end_all(struct chain_state *s, int i) {
    if (i == s->chain->n) return;
    switch (s->chain->machines[i].kind) {
    case MACHINE_BYTES:
        flush_bytes(s, i, true);
        end_token(s, i + 1);
        break;
    case MACHINE_FUSE: end_token(s, i + 1); break;
    case MACHINE_BYTE_FALLBACK: fallback_end(s, i); break;
    case MACHINE_BPE: bpe_token_out(s, i, true); break;
    default: break;
    }
    end_all(s, i + 1);
}

void chain_begin(struct chain_state *s, const struct chain *c) {
    *s = (struct chain_state){.chain = c};
    for (int i = 0; i < c->n; i++)
        if (c->machines[i].pattern && !s->matcher) s->matcher = matcher_make();
}

void chain_token(struct chain_state *s, const char *token, size_t n, struct utf8_text *to) {
    s->to = to;
    give_token(s, 0, token, n);
}

void chain_finish(struct chain_state *s, struct utf8_text *to) {
    s->to = to;
    end_all(s, 0);
    for (int i = 0; i < s->chain->n; i++) {
        s->machines[i].held.n = s->machines[i].spare.n = 0;
        s->machines[i].stripped = 0;
        s->machines[i].token = 0;
    }
}

void chain_state_free(struct chain_state *s) {
    for (int i = 0; i < MOST_MACHINES; i++) {
        utf8_text_free(&s->machines[i].held);
        utf8_text_free(&s->machines[i].spare);
    }
    finder_free(&s->finder);
    matcher_free(s->matcher);
}

void chain_free(struct chain *c) {
    for (int i = 0; i < c->n; i++) {
        pattern_free(c->machines[i].pattern);
        utf8_text_free(&c->machines[i].content);
    }
}
