#include "src/staging_count.h"

#include <string.h>

#include "kernels/die.h"
#include "parallel/context_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"
#include "src/choose_context.h"
#include "src/deck.h"
#include "src/model.h"
#include "src/recompute.h"

const struct stage_work *counted_layer(const struct counted *k, char kind) {
    return &k->layer[strchr(k->kinds, kind) - k->kinds];
}

/* A machine of two cores, say; it is only the two beside each other that matter. */
static const double usual_fp32 = 60e9, usual_memory = 6e9;

static struct speed speed_for(const struct deck *d) {
    const struct deck_machine *k = &d->machine;
    struct speed s = {k->peak_fp32, k->peak_bf16, k->memory_bandwidth};
    if (s.fp32 <= 0) s.fp32 = s.bf16 > 0 ? s.bf16 / 2 : 0;
    if (s.memory <= 0) s.memory = s.fp32 > 0 ? s.fp32 * (usual_memory / usual_fp32) : usual_memory;
    if (s.fp32 <= 0) s.fp32 = s.memory * (usual_fp32 / usual_memory);
    if (s.bf16 <= 0) s.bf16 = 2 * s.fp32;
    return s;
}

/* What the device counted since the last call. */
static struct stage_share since(const struct device *d, struct stage_share *before) {
    struct stage_share all = {0, 0}, was = *before;
    for (int i = 0; i < N_OPS; i++) {
        all.work += d->count[i].work;
        all.seconds += d->count[i].least_s;
    }
    *before = all;
    return (struct stage_share){all.work - was.work, all.seconds - was.seconds};
}

/* What a dry rank needs to run a model. */
struct room {
    struct comm comm;
    struct parallel parallel;
    struct device device;
    struct arena values, grads, work, scratch;
    struct model model;
    struct tape tape;
    struct micro_batch batch;
};

static void room_init(struct room *r, const struct deck *d, const struct config *c,
                      const struct mesh_shape *shape, enum dtype stored) {
    int shares[MAX_SHARES];
    comm_init_dry(&r->comm, mesh_ranks(shape), 0);
    parallel_init(&r->parallel, &r->comm, shape, d->parallel.sequence,
                  params_shares(c, shape->tensor, shares), shares);
    context_choose(d, &r->parallel);
    device_dry(&r->device);
    r->device.speed = speed_for(d);
    struct arena *all[] = {&r->values, &r->grads, &r->work, &r->scratch};
    for (int i = 0; i < 4; i++) arena_init(all[i], "counted", &r->device);
    model_init(&r->model, c, shape, 0, NULL, recompute_layers(d));
    r->model.again = recompute_ops(d);
    model_allocate(&r->model, &r->device, &r->values, &r->grads, NULL, stored);
    void **tokens[] = {&r->batch.ids, &r->batch.start, &r->batch.target, &r->batch.weight,
                       &r->batch.whole_start};
    r->batch.rows = context_rows(shape->context, d->train.micro_batch);
    r->batch.length = context_length(shape->context, d->train.sequence_length);
    for (int i = 0; i < 5; i++) /* addresses that nobody follows */
        arena_take(&r->values, 1, "tokens", tokens[i]);
    tape_init(&r->tape, &r->device, &r->work, &r->scratch, stored, &r->parallel);
}

static void room_free(struct room *r) {
    tape_free(&r->tape);
    model_free(&r->model);
    struct arena *all[] = {&r->values, &r->grads, &r->work, &r->scratch};
    for (int i = 0; i < 4; i++) arena_free_all(all[i]);
    parallel_free(&r->parallel);
    comm_end(&r->comm);
}

static void begin_span(struct room *r, struct stage_span *s) {
    r->work.live_most = r->work.live;
    s->change = (int64_t)r->work.live;
}

static void end_span(struct room *r, struct stage_span *s) {
    s->rise = (int64_t)r->work.live_most - s->change;
    s->change = (int64_t)r->work.live - s->change;
}

static int64_t stream_bytes(const struct room *r, int64_t rows) {
    return (int64_t)arena_round((size_t)(rows * r->model.config->keys.hidden_size) *
                                dtype_size(r->tape.stored));
}

