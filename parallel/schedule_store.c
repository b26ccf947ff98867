#include "parallel/schedule_store.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

/* A wish as numbers. */
struct key {
    int64_t *at;
    size_t n, room;
};

struct stored_schedule {
    struct key key;
    struct schedule schedule;
    struct stored_schedule *next;
};

static void put(struct key *k, int64_t x) {
    if (k->n == k->room) {
        k->room = k->room ? 2 * k->room : 64;
        k->at = die_realloc(k->at, k->room * sizeof *k->at);
    }
    k->at[k->n++] = x;
}

/* x[n], or that there is none. */
static void put_all(struct key *k, const int64_t *x, int n) {
    put(k, x != NULL);
    for (int i = 0; x && i < n; i++) put(k, x[i]);
}

static void put_wish(struct key *k, const struct schedule_wish *w) {
    const int n = schedule_stages(&w->shape);
    const struct schedule_costs *c = w->costs;
    const struct schedule_sizes *z = w->sizes;
    put(k, w->shape.kind);
    put(k, w->shape.ranks);
    put(k, w->shape.chunks);
    put(k, w->shape.micro_batches);
    put(k, w->group);
    put(k, c != NULL);
    if (c) {
        put_all(k, c->forward, n);
        put_all(k, c->backward_input, n);
        put_all(k, c->backward_weight, n);
        put(k, c->transfer);
    }
    put(k, z != NULL);
    if (z) {
        put_all(k, z->kept, n);
        put_all(k, z->between, n);
        for (int i = 0; i < N_COMPUTING; i++) put_all(k, z->rise[i], n);
        put(k, z->stream);
    }
    put(k, w->like != NULL);
    if (w->like) put_wish(k, w->like);
}

const struct schedule *schedule_store_get(struct schedule_store *s, const struct schedule_wish *w) {
    struct key key = {0};
    put_wish(&key, w);
    for (const struct stored_schedule *x = s->first; x; x = x->next)
        if (x->key.n == key.n && !memcmp(x->key.at, key.at, key.n * sizeof *key.at)) {
            free(key.at);
            return &x->schedule;
        }
    struct stored_schedule *made = die_alloc(sizeof *made);
    made->key = key;
    made->next = s->first;
    schedule_build(&made->schedule, w);
    s->first = made;
    return &made->schedule;
}

void schedule_store_free(struct schedule_store *s) {
    for (struct stored_schedule *x = s->first, *next; x; x = next) {
        next = x->next;
        schedule_free(&x->schedule);
        free(x->key.at);
        free(x);
    }
    s->first = NULL;
}
