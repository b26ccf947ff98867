#include "src/pipeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "parallel/schedule_time.h"
#include "parallel/tensor_parallel.h"
#include "parallel/timer.h"
#include "src/engine.h"
#include "src/lastwords.h"
#include "src/trace.h"

enum { IDS, START, WHOLE_START, TARGET, WEIGHT, DOCUMENT, LOADED };

struct flight {
    struct flight *next; /* spare */
    struct tape tape;
    struct pass pass;
    struct micro_batch batch;
    struct piece *piece[LOADED];
    struct tensor *in, *out;    /* in: NULL in the first stage */
    struct tensor *given;       /* gradient of out, as it was received */
    int requests;               /* open ones that use its memory */
    bool computed, handed_over; /* nothing left to do here; what it made is where it is needed */
};

static void poll(void *comm) {
    comm_progress(comm);
}

void pipeline_init(struct pipeline *p, struct engine *e, const struct staging *stages) {
    memset(p, 0, sizeof *p);
    p->engine = e;
    p->stages = stages;
    neighbours_init(&p->neighbours, &e->parallel, &stages->shape,
                    e->config->keys.tie_word_embeddings);
}

static void forget_schedule(struct pipeline *p) {
    schedule_free(&p->own);
    p->schedule = NULL;
    free(p->request);
    free(p->flight);
    p->request = NULL;
    p->flight = NULL;
}

void pipeline_free(struct pipeline *p) {
    if (!p->engine) return;
    forget_schedule(p);
    while (p->spare) {
        struct flight *f = p->spare;
        p->spare = f->next;
        tape_free(&f->tape);
        free(f);
    }
    neighbours_free(&p->neighbours);
    memset(p, 0, sizeof *p);
}

/* The schedule of n micro-batches; the same on every rank. */
static void make_schedule(struct pipeline *p, int n) {
    const struct staging *s = p->stages;
    if (p->schedule && p->schedule->shape.micro_batches == n) return;
    forget_schedule(p);
    struct schedule_wish wish = staging_wish(s, n);
    if (!p->store) schedule_build(&p->own, &wish);
    p->schedule = p->store ? schedule_store_get(p->store, &wish) : &p->own;
    int slots = p->schedule->rank[p->engine->parallel.at.pipeline].slots;
    p->request = die_alloc(((unsigned long)slots + 1) * sizeof *p->request);
    p->flight = die_alloc((unsigned long)s->shape.chunks * (unsigned long)n * sizeof *p->flight);
}

/* ---- flights ---- */

static struct flight **place_of(struct pipeline *p, int stage, int micro_batch) {
    const struct schedule_shape *s = &p->schedule->shape;
    return &p->flight[schedule_chunk_of(s, stage) * s->micro_batches + micro_batch];
}

static struct flight *flight_of(struct pipeline *p, int stage, int micro_batch) {
    struct flight **at = place_of(p, stage, micro_batch), *f = *at;
    struct engine *e = p->engine;
    if (f) return f;
    f = p->spare;
    if (f) p->spare = f->next;
    else {
        f = die_alloc(sizeof *f);
        tape_init(&f->tape, &e->device, &e->work, &e->scratch, e->stored, &e->parallel);
        f->tape.between = poll;
        f->tape.context = e->comm;
    }
    struct tape tape = f->tape;
    *f = (struct flight){.tape = tape};
    f->tape.learning = p->pass.what == PASS_GRADIENTS;
    f->pass.count_experts = p->pass.count_experts;
    f->pass.number = micro_batch;
    f->pass.experts.evenly = e->experts.evenly;
    if (p->pass.what == PASS_GRADIENTS) f->pass.experts = e->experts;
    return *at = f;
}

static void unload(struct pipeline *p, struct flight *f) {
    for (int i = 0; i < LOADED; i++) {
        if (f->piece[i]) arena_give(&p->engine->work, f->piece[i]);
        f->piece[i] = NULL;
    }
}

/* Gives the flight's memory back once nobody needs it. */
static void land(struct pipeline *p, int stage, int micro_batch) {
    struct flight **at = place_of(p, stage, micro_batch), *f = *at;
    if (f->computed) unload(p, f);
    if (!f->computed || !f->handed_over || f->requests) return;
    tape_clear(&f->tape);
    f->next = p->spare;
    p->spare = f;
    *at = NULL;
}

static void *load(struct engine *e, struct flight *f, int i, const void *host, size_t bytes,
                  const char *label) {
    void *to;
    f->piece[i] = arena_take(&e->work, bytes, label, &to);
    if (host) device_write(&e->device, to, host, bytes);
    return to;
}