/* Work of the stage forward, and of what `mask` says of its
 * backward; of its weight halves alone. */
static struct stage_work run_stage(struct room *r, const struct stage *s, unsigned mask) {
    const struct micro_batch *b = &r->batch;
    struct pass pass = {0};
    struct tape *t = &r->tape;
    struct layout l = model_stream(t);
    struct stage_work w = {.forward = {0, 0}};
    enum action_kind back = mask == MASK_ALL ? ACTION_BACKWARD : ACTION_BACKWARD_INPUT;
    struct stage_share before = {0, 0};
    int64_t rows = stream_rows(t, b->rows * b->length), width = r->model.config->keys.hidden_size;
    struct tensor *x = s->embeds ? NULL : tape_input(t, "stream", rows, width, &l);
    begin_span(r, &w.span[ACTION_FORWARD]);
    since(&r->device, &before);
    struct tensor *y = model_stage(&r->model, t, s, b, &pass, x, END_LOSSES);
    w.forward = since(&r->device, &before);
    if (s->heads) tensor_drop(t, y);
    end_span(r, &w.span[ACTION_FORWARD]);
    struct tensor *given = s->heads ? NULL : tensor_new(t, "gradient", rows, width, &l);
    if (!s->heads) tensor_drop(t, y); /* it is the next one's */
    begin_span(r, &w.span[back]);
    if (s->heads) tape_backward(t, y, 1, mask);
    else tape_backward_given(t, y, given, mask);
    end_span(r, &w.span[back]);
    w.input = since(&r->device, &before);
    if (x) tape_gradient_drop(x);
    begin_span(r, &w.span[ACTION_BACKWARD_WEIGHT]);
    tape_backward_weights(t);
    end_span(r, &w.span[ACTION_BACKWARD_WEIGHT]);
    w.weight = since(&r->device, &before);
    tape_clear(t);
    return w;
}

/* Some adjoints compute both halves at once: where a schedule does not part them, they run once. */
static struct stage_work count_stage(struct room *r, const struct stage *s, bool parts) {
    struct stage_work w = run_stage(r, s, MASK_INPUT), whole = run_stage(r, s, MASK_ALL);
    struct stage_share both = whole.input;
    w.span[ACTION_BACKWARD] = whole.span[ACTION_BACKWARD];
    if (parts) return w;
    w.weight = (struct stage_share){both.work - w.input.work, both.seconds - w.input.seconds};
    return w;
}

void staging_count(struct counted *k, const struct deck *d, const struct config *c,
                   const struct mesh_shape *shape) {
    struct mesh_shape one = *shape;
    struct config small = *c;
    struct room r = {0};
    bool parts =
        !strcmp(d->parallel.schedule, "zero-bubble") || !strcmp(d->parallel.schedule, "zbv");
    *k = (struct counted){0};
    for (int i = 0; i < c->n_layers; i++)
        if (!strchr(k->kinds, c->kinds[i])) k->kinds[strlen(k->kinds)] = c->kinds[i];
    one.pipeline = 1;
    small.kinds = k->kinds;
    small.n_layers = (int)strlen(k->kinds);
    small.n_mtp = 0;
    room_init(&r, d, &small, &one, !strcmp(d->precision.recipe, "bf16") ? BF16 : F32);
    struct stage embed = {0, 0, true, false}, head = {small.n_layers, small.n_layers, false, true};
    k->embedding = count_stage(&r, &embed, parts);
    for (int i = 0; i < small.n_layers; i++) {
        struct stage s = {i, i + 1, false, false};
        k->layer[i] = count_stage(&r, &s, parts);
    }
    k->head = count_stage(&r, &head, parts);
    int64_t n = r.batch.rows * r.batch.length;
    size_t ints = arena_round((size_t)n * sizeof(int32_t));
    k->stream = stream_bytes(&r, stream_rows(&r.tape, n));
    k->tokens = (int64_t)ints;
    k->ids = (int64_t)ints;
    k->targets = (int64_t)(ints + arena_round((size_t)n * dtype_size(r.tape.real)));
    room_free(&r);
}
