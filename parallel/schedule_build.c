#include "parallel/schedule_build.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/schedule_bytes.h"
#include "parallel/schedule_order.h"
#include "parallel/schedule_transfer.h"
#include "parallel/schedule_weight.h"

enum { TRIES = 6 }; /* of limits, until messages fit beside it */

struct candidate {
    struct schedule list;
    int64_t length, most; /* ticks; what the most burdened rank holds, messages included */
};

static int group_of(const struct schedule_wish *w) {
    return w->group > 0 ? w->group : w->shape.ranks;
}

static bool in_halves(const struct schedule_wish *w) {
    return w->shape.kind == SCHEDULE_ZERO_BUBBLE || w->shape.kind == SCHEDULE_ZBV;
}

static bool better(struct weight_result a, struct weight_result b) {
    return a.length != b.length ? a.length < b.length : a.most_held < b.most_held;
}

/* The shortest of all orders and ways to place the weight halves, from way `first` on, under a limit
 * that knows no messages; 0: what the order holds without halves. */
static struct weight_result place(struct schedule *best, const struct schedule_wish *w, int first,
                                  int64_t limit) {
    struct weight_result least = {0, 0};
    int group = group_of(w), orders = schedule_orders(&w->shape, group);
    best->rank = NULL;
    for (int o = 0; o < orders; o++) {
        struct schedule order;
        schedule_init(&order, &w->shape);
        schedule_order(&order, group, o);
        int64_t most = limit ? limit : schedule_weight_none(&order, w->sizes);
        for (int i = first; i < (in_halves(w) ? N_WEIGHT_CHOICES : first + 1); i++) {
            struct schedule one;
            schedule_init(&one, &w->shape);
            struct weight_result result =
                schedule_weight(&one, &order, w->costs, w->sizes, i, most);
            if (!best->rank || better(result, least)) {
                schedule_free(best);
                *best = one;
                least = result;
            } else {
                schedule_free(&one);
            }
        }
        schedule_free(&order);
    }
    return least;
}

/* Adds the messages; ranks that hold more than `most` (unless 0) are in less haste. */
static struct candidate send(const struct schedule_wish *w, const struct schedule *computing,
                             int64_t length, int64_t most) {
    unsigned long P = (unsigned long)w->shape.ranks;
    enum transfer_haste *haste = die_alloc(P * sizeof *haste);
    int64_t *held = die_alloc(P * sizeof *held);
    struct candidate c = {.length = length};
    for (bool again = true; again;) {
        again = false;
        schedule_init(&c.list, &w->shape);
        schedule_transfer(&c.list, computing, w->costs, haste);
        if (w->sizes) c.most = schedule_bytes(&c.list, w->sizes, held);
        for (int r = 0; most && r < w->shape.ranks; r++) {
            bool can = held[r] > most && haste[r] < TRANSFER_LATE;
            haste[r] += can;
            again |= can;
        }
        if (again) schedule_free(&c.list);
    }
    free(held);
    free(haste);
    return c;
}

static struct candidate shortest(const struct schedule_wish *w, int first, int64_t limit,
                                 int64_t most) {
    struct schedule computing;
    struct weight_result result = place(&computing, w, first, limit);
    struct candidate c = send(w, &computing, result.length, most);
    schedule_free(&computing);
    return c;
}

/* Takes the one that holds no more than `most`, of two such the shorter, else the one that holds less;
 * frees the other. */
static void choose(struct candidate *best, struct candidate *c, int64_t most) {
    bool fits = c->most <= most, fitted = best->most <= most;
    bool take = (fits && (!fitted || c->length < best->length)) ||
                (!fits && !fitted && c->most < best->most);
    schedule_free(take ? &best->list : &c->list);
    if (take) *best = *c;
}

/* In halves, no rank holding more than the schedule it is compared with makes one hold, or than this
 * one's order does where no weight half is put off. */
static struct candidate bounded(const struct schedule_wish *w) {
    struct schedule_wish plain = *w->like;
    plain.shape.micro_batches = w->shape.micro_batches;
    struct candidate like = shortest(&plain, 0, 0, 0);
    struct candidate best = shortest(w, WEIGHT_AT_ONCE, 0, like.most);
    int64_t most = best.most > like.most ? best.most : like.most, over = 1;
    schedule_free(&like.list);
    for (int64_t i = 0, limit = most; i < TRIES && over > 0 && limit > 0; i++, limit -= over) {
        struct candidate c = shortest(w, 0, limit, most);
        over = c.most - most; /* messages, of which the limit knows nothing */
        choose(&best, &c, most);
    }
    return best;
}

void schedule_build(struct schedule *s, const struct schedule_wish *w) {
    const char *why = schedule_refuses(&w->shape);
    if (why) bug("schedule: %s", why);
    *s = (in_halves(w) && w->like ? bounded(w) : shortest(w, 0, 0, 0)).list;
}
