/* tensor: a matrix on the device, and for every axis of the mesh how it is spread over the ranks.
 *
 * All tensors are matrices [rows, width]; activations have a row a token. What one rank holds of a
 * tensor can stand in four relations to what its neighbours along an axis hold:
 *
 *     whole      the same on every rank, and so is its gradient
 *     entered    the same on every rank; each rank's gradient is a part, and the sum over the
 *                ranks is the gradient
 *     split      each rank holds its part; gradients are split alike
 *     partial    each rank holds a term, and the sum over the ranks is the tensor; its gradient
 *                is whole
 *
 * A missing sum keeps a loss right and makes gradients wrong, so each op checks the states of its
 * inputs and refuses those it cannot be right for: whole and entered never meet, and partial enters
 * only what is linear in it. enter, leave, gather and scatter (parallel/tensor_parallel.h) are what
 * changes a state.
 *
 * A split by columns is a list of segments (z | x | B | C | dt), each with a share: `share`
 * neighbouring ranks hold the same block of it, because there are fewer heads to hold than ranks. A
 * shared segment's gradient is a part on each of them, all the way down to the weight, where it is
 * summed over those neighbours.
 *
 * Dense layers and experts see the ranks factored differently (parallel/mesh.h): the three axes are
 * data, context, tensor for the one, expert-data, expert, expert-tensor for the other. */
#ifndef KERNELS_TENSOR_H
#define KERNELS_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/arena.h"
#include "kernels/dtype.h"

enum factoring { DENSE, EXPERT };
enum axis {
    AXIS_DATA,
    AXIS_CONTEXT,
    AXIS_TENSOR,
    N_AXES,
    AXIS_EXPERT_DATA = AXIS_DATA,
    AXIS_EXPERT = AXIS_CONTEXT,
    AXIS_EXPERT_TENSOR = AXIS_TENSOR
};
enum state { WHOLE, ENTERED, SPLIT, PARTIAL };
enum { BY_ROWS, BY_COLUMNS, MAX_SEGMENTS = 5 };

struct segment {
    int64_t width; /* on this rank */
    int share;     /* neighbours that hold the same block; 1: nobody else */
};

struct layout {
    enum factoring factoring;
    enum state state[N_AXES];
    int by[N_AXES]; /* where split: an activation BY_ROWS (tokens) or BY_COLUMNS (features); a
                     * weight by its own rows or columns, so that one split BY_ROWS makes
                     * activations that are split BY_COLUMNS */
    int n_segments; /* along the tensor axis, where split by features; of experts' weights: within
                       one expert */
    struct segment segment[MAX_SEGMENTS];
};

const char *state_name(enum state s);
const char *axis_name(enum factoring f, int axis);
bool layout_equal(const struct layout *a, const struct layout *b);

/* Memory that several tensors may look at (a tensor and views of its columns; gradients of the
 * terms of a sum); given back when the last one lets go. */
struct buffer {
    struct arena *arena;
    struct piece *piece;
    void *p; /* device address */
    int refs;
};

struct tensor {
    const char *label;
    int64_t rows, width, stride; /* stride: numbers between rows; width unless a view */
    enum dtype dtype;            /* F32, F64, BF16, I32 */
    void *data;                  /* device address; NULL once nobody will read it */
    struct buffer *buffer;       /* NULL: not the tape's memory (parameters, tokens) */
    void *grad;                  /* same shape and stride as data */
    struct buffer *grad_buffer;
    bool has_grad; /* grad holds numbers: the next term is added */
    bool needs_grad;
    bool missing;   /* in a replay: a value that was not computed because no adjoint reads it */
    bool has_views; /* tensor_columns: only the views may be used */
    bool in_scope;  /* the forward code may still read it */
    int holds;      /* readers to come: the scope, and notes */
    struct layout layout;
    struct tensor *of; /* a view of these columns of another tensor */
    int64_t of_column;
    struct tensor *same; /* shares that tensor's numbers, unchanged; or NULL */
    int run; /* made by that run of an op that can be run again (tape_again.h), from 1 */
    struct param *param; /* a parameter in use */
};

static inline int64_t tensor_elements(const struct tensor *x) {
    return x->rows * x->width;
}

#endif
