#include "src/engine.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/table.h"
#include "kernels/die.h"
#include "kernels/exact.h"
#include "kernels/mistakes.h"
#include "parallel/data_parallel.h"
#include "parallel/tensor_parallel.h"
#include "parallel/timer.h"
#include "src/choose.h"
#include "src/choose_context.h"
#include "src/deck_rules.h"
#include "src/init.h"
#include "src/recompute.h"
#include "src/trace.h"

enum { MOST_THREADS = 4096 };

/* OMP_NUM_THREADS may be a list, one number a nesting level; the first counts. */
void engine_check_threads(struct mistakes *m) {
    const char *given = getenv("OMP_NUM_THREADS");
    char *end;
    long n = given && *given ? strtol(given, &end, 10) : 1;
    if (given && *given && (end == given || (*end && *end != ',') || n < 1 || n > MOST_THREADS))
        mistake(m, NULL, 0, "OMP_NUM_THREADS is '%.40s'; it must be a number from 1 to %d", given,
                MOST_THREADS);
}

int engine_open(struct engine *e, const struct deck *deck, struct config *c, struct mistakes *m) {
    memset(e, 0, sizeof *e);
    e->deck = deck;
    e->config = c;
    if (!c->folder) return 0;
    if (weights_open(&e->weights, c->folder, m)) return -1;
    e->has_weights = true;
    weights_settle(&e->weights, c);
    return 0;
}

int engine_reopen(struct engine *e, const char *folder, struct mistakes *m) {
    if (e->has_weights) weights_close(&e->weights);
    e->has_weights = false;
    if (weights_open(&e->weights, folder, m)) return -1;
    e->has_weights = true;
    weights_settle(&e->weights, e->config);
    return 0;
}

static int threads_wanted(const struct deck *d, int cores, int ranks_on_host) {
    if (d->run.threads) return (int)d->run.threads;
    const char *given = getenv("OMP_NUM_THREADS");
    int n = given ? atoi(given) : 0;
    if (n > 0 && n <= MOST_THREADS) return n;
    n = cores / (ranks_on_host > 0 ? ranks_on_host : 1);
    return n > 0 ? n : 1;
}

int engine_threads(const struct deck *d, int cores, int ranks_on_host) {
    const int n = threads_wanted(d, cores, ranks_on_host), most = omp_get_thread_limit();
    return n < most ? n : most;
}

/* Formats that new tensors are saved in; those of a folder keep theirs (weights_match). */
static void stored_formats(struct engine *e) {
    const char *p = e->deck->precision.parameters;
    enum dtype d = !strcmp(p, "bf16") ? BF16 : !strcmp(p, "fp16") ? F16 : F32;
    for (int i = 0; i < e->model.params.n_tensors; i++) {
        struct param_tensor *t = &e->model.params.tensor[i];
        t->stored = t->row->may & BUFFER ? F32 : d;
    }
}

/* Ranks that hold the same values compute them again: so all do it by the same instructions, or
 * they would round otherwise, and choose other experts. */
int engine_level(const struct deck *d, struct comm *c) {
    const int best = cpu_best_level(), asked = cpu_level_of(d->run.vectors);
    const int own = asked >= 0 && asked < best ? asked : best;
    return -(int)comm_max(c->world, -own);
}

void engine_check_level(const struct deck *d, struct mistakes *m) {
    const int best = cpu_best_level(), asked = cpu_level_of(d->run.vectors);
    if (strcmp(d->run.vectors, "auto") && (asked < 0 || asked > best))
        deck_mistake(d, m, "run.vectors", "is %s, and the best of this processor is %s",
                     d->run.vectors, cpu_level_name(best));
}

static void make_device(struct engine *e, bool dry) {
    const struct deck *d = e->deck;
    if (dry) {
        device_dry(&e->device);
    } else {
        device_cpu(&e->device, engine_threads(d, e->comm->host_cores, e->comm->host_ranks),
                   d->run.debug);
        e->device.level = engine_level(d, e->comm);
    }
    arena_init(&e->values, "parameters", &e->device);
    arena_init(&e->grads, "gradients", &e->device);
    arena_init(&e->moments, "moments", &e->device);
    arena_init(&e->states, "states", &e->device);
    arena_init(&e->work, "activations", &e->device);
    arena_init(&e->scratch, "scratch", &e->device);
}

/* What activations and the weights of products are held in. Rewriting a folder computes nothing,
 * and must not round what it rewrites. */
static enum dtype stored_format(const struct deck *d) {
    if (!strcmp(d->precision.recipe, "fp64")) return F64;
    return !strcmp(d->precision.recipe, "bf16") && strcmp(d->run.mode, "convert") ? BF16 : F32;
}

static bool any_trained(const struct params *s) {
    for (int i = 0; i < s->n_blocks; i++)
        if (s->block[i].p.trained) return true;
    return false;
}

