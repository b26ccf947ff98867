/* compare: the same numbers as another program?
 *
 * A reference file holds token ids, and what another program made of them with the same weights:
 * logits, loss, gradients (src/reference.h). Every rank compares what it holds (src/dealing.h); the
 * largest differences decide. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/dealing.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"

static double number_at(const void *p, enum dtype d, int64_t i) {
    return d == F64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

/* Largest difference and largest entry; a NaN on one side only is infinitely far. */
static void widen(double *difference, double *largest, double ours, double theirs) {
    double d = fabs(ours - theirs);
    if (isnan(d)) d = isnan(ours) && isnan(theirs) ? 0 : INFINITY;
    if (d > *difference) *difference = d;
    if (fabs(theirs) > *largest) *largest = fabs(theirs);
}

/* Not negative doubles order like their bits. */
static void largest_of_all(struct comm *c, int64_t n, double *x) {
    int64_t *counts = die_alloc(c->size * sizeof *counts);
    double *all = die_alloc((size_t)c->size * n * sizeof *all);
    struct request r;
    for (int i = 0; i < c->size; i++) counts[i] = n;
    memcpy(all + c->rank * n, x, n * sizeof *x);
    comm_gather_start(c->world, all + c->rank * n, all, counts, sizeof *x, &r);
    comm_wait(&r);
    for (int i = 0; i < c->size; i++)
        for (int64_t k = 0; k < n; k++)
            if (all[i * n + k] > x[k]) x[k] = all[i * n + k];
    free(all);
    free(counts);
}

static void *compute_logits(struct engine *e, const struct dealt *w) {
    size_t bytes = (size_t)(w->tokens * e->model.words->rows) * dtype_size(e->real) + 1;
    char *logits = engine_has_head(e) ? die_alloc(bytes) : NULL;
    engine_logits(e, w->n, w->batch, logits);
    return logits;
}

static int compare_logits(struct engine *e, struct comm *c, const struct reference *r,
                          const struct dealt *w, const void *ours, double *difference,
                          double *largest, struct mistakes *m) {
    int64_t words = e->model.words->rows, n = dealing_tokens(r, e, w) * words;
    double *theirs = ours ? die_alloc(n * sizeof *theirs + 1) : NULL, both[2] = {0};
    struct box *boxes = die_alloc((dealing_runs(e, w) + 1) * sizeof *boxes);
    int bad =
        checkpoint_read(&r->file, c->world, dealing_boxes(r, e, w, theirs, F64, boxes), boxes, m);
    for (int64_t i = 0; !bad && ours && i < dealing_runs(e, w); i++) {
        const struct run_of_tokens run = dealing_run(r, e, w, i);
        for (int64_t t = 0; t < run.n; t++)
            for (int64_t k = 0; r->mask[run.from + t] && k < words; k++) {
                const int64_t at = (run.at + t) * words + k;
                widen(&both[0], &both[1], number_at(ours, e->real, at), theirs[at]);
            }
    }
    free(boxes);
    free(theirs);
    largest_of_all(c, 2, both);
    *difference = both[0];
    *largest = both[1];
    return bad;
}

/* Worst gradient: its difference relative to its own largest entry, or to a millionth of the
 * largest gradient of all. */
struct worst {
    double relative;
    int tensor;
    int compared;
};

/* A gradient of nothing we have would be compared with nothing. */
static void unknown_gradients(const struct reference *r, const struct params *s,
                              struct mistakes *m) {
    char *known = die_alloc(r->file.n + 1);
    int64_t first;
    for (int i = 0; i < s->n_tensors; i++) {
        const struct stored_tensor *f = weights_find(&r->file, "grad.", &s->tensor[i], &first);
        if (f) known[f - r->file.tensor] = 1;
    }
    for (int i = 0; i < r->file.n; i++)
        if (!known[i] && !strncmp(r->file.tensor[i].name, "grad.", 5))
            mistake(m, r->file.folder, 0, "tensor %s is the gradient of no tensor of this model",
                    r->file.tensor[i].name);
    free(known);
}

