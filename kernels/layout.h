/* layout: which tensors an op accepts beside each other, and how its result is spread.
 *
 * The rules of kernels/tensor.h as code: states that must not meet are refused with the op, the
 * tensor and its states. */
#ifndef KERNELS_LAYOUT_H
#define KERNELS_LAYOUT_H

#include "kernels/tensor.h"

/* Joins the layouts of inputs under the rule of ops that work token by token or feature by
 * feature: whole meets only whole; split and entered meet; partial is refused. The first input that
 * is split gives where. */
struct layout layout_join(const char *op, int n, struct tensor *const *in);
/* The same for inputs whose values will not be read (sums beside one that is missing from a
 * replay). */
struct layout layout_join_unread(const char *op, int n, struct tensor *const *in);
/* A bug unless cond, naming op and tensor. */
void op_require(bool cond, const char *op, const struct tensor *x, const char *what);

#endif
