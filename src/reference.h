/* reference: the numbers of another program, in a safetensors file: token ids, and what it made of
 * them with the same weights (logits, loss, grad.<name of a tensor>). Checked against the model
 * when opened. */
#ifndef SRC_REFERENCE_H
#define SRC_REFERENCE_H

#include "io/checkpoint.h"

struct engine;
struct mistakes;

struct reference {
    struct checkpoint file;
    const struct stored_tensor *logits, *loss; /* NULL: not there */
    int64_t rows, length;                      /* of input_ids */
    int64_t *ids, *labels, *mask; /* all of them; mask is all ones if the file has none */
    int n_gradients;
};

/* The file of compare.reference. -1 after telling m. */
int reference_open(struct reference *r, const struct engine *e, struct mistakes *m);
void reference_close(struct reference *r);

#endif
