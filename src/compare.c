/* compare: the same numbers as another program?
 *
 * A reference file holds token ids, and what another program made of them with the same weights:
 * logits, loss, gradients. Every rank compares what it holds; the largest differences decide.
 * Tokens that attention_mask leaves out are documents of their own: what stands at their places is
 * compared with nothing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/context_parallel.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"

struct reference {
    struct checkpoint file;
    const struct stored_tensor *logits, *loss;
    int64_t rows, length;         /* of input_ids */
    int64_t *ids, *labels, *mask; /* all of them; mask is all ones if the file has none */
    int n_gradients;
};

/* ---- reading ---- */

static int64_t *read_integers(const struct checkpoint *c, const struct stored_tensor *t,
                              struct mistakes *m) {
    int64_t n = t->elements, *out = die_alloc(n * sizeof *out);
    if (t->dtype == I64) {
        if (checkpoint_read_whole(c, t, out, m)) memset(out, 0, n * sizeof *out);
    } else if (t->dtype == I32) {
        int32_t *p = die_alloc(n * sizeof *p);
        if (!checkpoint_read_whole(c, t, p, m))
            for (int64_t i = 0; i < n; i++) out[i] = p[i];
        free(p);
    } else if (t->dtype == BOOL || t->dtype == U8) {
        uint8_t *p = die_alloc(n);
        if (!checkpoint_read_whole(c, t, p, m))
            for (int64_t i = 0; i < n; i++) out[i] = p[i];
        free(p);
    } else {
        mistake(m, c->folder, 0, "tensor %s is %s; whole numbers (I64 or I32) are wanted", t->name,
                dtype_name(t->dtype));
    }
    return out;
}

/* The integers of a tensor shaped like input_ids; NULL if it is absent. */
static int64_t *read_like_ids(struct reference *r, const char *name, bool required,
                              struct mistakes *m) {
    const struct stored_tensor *t = checkpoint_find(&r->file, name);
    if (!t) {
        if (required) mistake(m, r->file.folder, 0, "tensor %s is missing", name);
        return NULL;
    }
    if (t->n_dims != 2 || (r->rows >= 0 && (t->dim[0] != r->rows || t->dim[1] != r->length))) {
        mistake(m, r->file.folder, 0,
                "tensor %s must have the shape [sequences, tokens] of input_ids", name);
        return NULL;
    }
    r->rows = t->dim[0];
    r->length = t->dim[1];
    return read_integers(&r->file, t, m);
}

static void check_values(const struct reference *r, int64_t vocabulary, struct mistakes *m) {
    for (int64_t i = 0; i < r->rows * r->length; i++) {
        if (r->ids[i] < 0 || r->ids[i] >= vocabulary) {
            mistake(m, r->file.folder, 0, "input_ids holds %ld; the model has ids 0 to %ld",
                    (long)r->ids[i], (long)vocabulary - 1);
            return;
        }
        if (r->labels[i] != -100 && (r->labels[i] < 0 || r->labels[i] >= vocabulary)) {
            mistake(m, r->file.folder, 0,
                    "labels holds %ld; ids 0 to %ld and -100 (ignored) are legal",
                    (long)r->labels[i], (long)vocabulary - 1);
            return;
        }
    }
    for (int64_t b = 0; b < r->rows; b++) {
        int runs = 0;
        for (int64_t t = 0; t < r->length; t++) {
            int64_t v = r->mask[b * r->length + t];
            if (v != 0 && v != 1)
                mistake(m, r->file.folder, 0, "attention_mask holds %ld; 0 and 1 are legal",
                        (long)v);
            runs += v && (t == 0 || !r->mask[b * r->length + t - 1]);
        }
        if (runs > 1)
            mistake(m, r->file.folder, 0,
                    "attention_mask of sequence %ld has a hole; padding may be at its ends",
                    (long)b);
    }
}