/* Whose document each token is, where layers with experts ask. */
static void load_documents(struct engine *e, struct flight *f, const struct stage *s,
                           const struct host_batch *h) {
    const struct expert_rules *r = &f->pass.experts;
    bool experts = memchr(e->config->kinds + s->first, 'E', (size_t)(s->end - s->first)) != NULL;
    bool losses = r->balancing.even > 0 || r->balancing.square > 0;
    if (!experts || !(f->pass.count_experts || losses || r->capacity > 0)) return;
    size_t bytes = (size_t)(h->rows * h->length) * sizeof(int32_t);
    int32_t *document = e->device.dry ? NULL : die_alloc(bytes);
    if (document) host_batch_documents(e, h, document);
    f->pass.document = load(e, f, DOCUMENT, document, bytes, "documents");
    free(document);
}

/* Of a micro-batch's tokens, what the stage reads. */
static void load_batch(struct engine *e, struct flight *f, const struct stage *s,
                       const struct host_batch *h) {
    size_t n = (size_t)(h->rows * h->length), ints = n * sizeof(int32_t),
           reals = n * dtype_size(e->real);
    f->batch = (struct micro_batch){.rows = h->rows, .length = h->length};
    if (s->embeds) f->batch.ids = load(e, f, IDS, h->ids, ints, "ids");
    f->batch.start = load(e, f, START, h->start, ints, "document starts");
    load_documents(e, f, s, h);
    if (host_batch_whole(e))
        f->batch.whole_start = load(e, f, WHOLE_START, h->whole_start,
                                    ints * (size_t)e->shape.context, "whole document starts");
    if (!s->heads) return;
    void *weight = e->device.dry ? NULL : die_alloc(reals);
    if (weight) dtype_convert(weight, e->real, h->weight, F64, n);
    f->batch.target = load(e, f, TARGET, h->target, ints, "targets");
    f->batch.weight = load(e, f, WEIGHT, weight, reals, "target weights");
    free(weight);
}

/* ---- computing ---- */

static bool held_here(const struct pipeline *p, int stage) {
    return stage >= 0 && stage < p->stages->n &&
           staging_rank(p->stages, stage) == p->engine->parallel.at.pipeline;
}

/* Room for the stream at a stage's boundary, or for its gradient. */
static struct tensor *stream(struct pipeline *p, struct flight *f, int micro_batch,
                             const char *label) {
    const struct host_batch *h = &p->pass.batch[micro_batch];
    struct layout l = model_stream(&f->tape);
    return tape_input(&f->tape, label, stream_rows(&f->tape, h->rows * h->length),
                      p->engine->config->keys.hidden_size, &l);
}

/* What the last stage's forward ends in. */
static void take_result(struct pipeline *p, struct flight *f, int micro_batch) {
    struct engine *e = p->engine;
    struct tensor *y = f->out;
    if (p->pass.what == PASS_LOGITS) {
        size_t before = 0, size = (size_t)y->width * dtype_size(e->real);
        for (int i = 0; i < micro_batch; i++)
            before += (size_t)(p->pass.batch[i].rows * p->pass.batch[i].length) * size;
        device_read(&e->device, p->pass.logits + before, y->data, (size_t)y->rows * size);
    } else if (e->parallel.at.tensor == 0) { /* every tensor rank has the same losses */
        DEVICE_RUN(&e->device, exact_sum, e->real, .x = y->data, .sum = e->loss_sum,
                   .n = tensor_elements(y));
    }
}

static void forward(struct pipeline *p, int stage, int i) {
    struct engine *e = p->engine;
    struct flight *f = flight_of(p, stage, i);
    struct stage s = staging_stage(p->stages, stage);
    bool learning = f->tape.learning;
    load_batch(e, f, &s, &p->pass.batch[i]);
    if (!s.embeds && held_here(p, stage - 1)) {
        struct flight *before = flight_of(p, stage - 1, i);
        f->in = tape_input_from(&f->tape, before->out);
        tensor_drop(&before->tape, before->out);
        if (!learning) {
            before->handed_over = true;
            land(p, stage - 1, i);
        }
    }
    f->out = model_stage(&e->model, &f->tape, &s, &f->batch, &f->pass, f->in,
                         p->pass.what == PASS_LOGITS ? END_LOGITS : END_LOSSES);
    if (s.heads) {
        take_result(p, f, i);
        tensor_drop(&f->tape, f->out);
    }
    f->computed = !learning;
    f->handed_over = learning ? s.embeds : s.heads;
    land(p, stage, i);
}

static void backward(struct pipeline *p, int stage, int i, unsigned mask) {
    struct flight *f = flight_of(p, stage, i);
    if (stage == p->stages->n - 1) {
        tape_backward(&f->tape, f->out, p->pass.seed, mask);
    } else if (held_here(p, stage + 1)) {
        struct flight *behind = flight_of(p, stage + 1, i);
        f->given = tape_gradient_of(&f->tape, behind->in);
        tape_gradient_drop(behind->in);
        behind->handed_over = true;
        land(p, stage + 1, i);
        tape_backward_given(&f->tape, f->out, f->given, mask);
    } else {
        tape_backward_given(&f->tape, f->out, f->given, mask);
    }
    f->computed = mask & MASK_WEIGHT;
    land(p, stage, i);
}

