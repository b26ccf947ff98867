/* tape_values: the memory of a tape's tensors, for the files of tape*.c alone.
 *
 * Memory is a buffer that counts who looks at it: a tensor, views of its columns, the same numbers
 * in another state, gradients that are one. A tensor's value stays while somebody may read it: the
 * forward code until it drops the tensor, and notes until they are walked. What can be computed
 * again (tape_again.h) is given back when the forward code has dropped it. */
#ifndef KERNELS_TAPE_VALUES_H
#define KERNELS_TAPE_VALUES_H

#include "kernels/tape.h"

struct buffer *buffer_new(struct arena *a, size_t bytes, const char *label);
void buffer_drop(struct buffer *b);

/* One reader less; and the value given back whoever reads. */
void tensor_release(struct tensor *x);
void tensor_forget(struct tensor *x);

/* Memory for x's gradient, if it has none. */
void grad_make(struct tape *t, struct tensor *x);

extern const struct tape_op op_columns;

#endif
