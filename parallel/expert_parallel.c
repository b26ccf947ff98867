#include "parallel/expert_parallel.h"

#include "kernels/die.h"
#include "parallel/groups.h"

static void refactor_adjoint(struct tape *t, struct note *n, unsigned mask) {
    tape_grad_pass(t, n, 0, 0, mask);
}
static const struct tape_op op_dispatch = {"dispatch", refactor_adjoint, 0, 0, 0, 0};
static const struct tape_op op_return = {"return", refactor_adjoint, 0, 0, 0, 0};

static struct tensor *refactor(struct tape *t, const struct tape_op *op, struct tensor *x,
                               enum factoring to) {
    if (t->parallel->shape.expert != 1) bug("experts on several ranks are not built");
    op_require(x->layout.factoring != to, op->name, x, "is on these axes already");
    struct layout l = x->layout;
    l.factoring = to;
    struct tensor *y = tensor_alias(t, x, &l);
    y->same = x;
    tape_note(t, op, 1, &x, 1, &y);
    return y;
}

struct tensor *expert_dispatch(struct tape *t, struct tensor *x) {
    return refactor(t, &op_dispatch, x, EXPERT);
}

struct tensor *expert_return(struct tape *t, struct tensor *x) {
    return refactor(t, &op_return, x, DENSE);
}
