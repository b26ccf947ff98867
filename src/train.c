/* train: steps of gradients and updates, from a corpus to a saved folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/timer.h"
#include "src/diagnose.h"
#include "src/engine.h"
#include "src/evaluate.h"
#include "src/feed.h"
#include "src/lastwords.h"
#include "src/loads.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/rate.h"
#include "src/resume.h"
#include "src/show.h"
#include "src/stop.h"
#include "src/trace.h"

struct training {
    struct engine *e;
    struct comm *c;
    struct feed feed;
    struct output o;
    struct stop stop;
    struct resume resume;
    struct show show;
    struct loads loads;
    int64_t steps;
};

/* A loss or norm that is not finite: says where it began. Returns whether the run goes on without
 * this update. */
static bool not_finite(struct training *r, int64_t step) {
    bool skip = !strcmp(r->e->deck->train.on_nonfinite, "skip");
    char *where = diagnose(r->e, r->feed.micro_batches, r->feed.batch,
                           (step - 1) * r->feed.global_batch + r->feed.first);
    say(&r->o, "step %ld: loss or gradient norm is not finite: %s; %s", (long)step, where,
        skip ? "this update is left out"
             : "nothing was updated. A lower optimizer.learning_rate or train.clip may help, or "
               "train.on_nonfinite: skip");
    free(where);
    show_did(&r->show, 's', NULL);
    return skip;
}

/* One step; false if the run must end for numbers that are not finite. */
static bool train_step(struct training *r, int64_t step, double *seconds) {
    struct engine *e = r->e;
    struct feed *f = &r->feed;
    const struct deck *d = e->deck;
    double began = seconds_now();
    struct timer *timer = e->comm->timer;
    bool goes_on = true;
    struct step_metrics s = {.step = step, .mfu = NAN};
    struct costs before;
    costs_read(&before, e);
    trace_begin(e, step);
    int64_t since = trace_now();
    lastwords_at(step, "data");
    timer_enter(timer, RANGE_DATA);
    int64_t count = comm_total(e->parallel.replicas, feed_step(f, step));
    timer_leave(timer);
    trace_span("data", NULL, since);
    lastwords_at(step, "forward and backward");
    s.loss = engine_gradients(e, f->micro_batches, f->batch, count, true);
    struct router_losses router = engine_router_losses(e);
    s.balances = e->experts.balancing.even_sum;
    s.squares = e->experts.balancing.square_sum;
    s.loss_balance = router.balance;
    s.loss_z = router.z;
    lastwords_at(step, "update");
    since = trace_now();
    timer_enter(timer, RANGE_OPTIMISER);
    s.grad_norm = optimiser_norm(&e->optimiser, &e->parallel);
    s.learning_rate = rate_at(d, r->steps, step);
    loads_take(&r->loads, e);
    if (r->loads.layers) s.loads = &r->loads;
    s.each_load = d->log.loads;
    if (isfinite(s.loss) && isfinite(s.grad_norm)) {
        optimiser_step(&e->optimiser, step, s.learning_rate, s.grad_norm);
        if (!strcmp(d->moe.balance, "bias")) loads_correct(&r->loads, e, d->moe.bias_rate);
    } else {
        goes_on = not_finite(r, step);
    }
    timer_leave(timer);
    trace_span("update", NULL, since);
    s.step_seconds = seconds_now() - began;
    s.mfu = machine_share(&r->show.machine, s.step_seconds);
    costs_read(&r->show.costs, e);
    costs_add(&r->show.costs, &before, -1);
    show_stepped(&r->show);
    trace_end(e, &r->o);
    int64_t every = d->train.validation_interval;
    if (every && goes_on && (step % every == 0 || step == r->steps)) {
        lastwords_at(step, "validation");
        s.validated = true;
        timer_enter(timer, RANGE_VALIDATION);
        s.validation = evaluate_loss(e, f, NULL).loss;
        timer_leave(timer);
        show_did(&r->show, 'e', "%.4f", s.validation);
    }
    *seconds = seconds_now() - began;
    s.tokens = step * f->global_batch * f->length;
    s.tokens_per_second = (double)(f->global_batch * f->length) / s.step_seconds;
    s.peak_bytes = comm_max(e->comm->world, engine_peak_bytes(e));
    show_step(&r->show, &s);
    return goes_on;
}

