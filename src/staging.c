#include "src/staging.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/mesh.h"
#include "parallel/stages.h"
#include "src/config.h"
#include "src/deck.h"
#include "src/staging_count.h"

enum { TICKS = 100000 }; /* of the slowest stage: finer than any machine is steady */

struct schedule_shape staging_shape(const struct deck *d, int pipeline) {
    struct schedule_shape s = {.kind = SCHEDULE_1F1B, .ranks = pipeline};
    while (s.kind < N_SCHEDULE_KINDS && strcmp(d->parallel.schedule, schedule_kind_name(s.kind)))
        s.kind++;
    if (s.kind == N_SCHEDULE_KINDS) bug("no schedule '%s'", d->parallel.schedule);
    s.chunks = s.kind == SCHEDULE_ZBV ? 2 : (int)d->parallel.virtual_stages;
    return s;
}

static double of(const struct stage_work *w) {
    return w->forward.seconds + w->input.seconds + w->weight.seconds;
}

static void add_share(struct stage_share *to, struct stage_share s) {
    to->work += s.work;
    to->seconds += s.seconds;
}

/* What comes behind. */
static void follow(struct stage_span *to, struct stage_span s) {
    if (to->change + s.rise > to->rise) to->rise = to->change + s.rise;
    to->change += s.change;
}

static void add_work(struct stage_work *to, const struct stage_work *w) {
    add_share(&to->forward, w->forward);
    add_share(&to->input, w->input);
    add_share(&to->weight, w->weight);
    follow(&to->span[ACTION_FORWARD], w->span[ACTION_FORWARD]);
    for (int k = ACTION_BACKWARD; k < N_COMPUTING; k++) { /* from the end */
        struct stage_span s = w->span[k];
        follow(&s, to->span[k]);
        to->span[k] = s;
    }
}

/* Largest sum of a part, so that ticks of all sizes are in proportion to it. */
static double largest(const struct staging *s) {
    double most = 1e-12;
    for (int i = 0; i < s->n; i++)
        if (of(&s->work[i]) > most) most = of(&s->work[i]);
    return most;
}

/* The cut that the counted time asks for. */
static void balance(struct staging *s, const struct config *c, const struct counted *k) {
    int64_t *work = die_alloc(((unsigned long)s->n_layers + 1) * sizeof *work);
    double all = of(&k->embedding) + of(&k->head), scale;
    for (int i = 0; i < s->n_layers; i++) all += of(counted_layer(k, c->kinds[i]));
    scale = all > 0 ? 1e12 / all : 0; /* whole numbers whose sum is far from overflowing */
    for (int i = 0; i < s->n_layers; i++)
        work[i] = (int64_t)(of(counted_layer(k, c->kinds[i])) * scale);
    stages_balance(s->n_layers, work, (int64_t)(of(&k->embedding) * scale),
                   (int64_t)(of(&k->head) * scale), s->n, s->first);
    free(work);
}

/* Where a rank has several stages, their sum is what it takes: the
 * largest, and how uneven they are. */
static void weigh(const struct staging *s, const double *before, double *most, double *squares) {
    *most = *squares = 0;
    for (int r = 0; r < s->shape.ranks; r++) {
        double sum = 0;
        for (int c = 0; c < s->shape.chunks; c++) {
            int i = schedule_stage(&s->shape, r, c);
            struct stage g = staging_stage(s, i);
            sum += before[g.end + 1 + g.heads] - before[g.first + !g.embeds];
        }
        if (sum > *most) *most = sum;
        *squares += sum * sum;
    }
}

/* Moves single boundaries as long as that helps the ranks. */
static void even_out(struct staging *s, const struct config *c, const struct counted *k) {
    double *before = die_alloc(((unsigned long)s->n_layers + 3) * sizeof *before), most, squares;
    before[1] = of(&k->embedding);
    for (int i = 0; i < s->n_layers; i++)
        before[i + 2] = before[i + 1] + of(counted_layer(k, c->kinds[i]));
    before[s->n_layers + 2] = before[s->n_layers + 1] + of(&k->head);
    weigh(s, before, &most, &squares);
    for (bool moved = true; moved;) {
        moved = false;
        for (int way = 0; way < 2 * (s->n - 1); way++) {
            int i = 1 + way / 2, was = s->first[i], now = was + (way % 2 ? 1 : -1);
            int end = i + 1 < s->n ? s->first[i + 1] : s->n_layers;
            double m, q;
            if (now < s->first[i - 1] || now > end) continue;
            s->first[i] = now;
            weigh(s, before, &m, &q);
            /* A change must be more than rounding, or two cuts could take turns for ever. */
            bool better = m < most * (1 - 1e-9) || (m <= most && q < squares * (1 - 1e-9));
            if (better) most = m, squares = q, moved = true;
            else s->first[i] = was;
        }
    }
    free(before);
}

/* What stage i holds, its tokens included. */
static void weigh_memory(struct staging *s, int i, const struct counted *k) {
    const struct stage_span *span = s->work[i].span;
    struct stage g = staging_stage(s, i);
    int64_t tokens = k->tokens + g.embeds * k->ids + g.heads * k->targets;
    int64_t comes = g.embeds ? 0 : k->stream, goes = g.heads ? 0 : k->stream;
    s->kept[i] = span[ACTION_FORWARD].change + comes - goes + tokens;
    s->between[i] = -span[ACTION_BACKWARD_WEIGHT].change + tokens;
    for (int p = 0; p < N_COMPUTING; p++) s->rise[p][i] = span[p].rise;
    s->rise[ACTION_FORWARD][i] += tokens;
}

