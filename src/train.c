/* train: steps of gradients and updates, from a corpus to a saved folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/mistakes.h"
#include "kernels/die.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/modes.h"
#include "src/output.h"

static int64_t sum_over_replicas(struct engine *e, int64_t n) {
    struct group *g = e->parallel.replicas;
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(g, 1, I64));
    comm_sum_start(g, &n, 1, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
    return n;
}

/* ---- what is said ---- */

static void say_model(const struct output *o, const struct engine *e, const struct feed *f) {
    const struct deck *d = e->deck;
    struct param_counts n = params_count(&e->model.params);
    const struct mesh_shape *s = &e->shape;
    say(o, "model      %ld parameters in %d tensors, %ld active; layers %s", (long)n.all, n.tensors, (long)n.active,
        e->config->kinds);
    if (e->has_weights) {
        say(o, "weights    from %s; %d tensors there are not used, and kept", e->config->folder, e->weights.n_unused);
        for (int i = 0; i < e->config->n_unused; i++)
            say(o, "           config.json: %s is not used, and kept", e->config->unused[i]);
    } else if (e->config->n_mtp) {
        say(o, "NOTE       multi-token prediction is not trained: its %ld parameters are left out of what is saved", (long)n.mtp);
    }
    say(o, "ranks      %d = data %d x tensor %d%s, %d thread%s each on %s", mesh_ranks(s), s->data, s->tensor,
        d->parallel.sequence ? " (sequence)" : "", e->device.threads, e->device.threads == 1 ? "" : "s", e->device.name);
    say(o, "data       %s", corpus_describe(&f->corpus));
    say(o, "batch      %ld sequences of %ld tokens a step, %d at a time on each rank", (long)f->global_batch,
        (long)f->length, f->rows);
}

/* The decay mask, by row rather than by tensor. */
static void say_decay(const struct output *o, const struct engine *e) {
    const struct params *s = &e->model.params;
    for (int decays = 1; decays >= 0; decays--) {
        char line[4096] = "";
        for (int i = 0; i < s->n_tensors; i++) {
            const struct param_row *row = s->tensor[i].row;
            bool seen = row->may & BUFFER || s->tensor[i].block < 0 || !!(row->may & DECAY) != decays;
            for (int j = 0; !seen && j < i; j++)
                seen = s->tensor[j].row == row || (s->tensor[j].block >= 0 && !strcmp(s->tensor[j].row->name, row->name));
            if (seen || strlen(line) + strlen(row->name) + 2 > sizeof line) continue;
            strcat(line, " ");
            strcat(line, row->name);
        }
        say(o, "%s%s", decays ? "decayed   " : "not decayed", line);
    }
}

/* ---- steps ---- */

static void save(struct engine *e, const struct output *o, int64_t step) {
    char *name = die_format("step-%08ld", (long)step), *folder = die_format("%s/checkpoints/%s", o->folder, name);
    char *latest = die_format("%s\n", name);
    double began = seconds_now();
    engine_save(e, folder, false);
    output_text(o, "checkpoints/latest", latest);
    say(o, "saved      %s (%.1f s)", folder, seconds_now() - began);
    free(name);
    free(folder);
    free(latest);
}

/* One step; false if loss or norm is not finite. */
static bool train_step(struct engine *e, struct feed *f, const struct output *o, int64_t step) {
    const struct deck *d = e->deck;
    double began = seconds_now();
    bool balance = !strcmp(d->moe.balance, "bias");
    struct step_metrics s = {.step = step, .mfu = NAN};
    int64_t count = sum_over_replicas(e, feed_step(f, step));
    s.loss = engine_gradients(e, f->micro_batches, f->batch, count, balance);
    s.grad_norm = optimiser_norm(&e->optimiser, &e->parallel);
    s.learning_rate = optimiser_rate(d, step);
    bool finite = isfinite(s.loss) && isfinite(s.grad_norm);
    if (finite) {
        optimiser_step(&e->optimiser, step, s.learning_rate, s.grad_norm);
        if (balance) optimiser_balance(&e->model, &e->device, &e->parallel, e->real, d->moe.bias_rate);
    }
    s.step_seconds = seconds_now() - began;
    s.tokens = step * f->global_batch * f->length;
    s.tokens_per_second = (double)(f->global_batch * f->length) / s.step_seconds;
    s.peak_bytes = comm_max(e->comm->world, engine_peak_bytes(e));
    output_metrics(o, &s);
    if (step == 1) say(o, "%8s %12s %10s %10s %10s %9s %9s", "step", "tokens", "loss", "norm", "rate", "s/step", "tokens/s");
    if (step == 1 || step % d->log.interval == 0 || step == d->train.steps || !finite)
        say(o, "%8ld %12ld %10.4f %10.3g %10.2e %9.3f %9.0f", (long)step, (long)s.tokens, s.loss, s.grad_norm,
            s.learning_rate, s.step_seconds, s.tokens_per_second);
    return finite;
}

static int train(struct engine *e, struct feed *f, const struct output *o, struct comm *c) {
    const struct deck *d = e->deck;
    int64_t steps = d->train.steps, every = d->checkpoint.interval, step = 0;
    double began = seconds_now();
    for (step = 1; step <= steps; step++) {
        if (!train_step(e, f, o, step)) {
            say(o, "step %ld: loss or gradient norm is not finite; nothing was updated. A lower optimizer.learning_rate or train.clip may help",
                (long)step);
            output_summary(o, c, "the loss or the gradient norm was not finite", 4, engine_peak_bytes(e), NULL);
            return 4;
        }
        if (every && step % every == 0 && step < steps) save(e, o, step);
    }
    if (every) save(e, o, steps);
    double took = seconds_now() - began;
    char text[32], *more = die_format("steps: %ld\nseconds: %.3f\ntokens_per_second: %s\n", (long)steps, took,
                                      number_text(steps ? (double)(steps * f->global_batch * f->length) / took : NAN, text));
    output_summary(o, c, "finished", 0, engine_peak_bytes(e), more);
    free(more);
    say(o, "finished   %ld steps in %.1f s; everything is in %s", (long)steps, took, o->folder);
    return 0;
}

/* What config.json says of a new model: it has no tensors for multi-token prediction; and its time steps are not
 * limited from below, which transformers would do while running, at the least step that dt_bias was drawn for. */
static void settle_new(struct config *c) {
    c->keys.num_nextn_predict_layers = 0;
    c->keys.time_step_min = 1e-9;
}

int mode_train(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct feed feed = {0};
    struct output o;
    int code = 2;
    if (!engine_init(e, r->comm, r->shape, false, true, true, m) && !feed_init(&feed, e, m)) {
        output_begin(&o, e->deck, r->comm, r->argc, r->argv);
        say_model(&o, e, &feed);
        say_decay(&o, e);
        if (!e->has_weights) settle_new(e->config);
        code = train(e, &feed, &o, r->comm);
        output_end(&o);
    }
    feed_free(&feed);
    return code;
}
