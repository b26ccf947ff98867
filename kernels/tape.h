/* tape: what was computed, noted in order, so that backward can walk it from the end.
 *
 * Layers are written forward only. Calling an op runs its kernel at once and leaves a note {op,
 * inputs, outputs, what the adjoint will read}; tape_backward calls the adjoints from the last note
 * to the first. Nothing is rewritten, nothing is lazy. The tape owns every tensor made on it and
 * gives memory back as soon as nobody will read it: a value lives while the forward code may read
 * it (until tensor_drop, or the end of its scope) or a note still to be walked will; a gradient
 * lives until the op that made the value has used it. Between steps the arena is empty, so
 * addresses repeat.
 *
 * Ops are any {name, adjoint}: those of a device are in kernels/ops.h, exchanges between ranks in
 * parallel/.
 *
 * Numbers are of two formats (kernels/ops.def): activations are stored, what must be exact is real.
 * An op runs in the format of the tensor that carries its stored operands; a gradient has the
 * format of its tensor, that of a parameter is real. Where both are the same, none of this shows.
 *
 * Less memory for more work: layers that are replayed (tape_segment.h), or single ops that are run
 * again (tape_again.h).
 *
 * Split backward: with MASK_INPUT the adjoints of inputs run and those of weights wait, holding
 * their two operands, until tape_backward_weights, which runs them in the order they came. Where an
 * adjoint cannot do one half without most of the other, both run with the input. */
#ifndef KERNELS_TAPE_H
#define KERNELS_TAPE_H

#include "kernels/device.h"
#include "kernels/layout.h"

enum { NOTE_IN = 10, NOTE_OUT = 4, NOTE_SIZES = 10, NOTE_REALS = 4 };
enum { MASK_INPUT = 1, MASK_WEIGHT = 2, MASK_ALL = 3 };
enum { TOGETHER = 1 << NOTE_IN };

struct tape;
struct note;
struct parallel;

/* A stored block of weights, as the tape sees it: where it is, how it is split,
 * and in which state it was used. */
struct param {
    const char *name;
    int64_t rows, width;  /* of this rank's block */
    struct layout layout; /* SPLIT where it is split; other axes are settled by use */
    enum dtype dtype;     /* of value: the tape's stored format, or its real one (params.h) */
    void *value, *grad;   /* device; gradients are real numbers. grad NULL: never trained */
    bool trained;
    bool used;  /* layout.state holds the state of its use */
    bool twice; /* two ops use it: their terms come in one order only if all wait (see TOGETHER) */
};

struct tape_op {
    const char *name;
    /* Adds the gradients of n's inputs, given those of its outputs. mask: which inputs. */
    void (*adjoint)(struct tape *t, struct note *n, unsigned mask);
    unsigned reads_in, reads_out; /* bit i: the adjoint reads the value of input / output i */
    unsigned
        weights;    /* bit i: input i is a weight, whose half may run later; TOGETHER: it does not,
                       * for the adjoint would compute nearly all of it twice */
    unsigned again; /* its bit in tape.again; 0: it is never run again */
};

struct note {
    const struct tape_op *op;
    int n_in, n_out;
    struct tensor *in[NOTE_IN], *out[NOTE_OUT];
    int64_t size[NOTE_SIZES];
    double real[NOTE_REALS];
    const void *own;   /* the op's own */
    unsigned holds_in; /* bit i: input i's value stays until this note is walked */
};

struct tape {
    struct device *device;
    struct arena *arena;       /* values and gradients */
    struct arena *scratch;     /* within one op */
    enum dtype stored;         /* of activations: F32, F64 or BF16 */
    enum dtype real;           /* beside them: statistics, states, losses, gradients of weights */
    struct parallel *parallel; /* for exchanges; kernels/ only hands it on */
    void *
        pass; /* the model's own word on the micro-batch; a replay finds the one of its first run */
    bool learning; /* false: nothing is noted */
    bool replaying;
    struct note *note;
    int n_notes, max_notes;
    struct note *waiting; /* weight halves, in order */
    int n_waiting, max_waiting;
    struct tensor **tensor; /* all tensors since tape_begin */
    int n_tensors, max_tensors;
    struct tensor **kept; /* decisions of segments, in order; see tape_keep */
    int n_kept, max_kept, next_kept;
    bool keeping;    /* inside a segment's first run */
    unsigned again;  /* ops that are run again instead of kept: tape_again.h */
    struct run *run; /* how */
    int n_runs, max_runs;
    bool ran;          /* one more is written down, whose note is not made yet */
    void **remembered; /* host memory of ops */
    int n_remembered, max_remembered;
    void (*between)(void *context); /* called now and then in long walks; or NULL */
    void *context;
};

void tape_init(struct tape *t, struct device *d, struct arena *values, struct arena *scratch,
               enum dtype stored, struct parallel *p);
void tape_free(struct tape *t);

/* A new tensor [rows, width] with this layout; its memory is not initialised. The first is of the
 * format given: what an op makes has that of what it reads, so that a router on real numbers stays
 * there. */
struct tensor *tensor_new_of(struct tape *t, enum dtype d, const char *label, int64_t rows,
                             int64_t width, const struct layout *l);