static void fill_work(struct staging *s, const struct config *c, const struct counted *k) {
    s->work = die_alloc((unsigned long)s->n * sizeof *s->work);
    for (int i = 0; i < s->n; i++) {
        struct stage g = staging_stage(s, i);
        if (g.embeds) add_work(&s->work[i], &k->embedding);
        for (int l = g.first; l < g.end; l++) add_work(&s->work[i], counted_layer(k, c->kinds[l]));
        if (g.heads) add_work(&s->work[i], &k->head);
    }
    double tick = largest(s) / TICKS;
    int64_t **to[] = {&s->forward, &s->input, &s->weight, &s->kept, &s->between};
    for (int p = 0; p < 5; p++) *to[p] = die_alloc((unsigned long)s->n * sizeof **to[p]);
    for (int p = 0; p < N_COMPUTING; p++)
        s->rise[p] = die_alloc((unsigned long)s->n * sizeof *s->rise[p]);
    for (int i = 0; i < s->n; i++) {
        s->forward[i] = (int64_t)(s->work[i].forward.seconds / tick);
        s->input[i] = (int64_t)(s->work[i].input.seconds / tick);
        s->weight[i] = (int64_t)(s->work[i].weight.seconds / tick);
        weigh_memory(s, i, k);
    }
    /* A tick for a message says nothing of how long it takes, but has its receive started before
     * the rank computes what comes before it, and not when it stands and waits. */
    s->costs = (struct schedule_costs){s->forward, s->input, s->weight, 1};
    s->sizes = (struct schedule_sizes){.kept = s->kept, .between = s->between, .stream = k->stream};
    for (int p = 0; p < N_COMPUTING; p++) s->sizes.rise[p] = s->rise[p];
    s->like = (struct schedule_wish){.shape = s->shape, .costs = &s->costs, .sizes = &s->sizes};
    s->like.shape.kind = SCHEDULE_1F1B;
}

struct schedule_wish staging_wish(const struct staging *s, int micro_batches) {
    struct schedule_wish w = {.shape = s->shape,
                              .group = s->group,
                              .costs = s->work ? &s->costs : NULL,
                              .sizes = s->work ? &s->sizes : NULL};
    w.shape.micro_batches = micro_batches;
    if (s->work) w.like = s->plain ? &s->plain->like : &s->like;
    return w;
}

/* 1f1b of the same model on the same ranks: its stages are two of zbv's each, or balanced. */
static void compare_with(struct staging *s, const struct config *c, const struct counted *k,
                         bool drawn) {
    struct staging *p = s->plain = die_alloc(sizeof *p);
    p->shape = (struct schedule_shape){.kind = SCHEDULE_1F1B, .ranks = s->shape.ranks, .chunks = 1};
    p->n = s->shape.ranks;
    p->n_layers = s->n_layers;
    p->first = die_alloc((unsigned long)p->n * sizeof *p->first);
    for (int i = 0; i < p->n; i++) p->first[i] = s->first[2 * i];
    if (!drawn) balance(p, c, k);
    fill_work(p, c, k);
}

void staging_init(struct staging *s, const struct deck *d, const struct config *c,
                  const struct mesh_shape *shape) {
    memset(s, 0, sizeof *s);
    s->shape = staging_shape(d, shape->pipeline);
    s->group = (int)d->parallel.micro_batch_group;
    s->n = schedule_stages(&s->shape);
    s->n_layers = c->n_layers;
    s->first = die_alloc((unsigned long)s->n * sizeof *s->first);
    if (s->n == 1) return;
    struct counted k;
    staging_count(&k, d, c, shape);
    if (*d->parallel.stages) {
        char *layers = die_alloc(strlen(d->parallel.stages) + 1);
        stages_of_pattern(d->parallel.stages, layers, s->n, s->first);
        free(layers);
    } else {
        balance(s, c, &k);
        if (s->shape.chunks > 1) even_out(s, c, &k);
    }
    fill_work(s, c, &k);
    if (s->shape.kind == SCHEDULE_ZBV) compare_with(s, c, &k, *d->parallel.stages);
}

void staging_free(struct staging *s) {
    if (s->plain) staging_free(s->plain);
    free(s->plain);
    for (int p = 0; p < N_COMPUTING; p++) free(s->rise[p]);
    free(s->first);
    free(s->work);
    free(s->forward);
    free(s->input);
    free(s->weight);
    free(s->kept);
    free(s->between);
    memset(s, 0, sizeof *s);
}

struct stage staging_stage(const struct staging *s, int i) {
    return (struct stage){s->first[i], i + 1 < s->n ? s->first[i + 1] : s->n_layers, i == 0,
                          i == s->n - 1};
}

int staging_of_layer(const struct staging *s, int layer) {
    int i = s->n - 1;
    while (s->first[i] > layer) i--; /* empty stages begin where the next one does */
    return i;
}

int staging_rank(const struct staging *s, int i) {
    return schedule_rank_of(&s->shape, i);
}

char *staging_text(const struct staging *s, const struct config *c) {
    char *text = die_alloc((unsigned long)(s->n + s->n_layers) + 1), *p = text;
    for (int i = 0; i < s->n; i++) {
        struct stage g = staging_stage(s, i);
        if (i) *p++ = '|';
        for (int l = g.first; l < g.end; l++) *p++ = c->kinds[l];
    }
    return text;
}
