#include "src/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/die.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/modes.h"
#include "src/output.h"

struct measured_loss evaluate_loss(struct engine *e, struct feed *f, struct stop *stop) {
    struct measured_loss r = {0};
    int64_t counted = 0, all = feed_rounds(f);
    double began = seconds_now();
    engine_loss_begin(e);
    while (r.rounds < all && !r.wish) {
        counted += feed_validation(f, r.rounds++);
        engine_loss_add(e, f->micro_batches, f->batch);
        if (!stop || r.rounds == all) continue;
        double now = seconds_now();
        r.wish = stop_agree(stop, e->comm, now - began);
        began = now;
    }
    r.tokens = comm_total(e->parallel.replicas, counted);
    double sum = engine_loss_sum(e);
    r.loss = r.tokens ? sum / (double)r.tokens : NAN;
    return r;
}

/* What was measured of an evaluation that had to stop is told, but is no result. */
static int end_early(const struct output *o, struct run *r, const struct feed *f,
                     const struct measured_loss *l, const struct stop *stop) {
    char number[32],
        *why = die_format("early, by %s; the same command starts over", stop_reason(l->wish));
    say(o, "loss so far %s, after %ld of %ld rounds", number_text(l->loss, number), (long)l->rounds,
        (long)feed_rounds(f));
    say(o, "stopped %s; there is no evaluation.json", why);
    output_summary(o, r->comm, why, 3, engine_peak_bytes(r->engine), NULL);
    if (o->speaks) stop_clear(stop);
    free(why);
    return 3;
}

static int end_whole(const struct output *o, struct run *r, const struct measured_loss *l,
                     double seconds) {
    int code = isfinite(l->loss) ? 0 : 4;
    char a[32], b[32],
        *json = die_format("{\"loss\": %s, \"perplexity\": %s, \"tokens\": %ld}\n",
                           number_text(l->loss, a), number_text(exp(l->loss), b), (long)l->tokens);
    output_text(o, "evaluation.json", json);
    say(o, "loss %s, perplexity %s, over %ld tokens in %.1f s", a, b, (long)l->tokens, seconds);
    output_summary(o, r->comm, code ? "the loss is not finite" : "finished", code,
                   engine_peak_bytes(r->engine), NULL);
    free(json);
    return code;
}

/* Mode evaluate: over the validation part if data.split holds one out, else over everything. */
int mode_evaluate(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct feed feed = {0};
    struct stop stop;
    struct output o;
    int code = 2;
    stop_init(&stop, e->deck);
    if (!feed_fits(e->deck, r->shape, r->comm, m) &&
        !engine_init(e, r->comm, r->shape, false, false, false, m) && !feed_init(&feed, e, m)) {
        output_begin(&o, e->deck, r->comm, r->argc, r->argv, -1);
        output_remove(&o, "evaluation.json"); /* an earlier run's */
        double began = seconds_now();
        struct measured_loss l = evaluate_loss(e, &feed, &stop);
        code = l.wish ? end_early(&o, r, &feed, &l, &stop)
                      : end_whole(&o, r, &l, seconds_now() - began);
        output_end(&o);
    }
    feed_free(&feed);
    return code;
}
