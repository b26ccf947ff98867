/* maths: what several plain kernels share: the logistic functions, and how a result is given to an
 * ADD operand.
 *
 * Sums over many terms are kept in double even where the operands are float: a double holds the
 * product of two floats exactly, and the extra width costs little beside the memory traffic. A sum
 * belongs to one thread and runs in one order, so results do not depend on the number of threads.
 */
#ifndef KERNELS_CPU_MATHS_H
#define KERNELS_CPU_MATHS_H

#include <string.h>
#include <tgmath.h>

#include "kernels/cpu/kernel.h"
#include "kernels/die.h"

/* Columns whose sums over all tokens one thread keeps at a time. */
enum { COLUMNS = 64 };

/* Gives v to an element of an ADD operand. The old content is not used unless it is added to. */
static inline void put(real *y, real v, int add) {
    *y = add ? *y + v : v;
}

/* The same with the sum rounded once. */
static inline void put_sum(real *y, double v, int add) {
    *y = (real)(add ? (double)*y + v : v);
}

static inline real sigmoid(real x) {
    return 1 / (1 + exp(-x));
}

static inline real silu(real x) {
    return x / (1 + exp(-x));
}

/* d silu / dx */
static inline real silu_slope(real x) {
    real s = sigmoid(x);
    return s * (1 + x * (1 - s));
}

#endif