static int reference_open(struct reference *r, const struct engine *e, struct mistakes *m) {
    const char *path = e->deck->compare.reference;
    memset(r, 0, sizeof *r);
    if (checkpoint_open(&r->file, path, m)) return -1;
    int before = m->n;
    r->rows = -1;
    r->ids = read_like_ids(r, "input_ids", true, m);
    r->labels = read_like_ids(r, "labels", true, m);
    r->mask = read_like_ids(r, "attention_mask", false, m);
    r->logits = checkpoint_find(&r->file, "logits");
    r->loss = checkpoint_find(&r->file, "loss");
    for (int i = 0; i < r->file.n; i++)
        r->n_gradients += !strncmp(r->file.tensor[i].name, "grad.", 5);
    if (m->n > before) return -1;
    int64_t v = e->config->keys.vocab_size;
    if (!r->mask) {
        r->mask = die_alloc(r->rows * r->length * sizeof *r->mask);
        for (int64_t i = 0; i < r->rows * r->length; i++) r->mask[i] = 1;
    }
    if (r->rows * r->length == 0) mistake(m, path, 0, "input_ids is empty");
    if (!r->logits && !r->loss && !r->n_gradients)
        mistake(m, path, 0, "holds neither logits, loss nor grad.*: nothing to compare");
    const struct stored_tensor *l = r->logits;
    if (l && (l->n_dims != 3 || l->dim[0] != r->rows || l->dim[1] != r->length || l->dim[2] != v))
        mistake(m, path, 0,
                "logits must have the shape [%ld, %ld, %ld]: sequences, tokens, vocabulary",
                (long)r->rows, (long)r->length, (long)v);
    if (r->loss && r->loss->elements != 1) mistake(m, path, 0, "loss must be one number");
    for (int i = 0; i < r->file.n; i++) {
        const struct stored_tensor *t = &r->file.tensor[i];
        bool number = t == l || t == r->loss || !strncmp(t->name, "grad.", 5);
        if (number && !dtype_is_real(t->dtype))
            mistake(m, path, 0, "tensor %s is %s, not real numbers", t->name, dtype_name(t->dtype));
    }
    check_values(r, v, m);
    return m->n > before ? -1 : 0;
}

static void reference_close(struct reference *r) {
    checkpoint_close(&r->file);
    free(r->ids);
    free(r->labels);
    free(r->mask);
}

/* ---- micro-batches ---- */

struct work {
    int n;
    struct host_batch *batch;
    int64_t first, rows; /* this rank's sequences */
    int64_t counted;     /* targets of all ranks */
};

/* Tokens of a sequence with what fills it up so that the context ranks can share it: a document of
 * its own. */
static int64_t padded_length(const struct reference *r, const struct engine *e) {
    const int64_t pieces = context_pieces(e->shape.context);
    return (r->length + pieces - 1) / pieces * pieces;
}

/* One sequence, as it is read. */
struct row {
    int32_t *ids, *start, *target;
    double *weight;
};

static void fill_row(const struct reference *r, int64_t row, const struct row *to, int64_t padded,
                     bool counts) {
    const int64_t *ids = r->ids + row * r->length, *labels = r->labels + row * r->length,
                  *mask = r->mask + row * r->length;
    int64_t begin = 0, length = r->length;
    for (int64_t t = 0; t < padded; t++) {
        if (t == length || (t > 0 && t < length && mask[t] != mask[t - 1])) begin = t;
        bool target = counts && t + 1 < length && labels[t + 1] != -100;
        to->ids[t] = t < length ? (int32_t)ids[t] : 0;
        to->start[t] = (int32_t)begin;
        to->target[t] = target ? (int32_t)labels[t + 1] : -1;
        to->weight[t] = target;
    }
}

/* Sequences are dealt out in blocks; a rank without any computes the first one without counting it,
 * so that every rank uses every parameter. */
static struct work make_work(const struct reference *r, const struct engine *e) {
    struct work w = {0};
    int64_t micro = e->deck->train.micro_batch, length = r->length, padded = padded_length(r, e);
    const struct row one = {
        die_alloc(padded * sizeof *one.ids), die_alloc(padded * sizeof *one.start),
        die_alloc(padded * sizeof *one.target), die_alloc(padded * sizeof *one.weight)};
    w.first = part_begin(r->rows, e->shape.data, e->parallel.at.data, 1);
    w.rows = part_begin(r->rows, e->shape.data, e->parallel.at.data + 1, 1) - w.first;
    for (int64_t b = 0; b < r->rows; b++)
        for (int64_t t = 1; t < length; t++) w.counted += r->labels[b * length + t] != -100;
    w.n = w.rows ? (int)((w.rows + micro - 1) / micro) : 1;
    w.batch = die_alloc(w.n * sizeof *w.batch);
    for (int i = 0; i < w.n; i++) {
        struct host_batch *b = &w.batch[i];
        int64_t done = i * micro;
        int64_t rows = w.rows ? (w.rows - done < micro ? w.rows - done : micro) : 1;
        *b = host_batch_make(e, rows, padded);
        for (int64_t k = 0; k < rows; k++) {
            fill_row(r, w.rows ? w.first + done + k : 0, &one, padded, w.rows > 0);
            host_batch_put(e, b, k, one.ids, one.start, one.target, one.weight);
        }
    }
    free(one.ids);
    free(one.start);
    free(one.target);
    free(one.weight);
    return w;
}

