#include "parallel/schedule_order.h"

#include <stdlib.h>

#include "kernels/die.h"

static void add(struct schedule *s, int rank, enum action_kind kind, int chunk, int micro_batch) {
    /* zbv makes the order of a longer step. */
    if (micro_batch >= s->shape.micro_batches) return;
    schedule_add(s, rank, (struct action){kind, chunk, micro_batch, -1, -1});
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

static void order_1f1b(struct schedule *s, enum action_kind backward) {
    int P = s->shape.ranks, m = s->shape.micro_batches;
    for (int r = 0; r < P; r++) {
        int f = 0, b = 0, ahead = smaller(P - 1 - r, m);
        while (f < ahead) add(s, r, ACTION_FORWARD, 0, f++);
        while (f < m) {
            add(s, r, ACTION_FORWARD, 0, f++);
            add(s, r, backward, 0, b++);
        }
        while (b < m) add(s, r, backward, 0, b++);
    }
}

static void order_zbv(struct schedule *s) {
    int P = s->shape.ranks, n = s->shape.micro_batches;
    if (n < 2 * P - 1) n = 2 * P - 1;
    for (int r = 0; r < P; r++) {
        int f0 = 0, f1 = 0, b0 = 0, b1 = 0;
        for (int i = 0; i < 2 * (P - r) - 1; i++) add(s, r, ACTION_FORWARD, 0, f0++);
        for (int i = 0; i < r; i++) {
            add(s, r, ACTION_FORWARD, 1, f1++);
            add(s, r, ACTION_FORWARD, 0, f0++);
        }
        for (int i = 0; i < P - r; i++) {
            add(s, r, ACTION_FORWARD, 1, f1++);
            add(s, r, ACTION_BACKWARD_INPUT, 1, b1++);
        }
        while (f1 < n) {
            if (f0 < n) add(s, r, ACTION_FORWARD, 0, f0++);
            add(s, r, ACTION_BACKWARD_INPUT, 0, b0++);
            add(s, r, ACTION_FORWARD, 1, f1++);
            add(s, r, ACTION_BACKWARD_INPUT, 1, b1++);
        }
        while (b0 < n) {
            add(s, r, ACTION_BACKWARD_INPUT, 0, b0++);
            if (b1 < n) add(s, r, ACTION_BACKWARD_INPUT, 1, b1++);
        }
    }
}

/* ------------------------------------------------------------------------------- interleaved */

/* (chunk, micro-batch) of each forward, the same for all ranks; backwards mirror the chunks. */
struct place {
    int chunk, micro_batch;
};

static int n_groups(const struct schedule_shape *shape, int group, int choice) {
    int whole = shape->micro_batches / group;
    bool rest = shape->micro_batches % group != 0;
    return choice == ORDER_ALL_LARGER ? whole : whole + rest;
}

static struct place *places(const struct schedule_shape *shape, int group, int choice) {
    int m = shape->micro_batches, v = shape->chunks, n = n_groups(shape, group, choice);
    struct place *p = die_alloc((unsigned long)m * (unsigned long)v * sizeof *p), *next = p;
    for (int g = 0; g < n; g++) {
        int from = (int)((int64_t)m * g / n), to = (int)((int64_t)m * (g + 1) / n);
        if (choice == ORDER_LAST_SMALLER) from = g * group, to = smaller(m, from + group);
        for (int c = 0; c < v; c++)
            for (int i = from; i < to; i++) *next++ = (struct place){c, i};
    }
    return p;
}

struct plan {
    struct schedule *s;
    const struct place *place;
    int total;       /* forwards of a rank */
    int *warm;       /* [rank] */
    int *f, *b;      /* [rank] done */
    char *passed[2]; /* [stage][micro-batch], forward and backward */
};

static struct place backward_place(const struct plan *p, int i) {
    return (struct place){p->s->shape.chunks - 1 - p->place[i].chunk, p->place[i].micro_batch};
}

/* Does the rank's next forward or backward if what it needs is there. */
static bool try_next(struct plan *p, int rank, bool backward) {
    const struct schedule_shape *shape = &p->s->shape;
    struct place at = backward ? backward_place(p, p->b[rank]) : p->place[p->f[rank]];
    int stage = schedule_stage(shape, rank, at.chunk), m = shape->micro_batches;
    int end = backward ? schedule_stages(shape) - 1 : 0;
    bool turns = backward && stage == end; /* the loss: its own forward is what it needs */
    int from = stage == end ? stage : backward ? stage + 1 : stage - 1;
    if ((stage != end || turns) && !p->passed[backward && !turns][from * m + at.micro_batch])
        return false;
    p->passed[backward][stage * m + at.micro_batch] = 1;
    add(p->s, rank, backward ? ACTION_BACKWARD : ACTION_FORWARD, at.chunk, at.micro_batch);
    (backward ? p->b : p->f)[rank]++;
    return true;
}

static bool follow_plan(struct plan *p, int rank) {
    bool moved = false;
    while (p->b[rank] < p->total) {
        bool forward = p->f[rank] < p->total && p->f[rank] - p->b[rank] <= p->warm[rank];
        if (!try_next(p, rank, !forward)) break;
        moved = true;
    }
    return moved;
}

/* All ranks stand: one forward ahead of the plan. The earliest forward that is missing anywhere can
 * always be done, so this ends. */
static bool step_ahead(struct plan *p) {
    for (int r = 0; r < p->s->shape.ranks; r++)
        if (p->f[r] < p->total && try_next(p, r, false)) return true;
    return false;
}

static void order_interleaved(struct schedule *s, int group, int choice) {
    const struct schedule_shape *shape = &s->shape;
    int P = shape->ranks, m = shape->micro_batches, v = shape->chunks;
    unsigned long cells = (unsigned long)(P * v) * (unsigned long)m;
    struct place *place = places(shape, group, choice);
    struct plan p = {.s = s, .place = place, .total = m * v};
    int n = n_groups(shape, group, choice);
    int widest = choice == ORDER_LAST_SMALLER ? smaller(group, m) : (m + n - 1) / n;
    p.warm = die_alloc((unsigned long)P * 3 * sizeof *p.warm);
    p.f = p.warm + P;
    p.b = p.f + P;
    p.passed[0] = die_alloc(2 * cells);
    p.passed[1] = p.passed[0] + cells;
    /* With one chunk nothing comes round again, and half the warm-up does. */
    for (int r = 0; r < P; r++)
        p.warm[r] = smaller((v > 1 ? 2 : 1) * (P - 1 - r) + (v - 1) * widest, p.total);

    do {
        for (bool moved = true; moved;) {
            moved = false;
            for (int r = 0; r < P; r++) moved |= follow_plan(&p, r);
        }
    } while (step_ahead(&p));
    for (int r = 0; r < P; r++)
        if (p.b[r] < p.total) bug("an interleaved schedule came to a stop");
    free(p.passed[0]);
    free(p.warm);
    free(place);
}

int schedule_orders(const struct schedule_shape *shape, int group) {
    if (shape->kind != SCHEDULE_INTERLEAVED || shape->micro_batches % group == 0) return 1;
    return shape->micro_batches > group ? N_ORDERS : 1;
}

void schedule_order(struct schedule *s, int group, int choice) {
    switch (s->shape.kind) {
    case SCHEDULE_1F1B: order_1f1b(s, ACTION_BACKWARD); break;
    case SCHEDULE_ZERO_BUBBLE: order_1f1b(s, ACTION_BACKWARD_INPUT); break;
    case SCHEDULE_ZBV: order_zbv(s); break;
    default: order_interleaved(s, group, choice);
    }
}