struct tensor *tensor_new(struct tape *t, const char *label, int64_t rows, int64_t width,
                          const struct layout *l); /* stored */
struct tensor *tensor_new_real(struct tape *t, const char *label, int64_t rows, int64_t width,
                               const struct layout *l);
struct tensor *tensor_new_ints(struct tape *t, const char *label, int64_t rows, int64_t width,
                               const struct layout *l);
/* What another rank computed, or will send: like tensor_new, and with a gradient to give back,
 * which stays until the tape is cleared. */
struct tensor *tape_input(struct tape *t, const char *label, int64_t rows, int64_t width,
                          const struct layout *l);
/* The same where tape `from` of this rank made it: shares y's memory, which `from` may drop. */
struct tensor *tape_input_from(struct tape *t, struct tensor *y);
/* The gradient of such an x of another tape, as a value on this one. */
struct tensor *tape_gradient_of(struct tape *t, const struct tensor *x);
/* Nobody will read the gradient of such an x again. */
void tape_gradient_drop(struct tensor *x);
/* A tensor over memory that is not the tape's (tokens, a state kept between calls). */
struct tensor *tensor_over(struct tape *t, const char *label, void *data, enum dtype dtype,
                           int64_t rows, int64_t width, const struct layout *l);
/* The same numbers under another state: shares x's memory, has a gradient of its own. */
struct tensor *tensor_alias(struct tape *t, struct tensor *x, const struct layout *l);
/* The forward code will not read x again. Safe on tensors already dropped. */
void tensor_drop(struct tape *t, struct tensor *x);

/* Splits x by columns into n views of these widths, without copying; gradients of the views are the
 * columns of x's gradient. x itself must not be used otherwise, before or after. Each view gets the
 * segments of x that lie in it. */
void tensor_columns(struct tape *t, struct tensor *x, int n, const int64_t *widths,
                    struct tensor **views);

/* The parameter as a tensor beside x: split where the parameter is split, whole where x is whole,
 * else entered. Two uses in different states are a bug. */
struct tensor *tape_use(struct tape *t, struct param *p, const struct tensor *x);
/* The same where ops.def has a real operand. */
struct tensor *tape_use_real(struct tape *t, struct param *p, const struct tensor *x);

/* Everything made since the matching begin is dropped, except `keep` (may be NULL), which belongs
 * to the scope outside. */
int tape_scope_begin(struct tape *t);
void tape_scope_end(struct tape *t, int scope, struct tensor *keep);

/* Notes an op that was run. Does nothing (and makes outputs need no gradient) if no input needs one
 * or the tape is not learning. Returns the note to fill in sizes, or NULL. */
struct note *tape_note(struct tape *t, const struct tape_op *op, int n_in, struct tensor *const *in,
                       int n_out, struct tensor *const *out);

/* Walks back from y with gradient `seed` in every element. Every parameter's gradient is added to.
 */
void tape_backward(struct tape *t, struct tensor *y, double seed, unsigned mask);
/* The same from a gradient that comes from elsewhere: `given` has y's shape and holds it as its
 * values; it may be on no tape but this one, and is dropped. Nothing happens if y needs none. */
void tape_backward_given(struct tape *t, struct tensor *y, struct tensor *given, unsigned mask);
/* Runs the weight halves that wait. */
void tape_backward_weights(struct tape *t);

/* Forgets everything; the arena must then be empty of this tape's memory. */
void tape_clear(struct tape *t);

/* For adjoints. The gradient memory of input i (NULL if not wanted), and whether to add to it. */
void *tape_grad_in(struct tape *t, struct note *n, int i, unsigned mask, int *add);
/* The gradient of output i; NULL if it has none. */
void *tape_grad_out(const struct note *n, int i);
/* The same for an op of single elements, whose kernel may write where it reads: where nobody else
 * has output `out`'s gradient, and the input none yet, its memory becomes the input's. */
void *tape_grad_in_place(struct tape *t, struct note *n, int out, int in, unsigned mask, int *add);
/* Gives output i's gradient to input i as it is (sums, copies): shares the memory where it can. */
void tape_grad_pass(struct tape *t, struct note *n, int out, int in, unsigned mask);

/* For ops: zeroed host memory that lives until the tape is cleared, for
 * sizes that only the run tells. */
void *tape_remember(struct tape *t, size_t bytes);

/* For ops: scratch that is given back at once by scratch_give. */
void *scratch_take(struct tape *t, size_t bytes, struct piece **piece);
void scratch_give(struct tape *t, struct piece *piece);
/* device_run for operations with scratch: sets the operands that the row of ops.def calls so, and
 * gives the memory back. */
void scratch_run(struct tape *t, enum op op, enum dtype stored, void *args);
#define SCRATCH_RUN(t, name, stored, ...)                                                          \
    scratch_run(t, OP_##name, stored, &(struct name##_args){__VA_ARGS__})

/* For tape*.c: a note whatever its inputs need; input i's value stays for it; back to a note. */
struct note *note_add(struct tape *t, const struct tape_op *op, bool needs, int n_in,
                      struct tensor *const *in, int n_out, struct tensor *const *out);
void note_hold(struct note *n, int i);
void tape_walk(struct tape *t, int down_to, unsigned mask);

#endif
