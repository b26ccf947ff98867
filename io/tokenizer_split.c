#include "io/tokenizer_split.h"

#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_known.h"
#include "kernels/die.h"

static bool stage_do(const struct splitter *k, struct split_scratch *w, int i, struct piece p);

/* -------------------------------------------------------------------------------- what becomes of
 * matches */
/* Matches and what is between them come in order; out go the pieces. One is held back until it is
 * known whether the next belongs to it. */
struct joiner {
    const struct splitter *splitter;
    struct split_scratch *scratch;
    int stage; /* that gave them */
    struct piece piece;
    enum behaviour behaviour;
    bool invert;
    bool held, previous, held_match, good;
    size_t start, end;
};

static void join_out(struct joiner *j, size_t start, size_t end) {
    if (start == end || !j->good) return;
    size_t first = j->piece.first > start ? j->piece.first - start : 0;
    struct piece p = {j->piece.at + start, end - start, first < end - start ? first : end - start};
    j->good = stage_do(j->splitter, j->scratch, j->stage + 1, p);
}

static void join_hold(struct joiner *j, size_t start, size_t end, bool match) {
    if (j->held) join_out(j, j->start, j->end);
    j->held = true;
    j->held_match = match;
    j->start = start;
    j->end = end;
}

static void join(struct joiner *j, size_t start, size_t end, bool match) {
    match = match != j->invert;
    switch (j->behaviour) {
    case ISOLATED: join_out(j, start, end); return;
    case REMOVED:
        if (!match) join_out(j, start, end);
        return;
    case CONTIGUOUS:
        if (match == j->previous && j->held) j->end = end;
        else join_hold(j, start, end, match);
        break;
    case MERGED_WITH_PREVIOUS:
        if (match && !j->previous && j->held) j->end = end;
        else join_hold(j, start, end, match);
        break;
    case MERGED_WITH_NEXT:
        if (!match && j->held && j->held_match) {
            j->end = end;
            j->held_match = false;
        } else join_hold(j, start, end, match);
        break;
    }
    j->previous = match;
}

static bool join_end(struct joiner *j) {
    if (j->held) join_out(j, j->start, j->end);
    return j->good;
}

static struct joiner joiner_of(const struct splitter *k, struct split_scratch *w, int i,
                               struct piece p, enum behaviour behaviour, bool invert) {
    return (struct joiner){.splitter = k,
                           .scratch = w,
                           .stage = i,
                           .piece = p,
                           .behaviour = behaviour,
                           .invert = invert,
                           .good = true};
}

/* ------------------------------------------------------------------------------------------ stages
 */
static bool keeps_matches(const struct stage *s) {
    return s->behaviour == ISOLATED || (s->behaviour == REMOVED && s->invert);
}

static bool by_known(const struct splitter *k, struct split_scratch *w, int i, struct piece p,
                     size_t from, size_t to) {
    const struct known *known = k->stages[i].pattern->known;
    const uint8_t *s = (const uint8_t *)p.at;
    bool last = i + 1 == k->n || (i + 2 == k->n && k->bytes_last && !k->stages[i + 1].pattern &&
                                  !k->stages[i + 1].prefix_space);
    for (size_t at = from, end; at < to; at = end) {
        end = known->end(known, s, p.n, at);
        if (last) {
            w->word(w->to, p.at + at, end - at);
            continue;
        }
        size_t first = p.first > at ? p.first - at : 0;
        if (!stage_do(k, w, i + 1,
                      (struct piece){p.at + at, end - at, first < end - at ? first : end - at}))
            return false;
    }
    return true;
}

static bool by_pattern(const struct splitter *k, struct split_scratch *w, int i, struct piece p) {
    const struct stage *s = &k->stages[i];
    if (s->pattern->known && keeps_matches(s)) return by_known(k, w, i, p, 0, p.n);
    struct joiner j = joiner_of(k, w, i, p, s->behaviour, s->invert);
    struct finder *f = &w->stages[i].finder;
    size_t done = 0, start, end;
    int r = 0;
    finder_begin(f, s->pattern, w->matcher, p.at, p.n);
    while (j.good && (r = finder_next(f, &start, &end)) > 0) {
        if (start != done) join(&j, done, start, false);
        join(&j, start, end, true);
        done = end;
    }
    if (!j.good || r < 0) return false;
    if (done != p.n) join(&j, done, p.n, false);
    return join_end(&j);
}

static bool of_kind(const struct stage *s, uint32_t c) {
    switch (s->kind) {
    case STAGE_DIGITS: return unicode_numeric(c);
    case STAGE_PUNCTUATION: return unicode_punctuation(c);
    case STAGE_WHITESPACE_SPLIT: return unicode_space(c);
    default: return c == s->character;
    }
}

/* Every character of a kind is a match of its own. */
static bool by_character(const struct splitter *k, struct split_scratch *w, int i, struct piece p,
                         enum behaviour behaviour) {
    const struct stage *s = &k->stages[i];
    struct joiner j = joiner_of(k, w, i, p, behaviour, false);
    size_t done = 0;
    for (size_t at = 0; at < p.n && j.good;) {
        int bytes;
        bool is = of_kind(s, utf8_at((const uint8_t *)p.at + at, &bytes));
        size_t end = at + (size_t)bytes;
        if (is) {
            if (done < at) join(&j, done, at, false);
            join(&j, at, end, true);
            done = end;
        }
        at = end;
    }
    if (done < p.n) join(&j, done, p.n, false);
    return join_end(&j);
}

