/* train: steps of gradients and updates, from a corpus to a saved folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/mistakes.h"
#include "kernels/die.h"
#include "src/diagnose.h"
#include "src/engine.h"
#include "src/evaluate.h"
#include "src/feed.h"
#include "src/lastwords.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/rate.h"
#include "src/resume.h"
#include "src/stop.h"

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

struct training {
    struct engine *e;
    struct comm *c;
    struct feed feed;
    struct output o;
    struct stop stop;
    struct resume resume;
    int64_t steps, skipped;
};

/* A loss or norm that is not finite: says where it began. Returns whether the run goes on without this update. */
static bool not_finite(struct training *r, int64_t step) {
    bool skip = !strcmp(r->e->deck->train.on_nonfinite, "skip");
    char *where = diagnose(r->e, r->feed.micro_batches, r->feed.batch, (step - 1) * r->feed.global_batch + r->feed.first);
    say(&r->o, "step %ld: loss or gradient norm is not finite: %s; %s", (long)step, where,
        skip ? "this update is left out" : "nothing was updated. A lower optimizer.learning_rate or train.clip may help, or train.on_nonfinite: skip");
    free(where);
    r->skipped++;
    return skip;
}

/* One step; false if the run must end for numbers that are not finite. */
static bool train_step(struct training *r, int64_t step, double *seconds) {
    struct engine *e = r->e;
    struct feed *f = &r->feed;
    const struct deck *d = e->deck;
    double began = seconds_now();
    char text[32];
    bool balance = !strcmp(d->moe.balance, "bias"), goes_on = true;
    struct step_metrics s = {.step = step, .mfu = NAN};
    lastwords_at(step, "data");
    int64_t count = comm_total(e->parallel.replicas, feed_step(f, step));
    lastwords_at(step, "forward and backward");
    s.loss = engine_gradients(e, f->micro_batches, f->batch, count, balance);
    lastwords_at(step, "update");
    s.grad_norm = optimiser_norm(&e->optimiser, &e->parallel);
    s.learning_rate = rate_at(d, r->steps, step);
    if (isfinite(s.loss) && isfinite(s.grad_norm)) {
        optimiser_step(&e->optimiser, step, s.learning_rate, s.grad_norm);
        if (balance) optimiser_balance(&e->model, &e->device, &e->parallel, e->real, d->moe.bias_rate);
    } else {
        goes_on = not_finite(r, step);
    }
    int64_t every = d->train.validation_interval;
    if (every && goes_on && (step % every == 0 || step == r->steps)) {
        lastwords_at(step, "validation");
        s.validated = true;
        s.validation = evaluate_loss(e, f, NULL);
    }
    s.step_seconds = *seconds = seconds_now() - began;
    s.tokens = step * f->global_batch * f->length;
    s.tokens_per_second = (double)(f->global_batch * f->length) / s.step_seconds;
    s.peak_bytes = comm_max(e->comm->world, engine_peak_bytes(e));
    output_metrics(&r->o, &s);
    if (step == r->resume.step + 1) say(&r->o, "%8s %12s %10s %10s %10s %9s %9s", "step", "tokens", "loss", "norm", "rate", "s/step", "tokens/s");
    if (step == r->resume.step + 1 || step % d->log.interval == 0 || step == r->steps || s.validated || !goes_on)
        say(&r->o, "%8ld %12ld %10.4f %10.3g %10.2e %9.3f %9.0f%s%s", (long)step, (long)s.tokens, s.loss, s.grad_norm,
            s.learning_rate, s.step_seconds, s.tokens_per_second, s.validated ? "  validation " : "", s.validated ? number_text(s.validation, text) : "");
    return goes_on;
}

static int end(struct training *r, int64_t step, double began, const char *why, int code) {
    double took = seconds_now() - began;
    int64_t here = step - r->resume.step;
    char text[32], *more = die_format("steps: %ld\nskipped_updates: %ld\nseconds: %.3f\ntokens_per_second: %s\n", (long)step, (long)r->skipped,
                                      took, number_text(here ? (double)(here * r->feed.global_batch * r->feed.length) / took : NAN, text));
    output_summary(&r->o, r->c, why, code, engine_peak_bytes(r->e), more);
    free(more);
    return code;
}

