/* corpora_blend: which source sample number i comes from.
 *
 * The sources take turns as seats go to parties under Webster's rule: the next sample goes to the
 * source with the least (2k + 1) / weight, k being how many it has had, the first of equals. So
 * after any number of samples each source has had its share to within about one sample, and in
 * the long run exactly. All samples up to time t are those with k < t weight / total + 1/2, so the
 * turn of a far sample is found without walking there: whole numbers alone, no state. */
#ifndef IO_CORPORA_BLEND_H
#define IO_CORPORA_BLEND_H

#include <stdint.h>

/* The source of sample i >= 0, and how many of that source came before it in *before. weight[n]:
 * positive whole numbers below 2^50 each, below 2^62 in all. */
int blend_turn(int n, const int64_t *weight, int64_t i, int64_t *before);

#endif
