/* exact: sums that do not depend on their order.
 *
 * Loss, norms and counts are added up by many threads on many ranks, and must be the same bits
 * however the work was cut. So they are not added as floating-point numbers at all: an accumulator
 * is one long fixed-point integer that reaches from below the square of the smallest double to
 * above the square of the largest, every number enters it whole, and integers may be added in any
 * order. Only exact_value rounds, once.
 *
 * The integer lies in limbs of 32 bits kept in 64, least first: the value is the sum of limb[i] *
 * 2^(32 i - 2176). Limbs may overlap by their upper halves; carries are moved up (exact_normalise)
 * before additions could overflow. Infinities and NaN are counted apart. All members are int64_t,
 * so normalised accumulators of many ranks may be added as one vector of integers (parallel/comm.h:
 * comm_sum_exact). */
#ifndef KERNELS_EXACT_H
#define KERNELS_EXACT_H

#include <stdint.h>

enum { EXACT_LIMBS = 136, EXACT_LOWEST = -2176 };

struct exact {
    int64_t limb[EXACT_LIMBS];
    int64_t additions; /* since the last normalising */
    int64_t nans, plus_infinities, minus_infinities;
};

/* All zero is an empty sum: struct exact sum = {0} will do. */
void exact_clear(struct exact *sum);

void exact_add(struct exact *sum, double x);

/* Adds n numbers, or their squares (of doubles too without rounding, overflow or underflow). Host
 * memory; large arrays are shared among the threads. */
void exact_add_array_f32(struct exact *sum, const float *x, int64_t n);
void exact_add_array_f64(struct exact *sum, const double *x, int64_t n);
void exact_add_squares_f32(struct exact *sum, const float *x, int64_t n);
void exact_add_squares_f64(struct exact *sum, const double *x, int64_t n);

/* into += from. */
void exact_merge(struct exact *into, const struct exact *from);

/* Moves carries up: all limbs but the highest are then 0 .. 2^32 - 1, and equal sums are equal
 * bits. */
void exact_normalise(struct exact *sum);

/* The sum rounded once, to nearest, ties to even. NaN if a NaN went in or infinities of both signs.
 * */
double exact_value(const struct exact *sum);

#endif