/* \w+|[^\w\s]+ */
static bool by_whitespace(const struct splitter *k, struct split_scratch *w, int i,
                          struct piece p) {
    struct joiner j = joiner_of(k, w, i, p, ISOLATED, false);
    size_t begin = 0;
    int before = 0; /* 0: space, 1: word, 2: other */
    for (size_t at = 0; at <= p.n && j.good;) {
        int bytes = 1, kind = 0;
        if (at < p.n) {
            uint32_t c = utf8_at((const uint8_t *)p.at + at, &bytes);
            kind = unicode_word(c) ? 1 : unicode_space(c) ? 0 : 2;
        }
        if (kind != before || at == p.n) {
            if (before) join(&j, begin, at, true);
            begin = at;
            before = kind;
        }
        at += (size_t)bytes;
    }
    return join_end(&j);
}

static bool by_metaspace(const struct splitter *k, struct split_scratch *w, int i, struct piece p) {
    const struct stage *s = &k->stages[i];
    struct utf8_text *to = &w->stages[i].text;
    char mark[4];
    size_t n_mark = (size_t)utf8_put(s->character, mark), first = 0;
    to->n = 0;
    bool begins = p.at[0] == ' ' || (p.n >= n_mark && !memcmp(p.at, mark, n_mark));
    bool prepended = !begins && (s->prepend == ALWAYS || (s->prepend == FIRST && p.first > 0));
    if (prepended) utf8_text_add(to, mark, n_mark);
    for (size_t at = 0; at < p.n;) {
        const char *space = memchr(p.at + at, ' ', p.n - at);
        size_t end = space ? (size_t)(space - p.at) : p.n;
        utf8_text_add(to, p.at + at, end - at);
        if (at < p.first) first = to->n - (end > p.first ? end - p.first : 0);
        if (space) {
            utf8_text_add(to, mark, n_mark);
            if (end < p.first) first = to->n;
        }
        at = end + 1;
    }
    struct piece out = {to->at, to->n, first};
    return s->each ? by_character(k, w, i, out, MERGED_WITH_NEXT) : stage_do(k, w, i + 1, out);
}

static bool by_bytes(const struct splitter *k, struct split_scratch *w, int i, struct piece p) {
    const struct stage *s = &k->stages[i];
    struct utf8_text *to = &w->stages[i].text;
    if (s->prefix_space && p.at[0] != ' ') {
        to->n = 0;
        utf8_text_add(to, " ", 1);
        utf8_text_add(to, p.at, p.n);
        p = (struct piece){to->at, to->n, p.first ? p.first + 1 : 0};
    }
    /* Where other stages follow, the loader has put one behind this that writes the characters. */
    return s->pattern ? by_pattern(k, w, i, p) : stage_do(k, w, i + 1, p);
}

static bool stage_do(const struct splitter *k, struct split_scratch *w, int i, struct piece p) {
    if (i == k->n) {
        w->word(w->to, p.at, p.n);
        return true;
    }
    const struct stage *s = &k->stages[i];
    switch (s->kind) {
    case STAGE_SPLIT: return by_pattern(k, w, i, p);
    case STAGE_BYTES: return by_bytes(k, w, i, p);
    case STAGE_METASPACE: return by_metaspace(k, w, i, p);
    case STAGE_WHITESPACE: return by_whitespace(k, w, i, p);
    case STAGE_DIGITS: return by_character(k, w, i, p, s->each ? ISOLATED : CONTIGUOUS);
    case STAGE_WHITESPACE_SPLIT: return by_character(k, w, i, p, REMOVED);
    case STAGE_PUNCTUATION: return by_character(k, w, i, p, s->behaviour);
    case STAGE_WRITE_BYTES: {
        struct utf8_text *to = &w->stages[i].text;
        to->n = 0;
        add_byte_characters(to, p.at, p.first);
        size_t first = to->n;
        add_byte_characters(to, p.at + p.first, p.n - p.first);
        return stage_do(k, w, i + 1, (struct piece){to->at, to->n, first});
    }
    }
    return true;
}

void splitter_finish(struct splitter *k) {
    k->bytes_last = k->n > 0 && k->stages[k->n - 1].kind == STAGE_BYTES;
    const struct stage *s = &k->stages[0];
    k->exact = k->n > 0 && s->pattern && s->pattern->known && keeps_matches(s) &&
               !(s->kind == STAGE_BYTES && s->prefix_space);
}

bool split(const struct splitter *k, struct split_scratch *w, struct piece p) {
    return !p.n || stage_do(k, w, 0, p);
}

bool split_part(const struct splitter *k, struct split_scratch *w, struct piece p, size_t from,
                size_t to) {
    return by_known(k, w, 0, p, from, to);
}

void split_scratch_free(struct split_scratch *w) {
    for (int i = 0; i < MOST_STAGES; i++) {
        finder_free(&w->stages[i].finder);
        utf8_text_free(&w->stages[i].text);
    }
}

void splitter_free(struct splitter *k) {
    for (int i = 0; i < k->n; i++) pattern_free(k->stages[i].pattern);
}
