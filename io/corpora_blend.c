#include "io/corpora_blend.h"

#include <stdbool.h>
#include <stdlib.h>

#include "kernels/die.h"

/* Does sample a of source s come before sample b of source t? */
static bool earlier(const int64_t *weight, int s, int64_t a, int t, int64_t b) {
    unsigned __int128 left = (unsigned __int128)(2 * (uint64_t)a + 1) * (uint64_t)weight[t];
    unsigned __int128 right = (unsigned __int128)(2 * (uint64_t)b + 1) * (uint64_t)weight[s];
    return left != right ? left < right : s < t;
}

static int next_turn(int n, const int64_t *weight, const int64_t *had) {
    int s = 0;
    for (int t = 1; t < n; t++)
        if (earlier(weight, t, had[t], s, had[s])) s = t;
    return s;
}

static int last_turn(int n, const int64_t *weight, const int64_t *had) {
    int s = -1;
    for (int t = 0; t < n; t++)
        if (had[t] && (s < 0 || earlier(weight, s, had[s] - 1, t, had[t] - 1))) s = t;
    return s;
}

int blend_turn(int n, const int64_t *weight, int64_t i, int64_t *before) {
    int64_t *had = die_alloc((unsigned long)n * sizeof *had);
    unsigned __int128 total = 0;
    int64_t all = 0;
    for (int s = 0; s < n; s++) total += (uint64_t)weight[s];
    for (int s = 0; s < n; s++) {
        unsigned __int128 share = (unsigned __int128)(uint64_t)i * (uint64_t)weight[s];
        had[s] = (int64_t)((2 * share + total) / (2 * total));
        all += had[s];
    }
    for (; all < i; all++) had[next_turn(n, weight, had)]++;
    for (; all > i; all--) had[last_turn(n, weight, had)]--;
    int s = next_turn(n, weight, had);
    *before = had[s];
    free(had);
    return s;
}
