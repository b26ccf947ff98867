#include "parallel/schedule_build.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/schedule_bytes.h"
#include "parallel/schedule_order.h"
#include "parallel/schedule_transfer.h"
#include "parallel/schedule_weight.h"

enum { TRIES = 6, FEW = 6 }; /* limits; micro-batches a rank */

/* A way to build in halves. */
struct way {
    int first;                  /* of enum weight choices, on which the shortest is looked for */
    int64_t limit;              /* of schedule_weight, which knows no messages; 0: none in halves */
    enum transfer_haste *haste; /* [ranks] */
};

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

/* The shortest of all orders and ways to place the weight halves. */
static int64_t place(struct schedule *best, const struct schedule_wish *w, const struct way *way) {
    struct weight_result least = {0, 0};
    int group = group_of(w), orders = schedule_orders(&w->shape, group);
    best->rank = NULL;
    for (int o = 0; o < orders; o++) {
        struct schedule order;
        schedule_init(&order, &w->shape);
        schedule_order(&order, group, o);
        int64_t limit = way->limit ? way->limit : schedule_weight_none(&order, w->sizes);
        for (int i = way->first; i < (in_halves(w) ? N_WEIGHT_CHOICES : way->first + 1); i++) {
            struct schedule one;
            schedule_init(&one, &w->shape);
            struct weight_result result =
                schedule_weight(&one, &order, w->costs, w->sizes, i, limit);
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
    return least.length;
}

/* Adds the messages. Ranks that hold more than `most` (unless 0) get
 * into less haste, step by step. */
static struct candidate shortest(const struct schedule_wish *w, struct way *way, int64_t most) {
    struct schedule computing;
    struct candidate c = {.length = place(&computing, w, way)};
    int64_t *held = die_alloc((unsigned long)w->shape.ranks * sizeof *held);
    for (bool again = true; again;) {
        again = false;
        schedule_init(&c.list, &w->shape);
        schedule_transfer(&c.list, &computing, w->costs, way->haste);
        if (w->sizes) c.most = schedule_bytes(&c.list, w->sizes, held);
        for (int r = 0; most && r < w->shape.ranks; r++) {
            bool can = held[r] > most && way->haste[r] < TRANSFER_LATE;
            way->haste[r] += can;
            again |= can;
        }
        if (again) schedule_free(&c.list);
    }
    free(held);
    schedule_free(&computing);
    return c;
}

static struct candidate as_it_is(const struct schedule_wish *w) {
    return shortest(w, &(struct way){0}, 0);
}

static struct way way_init(const struct schedule_wish *w, int first, int64_t limit) {
    return (struct way){first, limit,
                        die_alloc((unsigned long)w->shape.ranks * sizeof(enum transfer_haste))};
}

/* Takes the one that holds no more than `most`, of two such the shorter, else the one that holds
 * less; frees the other. */
static bool choose(struct candidate *best, struct candidate *c, int64_t most) {
    bool fits = c->most <= most, fitted = best->most <= most;
    bool take = (fits && (!fitted || c->length < best->length)) ||
                (!fits && !fitted && c->most < best->most);
    schedule_free(take ? &best->list : &c->list);
    if (take) *best = *c;
    return take;
}

/* Lowers the limit until messages fit beside it. *way: how the best was made. */
static struct candidate bounded(const struct schedule_wish *w, int64_t *most, struct way *way) {
    struct schedule_wish plain = *w->like;
    plain.shape.micro_batches = w->shape.micro_batches;
    struct candidate like = as_it_is(&plain), best;
    *way = way_init(w, WEIGHT_AT_ONCE, 0);
    best = shortest(w, way, like.most);
    *most = best.most > like.most ? best.most : like.most;
    schedule_free(&like.list);
    int64_t limit = *most, over = 1;
    for (int i = 0; i < TRIES && over > 0 && limit > 0; i++, limit -= over) {
        struct way next = way_init(w, 0, limit);
        struct candidate c = shortest(w, &next, *most);
        over = c.most - *most;
        bool take = choose(&best, &c, *most);
        free(take ? way->haste : next.haste);
        if (take) *way = next;
    }
    return best;
}

/* In halves, no rank holding more than the schedule it is compared with makes one hold, or than
 * this one's order does where no weight half is put off. What is held repeats with the
 * micro-batches, so the way is looked for with few of them. */
static struct candidate in_bounds(const struct schedule_wish *w) {
    struct schedule_wish few = *w;
    struct way way;
    int64_t most;
    if (few.shape.micro_batches > FEW * w->shape.ranks)
        few.shape.micro_batches = FEW * w->shape.ranks;
    struct candidate c = bounded(&few, &most, &way);
    if (few.shape.micro_batches < w->shape.micro_batches) {
        schedule_free(&c.list);
        c = shortest(w, &way, most);
    }
    free(way.haste);
    return c;
}

void schedule_build(struct schedule *s, const struct schedule_wish *w) {
    const char *why = schedule_refuses(&w->shape);
    if (why) bug("schedule: %s", why);
    *s = (in_halves(w) && w->like ? in_bounds(w) : as_it_is(w)).list;
}
