#include "src/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "io/corpora.h"
#include "kernels/die.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/rows.h"

double evaluate_loss(struct engine *e, const struct corpus *c, int64_t samples, int64_t *tokens) {
    int64_t rows = e->deck->train.micro_batch, data = e->shape.data, counted = 0;
    if (samples == 0 || samples > c->samples) samples = c->samples;
    struct rows f = rows_new(rows, c->length);
    engine_loss_begin(e);
    for (int64_t round = 0; round * rows * data < samples; round++) {
        for (int64_t r = 0; r < rows; r++) {
            int64_t sample = (round * data + e->parallel.at.data) * rows + r;
            counted += rows_put(&f, c, sample < samples ? sample : 0, r, sample < samples);
        }
        engine_loss_add(e, &f.batch);
    }
    rows_free(&f);
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
        const struct corpus *c = feed.validation.kind ? &feed.validation : &feed.corpus;
        int64_t tokens;
        output_begin(&o, e->deck, r->comm, r->argc, r->argv, -1);
        double began = seconds_now(), loss = evaluate_loss(e, c, e->deck->evaluate.samples, &tokens);
        code = isfinite(loss) ? 0 : 4;
        char a[32], b[32], *json = die_format("{\"loss\": %s, \"perplexity\": %s, \"tokens\": %ld}\n", number_text(loss, a),
                                              number_text(exp(loss), b), (long)tokens);
        output_text(&o, "evaluation.json", json);
        say(&o, "loss %s, perplexity %s, over %ld tokens in %.1f s", a, b, (long)tokens, seconds_now() - began);
        output_summary(&o, r->comm, code ? "the loss is not finite" : "finished", code, engine_peak_bytes(e), NULL);
        output_end(&o);
        free(json);
    }
    feed_free(&feed);
    return code;
}
