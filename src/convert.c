/* convert: a model's folder written again, in another format or under other names. */
#include <string.h>
#include <sys/stat.h>

#include "kernels/mistakes.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"

/* Weights take the format asked for; correction biases keep theirs (fp32). */
static void set_formats(struct engine *e) {
    const char *to = e->deck->convert.dtype;
    if (!strcmp(to, "same")) return;
    bool bf16 = !strcmp(to, "bf16"), fp16 = !strcmp(to, "fp16");
    e->config->dtype = bf16 ? "bfloat16" : fp16 ? "float16" : "float32";
    for (int i = 0; i < e->model.params.n_tensors; i++) {
        struct param_tensor *t = &e->model.params.tensor[i];
        if (!(t->row->may & BUFFER)) t->stored = bf16 ? BF16 : fp16 ? F16 : F32;
    }
}

int mode_convert(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    const struct deck *d = e->deck;
    struct stat st;
    struct output o;
    int before = m->n;
    if (!e->has_weights) mistake(m, NULL, 0, "run.mode: convert rewrites a folder; name it by model.from");
    if (!stat(d->convert.to, &st)) mistake(m, NULL, 0, "convert.to: %s exists already", d->convert.to);
    if (comm_max(r->comm->world, m->n > before)) return 2;
    if (engine_init(e, r->comm, r->shape, false, false, false, m)) return 2;
    set_formats(e);
    output_begin(&o, d, r->comm, r->argc, r->argv, -1);
    engine_save(e, d->convert.to, !strcmp(d->convert.names, "transformers"));
    say(&o, "wrote      %s: %d tensors, and %d that were only kept", d->convert.to, e->model.params.n_tensors, e->weights.n_unused);
    output_summary(&o, r->comm, "finished", 0, engine_peak_bytes(e), NULL);
    output_end(&o);
    return 0;
}
