#include "src/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/die.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/modes.h"
#include "src/output.h"

double evaluate_loss(struct engine *e, struct feed *f, int64_t *tokens) {
    int64_t counted = 0;
    engine_loss_begin(e);
    for (int64_t round = 0; round < feed_rounds(f); round++) {
        counted += feed_validation(f, round);
        engine_loss_add(e, f->micro_batches, f->batch);
    }
    counted = comm_total(e->parallel.replicas, counted);
    double sum = engine_loss_sum(e);
    if (tokens) *tokens = counted;
    return counted ? sum / (double)counted : NAN;
}

/* Mode evaluate: over the validation part if data.split holds one out, else over everything. */
int mode_evaluate(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct feed feed = {0};
    struct output o;
    int code = 2;
    if (!engine_init(e, r->comm, r->shape, false, false, false, m) && !feed_init(&feed, e, m)) {
        int64_t tokens;
        output_begin(&o, e->deck, r->comm, r->argc, r->argv, -1);
        double began = seconds_now(), loss = evaluate_loss(e, &feed, &tokens);
        code = isfinite(loss) ? 0 : 4;
        char a[32], b[32],
            *json = die_format("{\"loss\": %s, \"perplexity\": %s, \"tokens\": %ld}\n",
                               number_text(loss, a), number_text(exp(loss), b), (long)tokens);
        output_text(&o, "evaluation.json", json);
        say(&o, "loss %s, perplexity %s, over %ld tokens in %.1f s", a, b, (long)tokens,
            seconds_now() - began);
        output_summary(&o, r->comm, code ? "the loss is not finite" : "finished", code,
                       engine_peak_bytes(e), NULL);
        output_end(&o);
        free(json);
    }
    feed_free(&feed);
    return code;
}