static int compare_gradients(struct engine *e, struct comm *c, const struct reference *r,
                             struct worst *worst, struct mistakes *m) {
    const struct params *s = &e->model.params;
    int n, wanted = 0, before = m->n;
    struct box *ours = params_boxes(s, e->real, PART_GRADIENTS, true, &n),
               *theirs = die_alloc((n + 1) * sizeof *theirs);
    double *both = die_alloc(2 * (size_t)s->n_tensors * sizeof *both + 1), most = 0;
    char *has = die_alloc(s->n_tensors + 1);
    boxes_to_host(&e->device, n, ours);
    for (int i = 0; i < s->n_tensors; i++) {
        int64_t first;
        const struct param_tensor *t = &s->tensor[i];
        const struct stored_tensor *f =
            t->block < 0 ? NULL : weights_find(&r->file, "grad.", t, &first);
        has[i] = f && !(t->row->may & BUFFER);
        worst->compared += has[i];
        if (has[i] && f->elements < first + t->elements)
            mistake(m, r->file.folder, 0, "tensor %s has not as many numbers as the parameter",
                    f->name);
    }
    unknown_gradients(r, s, m);
    for (int i = 0; i < n && m->n == before; i++) {
        struct box *b = &theirs[wanted];
        if (!has[ours[i].tensor]) continue;
        *b = ours[i];
        b->tensor = (int)(weights_find(&r->file, "grad.", &s->tensor[ours[i].tensor], &b->first) -
                          r->file.tensor);
        b->dtype = F64;
        b->stride = b->columns;
        b->memory = die_alloc(b->rows * b->columns * sizeof(double));
        ours[wanted++] = ours[i];
    }
    int bad = m->n > before || checkpoint_read(&r->file, c->world, wanted, theirs, m);
    for (int i = 0; i < wanted; i++) {
        const struct box *a = &ours[i], *b = &theirs[i];
        for (int64_t row = 0; row < a->rows; row++)
            for (int64_t k = 0; k < a->columns; k++)
                widen(&both[2 * a->tensor], &both[2 * a->tensor + 1],
                      number_at(a->memory, e->real, row * a->stride + k),
                      ((double *)b->memory)[row * b->stride + k]);
        free(b->memory);
    }
    largest_of_all(c, 2 * (int64_t)s->n_tensors, both);
    for (int i = 0; i < s->n_tensors; i++)
        if (has[i] && both[2 * i + 1] > most) most = both[2 * i + 1];
    worst->tensor = -1;
    for (int i = 0; i < s->n_tensors; i++) {
        if (!has[i]) continue;
        double scale = both[2 * i + 1] > 1e-6 * most ? both[2 * i + 1] : 1e-6 * most;
        double relative = both[2 * i] == 0 ? 0 : both[2 * i] / scale;
        if (worst->tensor < 0 || relative > worst->relative)
            worst->relative = relative, worst->tensor = i;
    }
    free(both);
    free(has);
    free(ours);
    free(theirs);
    return bad;
}

/* ---- dumping ---- */

static void dump(struct engine *e, struct comm *c, const struct reference *r, const struct dealt *w,
                 void *logits, double loss) {
    const struct params *s = &e->model.params;
    struct new_tensor *tensors = die_alloc((s->n_tensors + 2) * sizeof *tensors);
    char **names = die_alloc((s->n_tensors + 1) * sizeof *names);
    int *number = die_alloc((s->n_tensors + 1) * sizeof *number), n = 0, n_boxes;
    tensors[n++] = (struct new_tensor){.name = "logits",
                                       .dtype = F32,
                                       .n_dims = 3,
                                       .dim = {r->rows, r->length, e->config->keys.vocab_size}};
    tensors[n++] = (struct new_tensor){.name = "loss", .dtype = F32};
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        if (t->block < 0 || t->row->may & BUFFER) continue;
        number[i] = n;
        names[i] = die_format("grad.%s", t->name);
        tensors[n] = (struct new_tensor){.name = names[i], .dtype = F32, .n_dims = t->n_dims};
        memcpy(tensors[n++].dim, t->dim, sizeof t->dim);
    }
    struct box *grads = params_boxes(s, e->real, PART_GRADIENTS, true, &n_boxes);
    struct box *boxes = die_alloc((n_boxes + dealing_runs(e, w) + 1) * sizeof *boxes);
    boxes_to_host(&e->device, n_boxes, grads);
    for (int i = 0; i < n_boxes; i++) {
        boxes[i] = grads[i];
        boxes[i].tensor = number[grads[i].tensor];
    }
    int n_logits = dealing_boxes(r, e, w, logits, e->real, boxes + n_boxes);
    for (int i = 0; i < n_logits; i++) boxes[n_boxes++].tensor = 0;
    if (c->rank == 0)
        boxes[n_boxes++] = (struct box){.tensor = 1,
                                        .width = 1,
                                        .rows = 1,
                                        .columns = 1,
                                        .memory = &loss,
                                        .stride = 1,
                                        .dtype = F64};
    checkpoint_write(e->deck->compare.dump, c->world, n, tensors, n_boxes, boxes, 0, NULL, 0, NULL);
    for (int i = 0; i < s->n_tensors; i++) free(names[i]);
    free(names);
    free(number);
    free(tensors);
    free(grads);
    free(boxes);
}