static void free_work(struct work *w) {
    for (int i = 0; i < w->n; i++) host_batch_free(&w->batch[i]);
    free(w->batch);
}

/* ---- comparing ---- */

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

/* A run of tokens whose logits a rank has: n of them, the first is number `from` of all and number
 * `at` of its own. Counted by i, from 0; n is 0 where all there is is padding. */
struct run_of_tokens {
    int64_t from, at, n;
};

static int64_t runs_of(const struct engine *e, const struct work *w) {
    return context_rows(e->shape.context, w->rows);
}

static struct run_of_tokens tokens_of(const struct reference *r, const struct engine *e,
                                      const struct work *w, int64_t i) {
    const int context = e->shape.context, held = context_held(context);
    const int64_t length = context_length(context, padded_length(r, e)),
                  first = context_piece(context, e->parallel.at.context, (int)(i % held)) * length,
                  left = r->length - first;
    return (struct run_of_tokens){(w->first + i / held) * r->length + first, i * length,
                                  left < 0        ? 0
                                  : left < length ? left
                                                  : length};
}

/* Where this rank's logits are in the file's; returns how many boxes were made, at most runs_of. */
static int logits_boxes(const struct reference *r, const struct engine *e, const struct work *w,
                        void *memory, enum dtype d, struct box *boxes) {
    const int64_t words = e->model.words->rows;
    int n = 0;
    for (int64_t i = 0; memory && words && i < runs_of(e, w); i++) {
        const struct run_of_tokens run = tokens_of(r, e, w, i);
        if (run.n)
            boxes[n++] =
                (struct box){.tensor = r->logits ? (int)(r->logits - r->file.tensor) : 0,
                             .width = e->config->keys.vocab_size,
                             .row = run.from,
                             .rows = run.n,
                             .column = e->model.first_word,
                             .columns = words,
                             .memory = (char *)memory + (size_t)(run.at * words) * dtype_size(d),
                             .stride = words,
                             .dtype = d};
    }
    return n;
}

/* Tokens whose logits are computed here. */
static int64_t own_tokens(const struct reference *r, const struct engine *e, const struct work *w) {
    return (w->rows > 0 ? w->rows : 1) * padded_length(r, e) / e->shape.context;
}

static void *compute_logits(struct engine *e, const struct reference *r, const struct work *w) {
    int64_t words = e->model.words->rows, tokens = own_tokens(r, e, w);
    char *logits = engine_has_head(e) ? die_alloc(tokens * words * dtype_size(e->real) + 1) : NULL;
    engine_logits(e, w->n, w->batch, logits);
    return logits;
}

static int compare_logits(struct engine *e, struct comm *c, const struct reference *r,
                          const struct work *w, const void *ours, double *difference,
                          double *largest, struct mistakes *m) {
    int64_t words = e->model.words->rows, n = own_tokens(r, e, w) * words;
    double *theirs = ours ? die_alloc(n * sizeof *theirs + 1) : NULL, both[2] = {0};
    struct box *boxes = die_alloc((runs_of(e, w) + 1) * sizeof *boxes);
    int bad =
        checkpoint_read(&r->file, c->world, logits_boxes(r, e, w, theirs, F64, boxes), boxes, m);
    for (int64_t i = 0; !bad && ours && i < runs_of(e, w); i++) {
        const struct run_of_tokens run = tokens_of(r, e, w, i);
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

static void dump(struct engine *e, struct comm *c, const struct reference *r, const struct work *w,
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
    struct box *boxes = die_alloc((n_boxes + runs_of(e, w) + 1) * sizeof *boxes);
    boxes_to_host(&e->device, n_boxes, grads);
    for (int i = 0; i < n_boxes; i++) {
        boxes[i] = grads[i];
        boxes[i].tensor = number[grads[i].tensor];
    }
    int n_logits = logits_boxes(r, e, w, logits, e->real, boxes + n_boxes);
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
    struct work w = make_work(r, e);
    struct output o;
    struct verdict v = {true, NULL};
    struct worst worst = {0};
    double difference = 0, largest = 0, loss, theirs = NAN;
    bool dumping = *d->compare.dump;
    void *logits = r->logits || dumping ? compute_logits(e, r, &w) : NULL;
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
    free_work(&w);
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
