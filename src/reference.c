#include "src/reference.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/engine.h"

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

int reference_open(struct reference *r, const struct engine *e, struct mistakes *m) {
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

void reference_close(struct reference *r) {
    checkpoint_close(&r->file);
    free(r->ids);
    free(r->labels);
    free(r->mask);
}