/* Room for the choices of a step's micro-batches so far. */
static void allocate_seen(struct engine *e) {
    size_t bytes = (size_t)(e->config->keys.n_routed_experts + 1) * sizeof(int64_t);
    for (int i = 0; i < e->config->n_layers; i++)
        if (e->model.layer[i].load)
            arena_take(&e->values, bytes, "choices of a step", &e->model.layer[i].seen);
}

static enum balance_of balance_of(const char *kind) {
    return !strcmp(kind, "batch")    ? OF_MICRO_BATCH
           : !strcmp(kind, "global") ? OF_STEP
                                     : OF_DOCUMENTS;
}

/* The losses of routers are part of what training minimises; in a comparison gradients are those of
 * the text alone. */
static void make_expert_rules(struct engine *e) {
    const struct deck_moe *k = &e->deck->moe;
    struct expert_rules *r = &e->experts;
    r->evenly = !strcmp(k->balance, "forced");
    if (!e->updates || !strchr(e->config->kinds, 'E')) return;
    r->capacity = k->capacity;
    r->of = balance_of(k->aux_kind);
    r->balancing = (struct balancing){.even = k->aux_coefficient, .square = k->z_coefficient};
    if (k->aux_coefficient > 0)
        arena_take(&e->values, sizeof(struct exact), "balance loss", &r->balancing.even_sum);
    if (k->z_coefficient > 0)
        arena_take(&e->values, sizeof(struct exact), "z loss", &r->balancing.square_sum);
    if (k->aux_coefficient > 0 && r->of == OF_STEP) allocate_seen(e);
}

/* Plans may know how tokens choose. More than an expert has room for does not travel. */
static int expect_loads(struct engine *e, struct mistakes *m) {
    struct loads *s = &e->expected.loads;
    const int64_t numbers = deck_micro_batches(e->deck, &e->shape) * mesh_stage_ranks(&e->shape) *
                            e->config->keys.n_routed_experts;
    if (recorded_read(&e->expected, e->deck, e->config, &e->shape, m)) return -1;
    for (int i = 0; i < s->layers; i++) {
        struct layer *l = &e->model.layer[s->layer[i]];
        int64_t *n = s->n + i * s->experts;
        l->expected = n;
        if (e->expected.choices) l->known = e->expected.choices + i * numbers;
        for (int64_t k = 0; k < s->experts; k++) l->expected_of += n[k];
        double room = ceil(e->experts.capacity * (double)l->expected_of / (double)s->experts);
        for (int64_t k = 0; e->experts.capacity > 0 && k < s->experts; k++)
            if ((double)n[k] > room) n[k] = (int64_t)room;
    }
    return 0;
}

int engine_init(struct engine *e, struct comm *comm, const struct mesh_shape *shape, bool dry,
                bool learns, bool updates, struct mistakes *m) {
    const struct deck *d = e->deck;
    int before = m->n, shares[MAX_SHARES];
    e->comm = comm;
    e->shape = *shape;
    e->learns = learns;
    e->updates = updates;
    e->stored = stored_format(d);
    e->real = dtype_real(e->stored);
    staging_init(&e->stages, d, e->config, shape);
    model_init(&e->model, e->config, shape, comm->rank, &e->stages, recompute_layers(d));
    e->model.again = recompute_ops(d);
    stored_formats(e);
    if (e->has_weights) weights_match(&e->weights, &e->model.params, m);
    if (m->n > before) return -1;
    make_device(e, dry);
    parallel_init(&e->parallel, comm, shape, d->parallel.sequence,
                  params_shares(e->config, shape->tensor, shares), shares);
    context_choose(d, &e->parallel);
    if (choose_parameters(d, &e->model.params, m)) return -1;
    if (updates && !any_trained(&e->model.params)) {
        deck_mistake(d, m, "train.freeze", "leaves nothing to train");
        return -1;
    }
    model_allocate(&e->model, &e->device, &e->values, learns ? &e->grads : NULL,
                   updates ? &e->moments : NULL, e->stored);
    arena_take(&e->values, sizeof(struct exact), "loss", &e->loss_sum);
    make_expert_rules(e);
    if (!dry && updates) recorded_begin(e);
    if (dry && *d->plan.routing && expect_loads(e, m)) return -1;
    tape_init(&e->tape, &e->device, &e->work, &e->scratch, e->stored, &e->parallel);
    e->tape.learning = learns;
    pipeline_init(&e->pipeline, e, &e->stages);
    if (!e->has_weights)
        init_parameters(&e->model.params, &e->device, e->real, (uint64_t)d->run.seed);
    else if (!dry &&
             weights_read(&e->weights, &e->model.params, &e->device, e->real, comm->world, m))
        return -1;
    params_round(&e->model.params, &e->device, e->stored);
    if (updates)
        optimiser_init(&e->optimiser, d, &e->model.params, &e->device, &e->moments, e->real);
    return 0;
}

