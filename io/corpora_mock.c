#include "io/corpora_mock.h"

#include <stdbool.h>

enum { KINDS = 8, SHORTEST = 16 };
enum { NOISE_PERCENT = 20, REPEAT_PERCENT = 4 };

struct language {
    uint64_t seed;
    int64_t vocabulary;
    uint64_t key, count; /* of the sample, and how many numbers it has drawn */
};

/* SplitMix64's finaliser: every bit of the result depends on every bit of x. */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t mock_mix(uint64_t a, uint64_t b) {
    return mix(mix(a) ^ b);
}

static uint64_t draw(struct language *l) {
    return mock_mix(l->key, l->count++);
}

static int64_t below(uint64_t random, int64_t n) {
    return (int64_t)(((unsigned __int128)random * (uint64_t)n) >> 64);
}

/* A word from a random number: the octave of its rank is uniform, so that commonness falls as
 * 1/rank. Ranks are words 1, 2, ...; 0 closes a document. */
static int32_t word(uint64_t random, int64_t vocabulary) {
    int64_t words = vocabulary - 1;
    if (words < 1) return END_OF_MOCK;
    int octaves = 64 - __builtin_clzll((uint64_t)words);
    int64_t first = (int64_t)1 << below(mix(random), octaves);
    int64_t many = 2 * first - 1 > words ? words - first + 1 : first;
    return (int32_t)(first + below(random, many));
}

/* The word after a, b: of three candidates the first is as likely as the others together. */
static int32_t successor(const struct language *l, int32_t a, int32_t b, uint64_t random) {
    uint64_t kind = mock_mix(l->seed ^ 0x6b696e64, (uint64_t)a) % KINDS;
    uint64_t context = mock_mix(l->seed ^ 0x6e657874, (uint64_t)b * KINDS + kind);
    uint64_t which = random & 3;
    return word(mock_mix(context, which < 2 ? 0 : which), l->vocabulary);
}

/* One document of at most n tokens, closed unless it is cut off by n. Returns its length. */
static int document(struct language *l, int32_t *to, int n) {
    int length = SHORTEST + (int)below(draw(l), n), copied = 0, distance = 0;
    bool closed = length <= n;
    if (!closed) length = n;
    for (int t = 0; t < length; t++) {
        uint64_t random = draw(l);
        if (copied == 0 && t > SHORTEST && below(random, 100) < REPEAT_PERCENT) {
            distance = SHORTEST / 2 + (int)below(mix(random), t - SHORTEST / 2);
            copied = SHORTEST;
        }
        if (copied > 0) {
            to[t] = to[t - distance];
            copied--;
        } else if (below(draw(l), 100) < NOISE_PERCENT) {
            to[t] = word(draw(l), l->vocabulary);
        } else {
            to[t] = successor(l, t > 1 ? to[t - 2] : END_OF_MOCK, t > 0 ? to[t - 1] : END_OF_MOCK,
                              draw(l));
        }
    }
    if (closed) to[length - 1] = END_OF_MOCK;
    return length;
}

void mock_tokens(uint64_t seed, int64_t i, int64_t vocabulary, int n, int32_t *tokens) {
    struct language l = {seed, vocabulary, mock_mix(mix(seed), (uint64_t)i), 0};
    for (int t = 0; t < n;) t += document(&l, tokens + t, n - t);
}
