#include "io/corpora.h"

#include <stdio.h>
#include <stdlib.h>

#include "io/corpora_mock.h"
#include "io/corpora_text.h"
#include "io/mistakes.h"
#include "kernels/die.h"

/* The order of samples: a Feistel network over the smallest square power of two that holds n;
 * numbers that fall beyond n walk on through the network until one does not (less than four steps
 * on average). */
int64_t corpus_permute(uint64_t key, int64_t n, int64_t i) {
    int half = 1;
    while (half < 31 && (int64_t)1 << 2 * half < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (mock_mix(key + round, right) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

int corpus_mock(struct corpus *c, uint64_t seed, int64_t vocabulary, int length) {
    *c = (struct corpus){"mock", seed, vocabulary, length, true, INT64_MAX, NULL};
    return 0;
}

int corpus_text(struct corpus *c, uint64_t seed, int n_paths, char **paths, int length,
                bool mask_documents, struct group *g, struct mistakes *m) {
    *c = (struct corpus){"text", seed, END_OF_TEXT + 1, length, mask_documents, 0, NULL};
    struct text_files *t = die_alloc(sizeof *t);
    c->own = t;
    int failed = text_files_list(t, n_paths, paths, g, m);
    int64_t tokens = t->begin[t->n];
    c->samples = tokens > length ? (tokens - 1) / length : 0;
    if (!failed && t->n == 0)
        mistake(m, "data.path", 0, "no text file found (%s)", corpus_describe(c));
    else if (!failed && c->samples == 0)
        mistake(m, "data.path", 0,
                "the text has %lld tokens, too few for one sample of %d and the token after it; "
                "shorten "
                "train.sequence_length or give more text",
                (long long)tokens, length);
    if (c->samples > 0 && !failed) return 0;
    corpus_free(c);
    return -1;
}

void corpus_sample(const struct corpus *c, int64_t i, int32_t *tokens, int32_t *start,
                   bool *target_counts) {
    int32_t close = END_OF_MOCK;
    if (c->own) {
        uint64_t key = mock_mix(c->seed, (uint64_t)(i / c->samples));
        int64_t sample = corpus_permute(key, c->samples, i % c->samples);
        text_files_tokens(c->own, sample * c->length, (int64_t)c->length + 1, tokens);
        close = END_OF_TEXT;
    } else {
        mock_tokens(c->seed, i, c->vocabulary, c->length + 1, tokens);
    }
    int32_t begin = 0;
    for (int t = 0; t < c->length; t++) {
        bool last = c->mask_documents && tokens[t] == close;
        start[t] = begin;
        target_counts[t] = !last;
        if (last) begin = t + 1;
    }
}

const char *corpus_describe(const struct corpus *c) {
    static char line[512];
    const struct text_files *t = c->own;
    if (!t) {
        snprintf(line, sizeof line, "mock: seeded tokens below %lld", (long long)c->vocabulary);
        return line;
    }
    int n = snprintf(line, sizeof line, "text: %lld files, %lld bytes, %lld samples of %d a pass",
                     (long long)t->n, (long long)t->bytes, (long long)c->samples, c->length);
    const struct {
        int64_t n;
        const char *what;
    } out[] = {{t->binary, "binary"},
               {t->unreadable, "unreadable"},
               {t->empty, "empty"},
               {t->twice, "named twice"},
               {t->folders, "folders linked or hidden"}};
    const char *before = "; left out: ";
    for (size_t k = 0; k < sizeof out / sizeof *out; k++) {
        if (out[k].n == 0) continue;
        n += snprintf(line + n, sizeof line - (size_t)n, "%s%lld %s", before, (long long)out[k].n,
                      out[k].what);
        before = ", ";
    }
    return line;
}

void corpus_free(struct corpus *c) {
    if (c->own) text_files_free(c->own);
    free(c->own);
    c->own = NULL;
}
