/* convert: a model's folder written again, in another format or under other names; or texts as
 * tokens. */
#include <string.h>
#include <sys/stat.h>

#include "io/files.h"
#include "kernels/mistakes.h"
#include "src/convert_tokens.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"

/* Weights take the format asked for, those that are only kept too; correction biases keep theirs
 * (fp32). */
static void set_formats(struct engine *e) {
    const char *to = e->deck->convert.dtype;
    if (!strcmp(to, "same")) return;
    bool bf16 = !strcmp(to, "bf16"), fp16 = !strcmp(to, "fp16");
    const enum dtype format = bf16 ? BF16 : fp16 ? F16 : F32;
    e->config->dtype = bf16 ? "bfloat16" : fp16 ? "float16" : "float32";
    e->weights.kept_as = format;
    for (int i = 0; i < e->model.params.n_tensors; i++) {
        struct param_tensor *t = &e->model.params.tensor[i];
        if (!(t->row->may & BUFFER)) t->stored = format;
    }
}

/* Rank 0 does it with its threads; it needs no model. */
static int tokens(struct run *r, struct mistakes *m) {
    const struct deck *d = r->engine->deck;
    const struct vocabulary *v = &r->engine->config->vocabulary;
    struct output o;
    struct token_counts n;
    int bad = 0, before = m->n;
    double began = seconds_now();
    if (file_exists(d->convert.to))
        mistake(m, NULL, 0, "convert.to: %s exists already", d->convert.to);
    if (comm_max(r->comm->world, m->n > before)) return 2;
    if (r->comm->rank == 0)
        bad = convert_tokens(d, v->tokenizer,
                             engine_threads(d, r->comm->host_cores, r->comm->host_ranks), &n, m);
    if (comm_max(r->comm->world, bad != 0)) return 2;
    output_begin(&o, d, r->comm, r->argc, r->argv, -1);
    if (o.speaks)
        say(&o, "wrote      %s: %ld texts of %ld bytes as %ld tokens of %s, in %.1f s",
            d->convert.to, (long)n.lines, (long)n.bytes, (long)n.ids, v->name,
            seconds_now() - began);
    output_summary(&o, r->comm, "finished", 0, 0, NULL);
    output_end(&o);
    return 0;
}

int mode_convert(struct run *r, struct mistakes *m) {
    if (vocabulary_only(r->engine->deck)) return tokens(r, m);
    struct engine *e = r->engine;
    const struct deck *d = e->deck;
    struct stat st;
    struct output o;
    int before = m->n;
    if (!e->has_weights)
        mistake(m, NULL, 0, "run.mode: convert rewrites a folder; name it by model.from");
    if (!stat(d->convert.to, &st))
        mistake(m, NULL, 0, "convert.to: %s exists already", d->convert.to);
    if (comm_max(r->comm->world, m->n > before)) return 2;
    if (engine_init(e, r->comm, r->shape, false, false, false, m)) return 2;
    set_formats(e);
    output_begin(&o, d, r->comm, r->argc, r->argv, -1);
    engine_save(e, d->convert.to, !strcmp(d->convert.names, "transformers"));
    say(&o, "wrote      %s: %d tensors, and %d that were only kept", d->convert.to,
        e->model.params.n_tensors, e->weights.n_unused);
    output_summary(&o, r->comm, "finished", 0, engine_peak_bytes(e), NULL);
    output_end(&o);
    return 0;
}
