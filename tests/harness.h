/* harness: tries any row of ops.def, knowing of it only what the row says.
 *
 * A case is a row and the sizes to try it with. The harness makes the operands from their names,
 * runs the row on debug devices, whose addresses fault when the host follows them, and checks what
 * must hold for every operation: nothing but the outputs is written, guard bytes and the gaps of
 * views included; outputs do not depend on what lay there before; x_add adds; ADD operands may be
 * left out; float agrees with double, and the fast version with the plain one, within the row's
 * tolerance; any number of threads gives the same bits; and where the row has an adjoint, that is
 * the derivative: of the sum of all outputs, weighted at random, by central differences in double.
 * So a new row needs no more than a case (and, if its operands need special values, a line in
 * operand_make). */
#ifndef TESTS_HARNESS_H
#define TESTS_HARNESS_H

#include <stdbool.h>

#include "kernels/device.h"

struct op_case {
    enum op op;
    const void *args;   /* the row's struct; only sizes and reals are read */
    const char *absent; /* names of operands left NULL, the adjoint's too; NULL: none */
    bool large;         /* too large for differences; large enough for threads to share the work */
    int line;           /* where the case is written */
};

/* CASE(rms_norm, .T = 5, .H = 7, .eps = 1e-5) */
#define CASE(name, ...)                                                                            \
    { OP_##name, &(struct name##_args){__VA_ARGS__}, NULL, false, __LINE__ }
#define LARGE(name, ...)                                                                           \
    { OP_##name, &(struct name##_args){__VA_ARGS__}, NULL, true, __LINE__ }
#define LARGE_WITHOUT(names, name, ...)                                                            \
    { OP_##name, &(struct name##_args){__VA_ARGS__}, names, true, __LINE__ }
#define WITHOUT(names, name, ...)                                                                  \
    { OP_##name, &(struct name##_args){__VA_ARGS__}, names, false, __LINE__ }

/* The row called <name>_adjoint, or N_OPS. */
enum op adjoint_of(enum op op);

/* Runs everything above on one case. Returns the number of mistakes, having printed them. */
int try_case(const struct op_case *c);

/* Only this: the device's float version gives the same bits on 1, 2, 3 and 5 threads. */
int try_threads(const struct op_case *c);

/* Times every row on sizes of a small model and prints a table; the cost of a token in sequences of
 * many lengths. bench_has: whether the table has the row. */
int bench(enum dtype stored);
bool bench_has(enum op op);
int bench_lengths(enum dtype stored);

#endif