static void backward_weight(struct pipeline *p, int stage, int i) {
    struct flight *f = flight_of(p, stage, i);
    tape_backward_weights(&f->tape);
    f->computed = true;
    land(p, stage, i);
}

/* ---- messages ---- */

static void start(struct pipeline *p, const struct action *a, int stage) {
    struct engine *e = p->engine;
    struct flight *f = flight_of(p, stage, a->micro_batch);
    struct request *r = &p->request[a->slot];
    int peer = staging_rank(p->stages, a->peer);
    struct tensor *x = NULL;
    void *memory;
    if (a->kind == ACTION_RECEIVE_ACTIVATION)
        x = f->in = stream(p, f, a->micro_batch, "received stream");
    if (a->kind == ACTION_RECEIVE_GRADIENT)
        x = f->given = stream(p, f, a->micro_batch, "received gradient");
    if (a->kind == ACTION_SEND_ACTIVATION) x = f->out;
    if (a->kind == ACTION_SEND_GRADIENT) x = f->in;
    memory = device_host(&e->device, a->kind == ACTION_SEND_GRADIENT ? x->grad : x->data);
    size_t bytes = (size_t)tensor_elements(x) * dtype_size(x->dtype);
    f->requests++;
    if (action_receives(a->kind)) neighbours_receive(&p->neighbours, peer, memory, bytes, r);
    else neighbours_send(&p->neighbours, peer, memory, bytes, r);
}

static void finish(struct pipeline *p, const struct action *a, int stage) {
    struct flight *f = flight_of(p, stage, a->micro_batch);
    struct timer *timer = p->engine->comm->timer;
    timer_enter(timer, RANGE_PIPELINE);
    comm_wait(&p->request[a->slot]);
    timer_leave(timer);
    f->requests--;
    if (a->kind == ACTION_WAIT_SEND_ACTIVATION) {
        tensor_drop(&f->tape, f->out);
        if (!f->tape.learning) f->handed_over = true;
    }
    if (a->kind == ACTION_WAIT_SEND_GRADIENT) {
        tape_gradient_drop(f->in);
        f->handed_over = true;
    }
    land(p, stage, a->micro_batch);
}

/* ---- the list ---- */

static void tell(const struct action *a) {
    char text[64];
    snprintf(text, sizeof text, "%s, chunk %d, micro-batch %d", action_name(a->kind), a->chunk,
             a->micro_batch);
    lastwords_doing(text);
}

static void pipeline_do(struct pipeline *p, const struct action *a) {
    struct engine *e = p->engine;
    struct timer *timer = e->comm->timer;
    int stage = schedule_stage(&p->schedule->shape, e->parallel.at.pipeline, a->chunk);
    bool computes = action_computes(a->kind);
    tell(a);
    comm_progress(e->comm);
    int64_t since = trace_now();
    if (computes) timer_enter(timer, a->kind == ACTION_FORWARD ? RANGE_FORWARD : RANGE_BACKWARD);
    switch (a->kind) {
    case ACTION_FORWARD: forward(p, stage, a->micro_batch); break;
    case ACTION_BACKWARD: backward(p, stage, a->micro_batch, MASK_ALL); break;
    case ACTION_BACKWARD_INPUT: backward(p, stage, a->micro_batch, MASK_INPUT); break;
    case ACTION_BACKWARD_WEIGHT: backward_weight(p, stage, a->micro_batch); break;
    case ACTION_SEND_ACTIVATION:
    case ACTION_RECEIVE_ACTIVATION:
    case ACTION_SEND_GRADIENT:
    case ACTION_RECEIVE_GRADIENT: start(p, a, stage); break;
    default: finish(p, a, stage);
    }
    if (computes) timer_leave(timer);
    trace_action(a, stage, since);
}

/* The forwards of a schedule, and what moves activations, are a schedule of their own: taking
 * actions out only takes away what others wait for, at both ends alike. */
static bool is_forward(enum action_kind k) {
    return k == ACTION_FORWARD || (!action_computes(k) && !action_of_gradient(k));
}

void pipeline_run(struct pipeline *p, const struct pipeline_pass *pass) {
    p->pass = *pass;
    trace_pass();
    make_schedule(p, pass->n);
    const struct action_list *l = &p->schedule->rank[p->engine->parallel.at.pipeline];
    for (int i = 0; i < l->n; i++)
        if (pass->what == PASS_GRADIENTS || is_forward(l->action[i].kind))
            pipeline_do(p, &l->action[i]);
}

double pipeline_idle(const struct pipeline *p) {
    struct schedule_times t;
    if (!p->schedule) return 0;
    schedule_time(&t, p->schedule, p->stages->work ? &p->stages->costs : NULL, NULL);
    double idle = t.idle;
    schedule_times_free(&t);
    return idle;
}
