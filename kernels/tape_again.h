/* tape_again: single ops that are run again in backward instead of keeping what they made.
 *
 * An op runs its kernel by TAPE_RUN, which writes down the call. Where the tape is told to run it
 * again (tape.again), its note keeps the inputs of that call, and what it made is given back when
 * the forward code drops it. The first adjoint that reads such a value has it made anew, by the
 * same kernel from the same numbers, so not a bit changes; inputs that were given back themselves
 * come first. From then on it stays until its last reader. */
#ifndef KERNELS_TAPE_AGAIN_H
#define KERNELS_TAPE_AGAIN_H

#include "kernels/tape.h"

/* Ops that can. Those whose results are decisions, or came from other ranks, cannot. */
#define TAPE_AGAIN(X)                                                                              \
    X(rms_norm)                                                                                    \
    X(relu2)                                                                                       \
    X(conv)                                                                                        \
    X(gate_squares)                                                                                \
    X(gate_norm)                                                                                   \
    X(gated_norm)                                                                                  \
    X(gather_rows)                                                                                 \
    X(combine_rows)                                                                                \
    X(add_bias)                                                                                    \
    X(widen)                                                                                       \
    X(scan)                                                                                        \
    X(attention)                                                                                   \
    X(linear)                                                                                      \
    X(grouped_linear)

enum {
    AGAIN_FIRST = -1,
#define X(name) AGAIN_AT_##name,
    TAPE_AGAIN(X)
#undef X
        N_AGAIN
};
#define AGAIN(name) (1u << AGAIN_AT_##name)

/* The bit of the op of that name, or 0; the names, from 0 to N_AGAIN - 1. */
unsigned tape_again_bit(const char *name);
const char *tape_again_name(int i);

/* scratch_run for ops that can be run again; the note comes next. */
#define TAPE_RUN(t, name, stored, ...)                                                             \
    tape_run(t, OP_##name, stored, &(struct name##_args){__VA_ARGS__})
void tape_run(struct tape *t, enum op op, enum dtype stored, void *args);

/* Whether x may be given back although it will be read. */
bool tape_again_can(const struct tensor *x);

/* For the tape: connects a note with the run before it (n NULL: forgets that); has all that the
 * note's adjoint reads. */
void tape_again_note(struct tape *t, struct note *n);
void tape_again_read(struct tape *t, struct note *n);

#endif