static void record(const struct training *r, int64_t step) {
    if (step > r->resume.step) recorded_write(r->e, &r->loads, step, &r->o);
}

static void save(struct training *r, int64_t step) {
    lastwords_at(step, "checkpoint");
    timer_enter(r->c->timer, RANGE_CHECKPOINT);
    r->stop.last_save = resume_save(r->e, &r->o, step, r->feed.corpus.identity);
    timer_leave(r->c->timer);
    record(r, step);
    show_did(&r->show, 'c', NULL);
}

static int train(struct training *r) {
    int64_t every = r->e->deck->checkpoint.interval, step = r->resume.step;
    double seconds = 0;
    enum stop_wish wish = STOP_NO;
    if (every && !r->steps && !r->resume.found) save(r, 0);
    if (step < r->steps) wish = stop_agree(&r->stop, r->c, 0); /* asked while it was starting */
    if (wish && every && !r->resume.found) save(r, 0); /* so that it can go on from the beginning */
    while (step < r->steps && !wish) {
        if (!train_step(r, ++step, &seconds)) {
            show_line(&r->show, true);
            return show_end(&r->show, "the loss or the gradient norm was not finite", 4);
        }
        if (step < r->steps) wish = stop_agree(&r->stop, r->c, seconds);
        if (every && (step % every == 0 || wish || step == r->steps)) save(r, step);
        show_line(&r->show, wish != STOP_NO);
    }
    record(r, step);
    if (!wish) return show_end(&r->show, "finished", 0);
    if (r->o.speaks) stop_clear(&r->stop);
    char *why = die_format("early, by %s; %s", stop_reason(wish),
                           every ? "the same command continues"
                                 : "checkpoint.interval is 0, so nothing is saved");
    int code = show_end(&r->show, why, every ? 3 : 0); /* all that was asked for has been done */
    free(why);
    return code;
}

/* What config.json says of a new model: it has no tensors for multi-token prediction; and its time
 * steps are not limited from below, which transformers would do while running, at the least step
 * that dt_bias was drawn for. */
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
    if (show_open(&t->show, r, m)) return false;
    if (feed_fits(d, r->shape, r->comm, m)) return false;
    if (output_lock(d->run.output, r->comm, m)) return false;
    resume_find(&t->resume, d, m);
    stop_init(&t->stop, d);
    if (t->resume.found && !m->n) engine_reopen(e, t->resume.folder, m);
    if (comm_max(r->comm->world, m->n)) return false;
    if (engine_init(e, r->comm, r->shape, false, true, true, m)) return false;
    if (t->resume.found && resume_read(&t->resume, e, m)) return false;
    if (feed_init(&t->feed, e, m)) return false;
    if (t->resume.found && t->resume.data && t->resume.data != t->feed.corpus.identity)
        deck_mistake(d, m, "data.path",
                     "the text is not what it was when the run in %s began; with "
                     "checkpoint.resume: never it begins anew",
                     d->run.output);
    return !comm_max(r->comm->world, m->n);
}

int mode_train(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct training t = {.e = e, .c = r->comm};
    int code = 2;
    if (prepare(&t, r, m)) {
        char *before = r->comm->rank == 0 ? lastwords_of_before(e->deck->run.output) : NULL;
        t.steps = count_steps(e->deck, &t.feed);
        loads_init(&t.loads, e);
        if (r->comm->rank == 0) resume_sweep(e->deck->run.output);
        output_begin(&t.o, e->deck, r->comm, r->argc, r->argv, t.resume.found ? t.resume.step : -1);
        lastwords_begin(e->deck->run.output, r->comm->rank, r->comm->size,
                        (int)e->deck->run.watchdog);
        show_begin(&t.show, &t.o, &t.feed, t.resume.step, t.steps);
        if (before) say(&t.o, "NOTE      %s", before);
        free(before);
        if (!e->config->folder) settle_new(e->config);
        if (t.resume.found)
            say(&t.o, "NOTE      %s after step %ld, from %s",
                t.resume.step < t.steps ? "continues"
                                        : "had finished, and there is nothing left to do",
                (long)t.resume.step, t.resume.folder);
        code = train(&t);
        output_end(&t.o);
        lastwords_end();
        trace_free();
    }
    show_free(&t.show);
    loads_free(&t.loads);
    feed_free(&t.feed);
    free(t.resume.folder);
    return code;
}