void engine_free(struct engine *e) {
    if (e->comm) {
        optimiser_free(&e->optimiser);
        pipeline_free(&e->pipeline);
        tape_free(&e->tape);
        arena_check_empty(&e->work);
        arena_check_empty(&e->scratch);
        parallel_free(&e->parallel);
        struct arena *const all[] = {&e->values, &e->grads, &e->moments,
                                     &e->states, &e->work,  &e->scratch};
        for (int i = 0; i < 6; i++)
            if (all[i]->base) arena_free_all(all[i]);
    }
    recorded_end(e);
    model_free(&e->model);
    recorded_free(&e->expected);
    staging_free(&e->stages);
    if (e->has_weights) weights_close(&e->weights);
    memset(e, 0, sizeof *e);
}

/* ---- micro-batches ---- */

/* What is left to add up when all micro-batches are through. */
static void sum_gradients(struct engine *e) {
    struct group *ends = e->pipeline.neighbours.ends;
    const struct param *both = e->model.embeddings;
    for (int i = 0; i < e->model.params.n_blocks; i++)
        data_sum_gradient(&e->tape, &e->model.params.block[i].p);
    if (ends && both->trained)
        sum_over(&e->tape, ends, both->grad, both->rows * both->width, e->real);
}

/* Before the first micro-batch: sums are empty, and the part of a token in the whole is known. */
static void begin_balancing(struct engine *e, int n, const struct host_batch *batches) {
    struct balancing *b = &e->experts.balancing;
    size_t bytes = (size_t)(e->config->keys.n_routed_experts + 1) * sizeof(int64_t);
    int64_t tokens = 0;
    if (b->even_sum) device_zero(&e->device, b->even_sum, sizeof(struct exact));
    if (b->square_sum) device_zero(&e->device, b->square_sum, sizeof(struct exact));
    for (int i = 0; i < e->config->n_layers; i++)
        if (e->model.layer[i].seen) device_zero(&e->device, e->model.layer[i].seen, bytes);
    if (!(b->even > 0 || b->square > 0)) return;
    for (int i = 0; !e->device.dry && i < n; i++) {
        size_t of_batch = (size_t)(batches[i].rows * batches[i].length);
        int32_t *document = die_alloc(of_batch * sizeof *document);
        tokens += host_batch_documents(e, &batches[i], document);
        free(document);
    }
    tokens = comm_total(e->parallel.replicas, tokens);
    b->share = tokens ? 1.0 / (double)tokens : 0;
}

double engine_gradients(struct engine *e, int n, const struct host_batch *batches, int64_t count,
                        bool count_experts) {
    struct timer *timer = e->comm->timer;
    params_zero_gradients(&e->model.params, &e->device, e->real);
    engine_loss_begin(e);
    begin_balancing(e, n, batches);
    pipeline_run(&e->pipeline, &(struct pipeline_pass){.what = PASS_GRADIENTS,
                                                       .n = n,
                                                       .batch = batches,
                                                       .seed = count ? 1.0 / (double)count : 0,
                                                       .count_experts = count_experts});
    timer_enter(timer, RANGE_GRADIENTS);
    int64_t since = trace_now();
    sum_gradients(e);
    trace_span("gradient sum", NULL, since);
    double sum = engine_loss_sum(e);
    timer_leave(timer);
    return count ? sum / (double)count : 0;
}

void engine_loss_begin(struct engine *e) {
    device_zero(&e->device, e->loss_sum, sizeof(struct exact));
}

void engine_loss_add(struct engine *e, int n, const struct host_batch *batches) {
    pipeline_run(&e->pipeline,
                 &(struct pipeline_pass){.what = PASS_LOSSES, .n = n, .batch = batches});
}

/* An exact sum on the device, of all ranks. */
static double sum_of_all(struct engine *e, const void *on_device) {
    struct exact sum;
    device_read(&e->device, &sum, on_device, sizeof sum);
    comm_sum_exact(e->comm->world, &sum);
    return exact_value(&sum);
}

double engine_loss_sum(struct engine *e) {
    return sum_of_all(e, e->loss_sum);
}

struct router_losses engine_router_losses(struct engine *e) {
    const struct balancing *b = &e->experts.balancing;
    struct router_losses l = {0};
    double layers = 0;
    for (int i = 0; i < e->config->n_layers; i++) layers += e->config->kinds[i] == 'E';
    if (b->even_sum) l.balance = sum_of_all(e, b->even_sum) / layers;
    if (b->square_sum) l.z = sum_of_all(e, b->square_sum) / layers;
    return l;
}

void engine_logits(struct engine *e, int n, const struct host_batch *batches, void *logits) {
    pipeline_run(
        &e->pipeline,
        &(struct pipeline_pass){.what = PASS_LOGITS, .n = n, .batch = batches, .logits = logits});
}

bool engine_has_head(const struct engine *e) {
    return staging_rank(&e->stages, e->stages.n - 1) == e->parallel.at.pipeline;
}

void engine_save(struct engine *e, const char *folder, bool transformers_names) {
    weights_write(folder, e->has_weights ? &e->weights : NULL, &e->model.params, &e->device,
                  e->real, transformers_names, e->comm->world);
}

int64_t engine_peak_bytes(const struct engine *e) {
    return (int64_t)(e->values.peak + e->grads.peak + e->moments.peak + e->states.peak +
                     e->work.peak + e->scratch.peak);
}
