#include "parallel/stages.h"

#include <stdlib.h>

#include "kernels/die.h"

/* Tables over (stages used, items taken). */
struct cutting {
    int n_items;
    int64_t *until; /* [items + 1] work before an item */
    int64_t *least; /* [stages + 1][items + 1] */
    int *from;      /* [stages + 1][items + 1] first item of the last stage of the best cut */
    int shift;      /* squares are taken of work >> shift, so that their sum fits */
};

static int64_t work_of(const struct cutting *c, int from, int to) {
    return c->until[to] - c->until[from];
}

static int64_t square(const struct cutting *c, int from, int to) {
    int64_t w = work_of(c, from, to) >> c->shift;
    return w * w;
}

/* Least largest sum of the first `items` in `stages` of them, none empty; INT64_MAX: impossible. */
static int64_t least_largest(struct cutting *c, int stages) {
    int n = c->n_items, width = n + 1;
    for (int s = 0; s <= stages; s++)
        for (int i = 0; i <= n; i++) {
            int64_t best = s == 0 && i == 0 ? 0 : INT64_MAX;
            for (int j = i - 1; s > 0 && j >= s - 1; j--) {
                int64_t last = work_of(c, j, i), before = c->least[(s - 1) * width + j];
                if (last >= best) break; /* grows with every item */
                int64_t largest = last > before ? last : before;
                if (largest < best) best = largest;
            }
            c->least[s * width + i] = best;
        }
    return c->least[stages * width + n];
}

/* Least sum of squares with no sum above `most`; of equals the cut that comes earliest. */
static void most_even(struct cutting *c, int stages, int64_t most) {
    int n = c->n_items, width = n + 1;
    for (int s = 0; s <= stages; s++)
        for (int i = 0; i <= n; i++) {
            int64_t *best = &c->least[s * width + i];
            *best = s == 0 && i == 0 ? 0 : INT64_MAX;
            for (int j = i - 1; s > 0 && j >= s - 1 && work_of(c, j, i) <= most; j--) {
                int64_t before = c->least[(s - 1) * width + j];
                if (before == INT64_MAX) continue;
                int64_t sum = before + square(c, j, i);
                if (sum > *best) continue;
                *best = sum;
                c->from[s * width + i] = j;
            }
        }
}

int64_t stages_cut(int n_items, const int64_t *work, int n_stages, int *first) {
    if (n_stages < 1 || n_items < 0) bug("%d items cut into %d stages", n_items, n_stages);
    int used = n_stages < n_items ? n_stages : n_items;
    unsigned long width = (unsigned long)n_items + 1, cells = ((unsigned long)used + 1) * width;
    struct cutting c = {.n_items = n_items};
    c.until = die_alloc(width * sizeof *c.until);
    c.least = die_alloc(cells * sizeof *c.least);
    c.from = die_alloc(cells * sizeof *c.from);
    for (int i = 0; i < n_items; i++) {
        if (work[i] < 0) bug("item %d has negative work", i);
        c.until[i + 1] = c.until[i] + work[i];
    }
    while (c.until[n_items] >> c.shift >= (int64_t)1 << 31) c.shift++;

    int64_t largest = least_largest(&c, used);
    most_even(&c, used, largest);
    for (int s = used, end = n_items; s > 0; s--)
        first[s - 1] = end = c.from[(unsigned long)s * width + (unsigned long)end];
    /* More stages than items: the last item moves to the last stage. */
    if (used < n_stages) {
        int last = used > 1 ? first[used - 1] : n_items;
        for (int s = used > 1 ? used - 1 : used; s < n_stages; s++) first[s] = last;
    }
    free(c.until);
    free(c.least);
    free(c.from);
    return largest;
}

int64_t stages_balance(int n_layers, const int64_t *work, int64_t embedding, int64_t head,
                       int n_stages, int *first) {
    int64_t *all = die_alloc(((unsigned long)n_layers + 2) * sizeof *all);
    all[0] = embedding;
    for (int i = 0; i < n_layers; i++) all[i + 1] = work[i];
    all[n_layers + 1] = head;
    int64_t largest = stages_cut(n_layers + 2, all, n_stages, first);
    for (int s = 0; s < n_stages; s++) {
        first[s] = first[s] > 0 ? first[s] - 1 : 0;
        if (first[s] > n_layers) first[s] = n_layers;
    }
    free(all);
    return largest;
}

int stages_of_pattern(const char *pattern, char *layers, int room, int *first) {
    int stage = 0, layer = 0;
    if (room > 0) first[0] = 0;
    for (const char *p = pattern; *p; p++) {
        if (*p != '|') {
            layers[layer++] = *p;
        } else if (++stage < room) {
            first[stage] = layer;
        }
    }
    layers[layer] = 0;
    return stage + 1;
}