/* ---- the verdict ---- */

struct verdict {
    bool good;
    char *yaml;
};

static void judge(const struct output *o, struct verdict *v, const char *what, double relative,
                  double tolerance, const char *where) {
    bool good = relative <= tolerance;
    char *more = die_format("%s%s: %.3g\n", v->yaml ? v->yaml : "", what, relative);
    say(o, "%-10s %9.3g  of at most %.3g  %s%s%s", what, relative, tolerance,
        good ? "same" : "DIFFERENT", where ? "  " : "", where ? where : "");
    free(v->yaml);
    v->yaml = more;
    v->good &= good;
}

static int run_comparison(struct engine *e, struct comm *c, struct reference *r, struct run *run,
                          struct mistakes *m) {
    const struct deck *d = e->deck;
    struct dealt w = dealing_make(r, e);
    struct output o;
    struct verdict v = {true, NULL};
    struct worst worst = {0};
    double difference = 0, largest = 0, loss, theirs = NAN;
    bool dumping = *d->compare.dump;
    void *logits = r->logits || dumping ? compute_logits(e, &w) : NULL;
    loss = engine_gradients(e, w.n, w.batch, w.counted, false);
    int bad = r->logits ? compare_logits(e, c, r, &w, logits, &difference, &largest, m) : 0;
    if (!bad && r->n_gradients) bad = compare_gradients(e, c, r, &worst, m);
    if (!bad && r->loss) {
        struct box b = {.tensor = (int)(r->loss - r->file.tensor),
                        .width = 1,
                        .rows = 1,
                        .columns = 1,
                        .memory = &theirs,
                        .stride = 1,
                        .dtype = F64};
        bad = checkpoint_read(&r->file, c->world, 1, &b, m);
    }
    if (!bad) {
        const double *tolerance = d->compare.tolerance.v;
        output_begin(&o, d, c, run->argc, run->argv, -1);
        say(&o, "compared with %s: %ld sequences of %ld tokens", d->compare.reference,
            (long)r->rows, (long)r->length);
        if (r->logits)
            judge(&o, &v, "logits", difference == 0 ? 0 : difference / largest, tolerance[0], NULL);
        if (r->loss)
            judge(&o, &v, "loss", loss == theirs ? 0 : fabs(loss - theirs) / fabs(theirs),
                  tolerance[1], NULL);
        if (worst.compared)
            judge(&o, &v, "gradients", worst.relative, tolerance[2],
                  e->model.params.tensor[worst.tensor].name);
        if (worst.compared) say(&o, "%d gradients were compared", worst.compared);
        if (dumping) dump(e, c, r, &w, logits, loss);
        output_summary(&o, c, v.good ? "the numbers agree" : "the numbers differ", v.good ? 0 : 4,
                       engine_peak_bytes(e), v.yaml);
        output_end(&o);
    }
    free(v.yaml);
    free(logits);
    dealing_free(&w);
    return bad ? 2 : v.good ? 0 : 4;
}

int mode_compare(struct run *run, struct mistakes *m) {
    struct engine *e = run->engine;
    struct reference r;
    int code = 2, bad = reference_open(&r, e, m); /* closed below, also if it is refused */
    if (!comm_max(run->comm->world, bad != 0) &&
        !engine_init(e, run->comm, run->shape, false, true, false, m))
        code = run_comparison(e, run->comm, &r, run, m);
    reference_close(&r);
    return code;
}