static int train(struct training *r) {
    int64_t every = r->e->deck->checkpoint.interval, step = r->resume.step;
    double began = seconds_now(), seconds = 0;
    enum stop_wish wish = STOP_NO;
    while (step < r->steps && !wish) {
        if (!train_step(r, ++step, &seconds)) return end(r, step, began, "the loss or the gradient norm was not finite", 4);
        if (step < r->steps) wish = stop_agree(&r->stop, r->c, seconds);
        lastwords_at(step, "checkpoint");
        if (every && (step % every == 0 || wish) && step < r->steps) r->stop.last_save = resume_save(r->e, &r->o, step);
    }
    if (every && step == r->steps && (step > r->resume.step || !r->resume.found)) resume_save(r->e, &r->o, step);
    if (wish) {
        if (r->o.speaks) stop_clear(&r->stop);
        char *why = die_format("early, by %s", stop_reason(wish));
        say(&r->o, "stopped    after step %ld of %ld by %s; %s", (long)step, (long)r->steps, stop_reason(wish),
            every ? "the same command continues" : "nothing is saved (checkpoint.interval is 0)");
        int code = end(r, step, began, why, every ? 3 : 1);
        free(why);
        return code;
    }
    say(&r->o, "finished   %ld steps in %.1f s; everything is in %s", (long)r->steps, seconds_now() - began, r->o.folder);
    return end(r, step, began, "finished", 0);
}

/* What config.json says of a new model: it has no tensors for multi-token prediction; and its time steps are not
 * limited from below, which transformers would do while running, at the least step that dt_bias was drawn for. */
static void settle_new(struct config *c) {
    c->keys.num_nextn_predict_layers = 0;
    c->keys.time_step_min = 1e-9;
}

/* Steps of the run: the deck's, or as many as make the passes over the text it asks for. */
static int64_t count_steps(const struct deck *d, const struct feed *f) {
    if (d->train.epochs <= 0) return d->train.steps;
    return feed_steps(f, d->train.epochs);
}

/* Everything up to the first step; false if m has mistakes or there is nothing to do. */
static bool prepare(struct training *t, struct run *r, struct mistakes *m) {
    struct engine *e = t->e;
    const struct deck *d = e->deck;
    if (output_lock(d->run.output, r->comm, m)) return false;
    resume_find(&t->resume, d, m);
    stop_init(&t->stop, d, m);
    if (t->resume.found && !m->n) engine_reopen(e, t->resume.folder, m);
    if (comm_max(r->comm->world, m->n)) return false;
    if (engine_init(e, r->comm, r->shape, false, true, true, m)) return false;
    if (t->resume.found && resume_read(&t->resume, e, m)) return false;
    return !feed_init(&t->feed, e, m);
}

int mode_train(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct training t = {.e = e, .c = r->comm};
    int code = 2;
    if (prepare(&t, r, m)) {
        char *before = r->comm->rank == 0 ? lastwords_of_before(e->deck->run.output) : NULL;
        t.steps = count_steps(e->deck, &t.feed);
        if (r->comm->rank == 0) resume_sweep(e->deck->run.output);
        output_begin(&t.o, e->deck, r->comm, r->argc, r->argv, t.resume.found ? t.resume.step : -1);
        lastwords_begin(e->deck->run.output, r->comm->rank, r->comm->size, (int)e->deck->run.watchdog);
        if (before) say(&t.o, "NOTE       %s", before);
        free(before);
        say_model(&t.o, e, &t.feed);
        say_decay(&t.o, e);
        if (!e->config->folder) settle_new(e->config);
        if (t.resume.found) say(&t.o, "continued  from %s, after step %ld of %ld", t.resume.folder, (long)t.resume.step, (long)t.steps);
        code = train(&t);
        output_end(&t.o);
        lastwords_end();
    }
    feed_free(&t.feed);
    free(t.resume.folder);
    return code;
}
