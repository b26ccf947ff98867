/* peak: what this processor and its memory reach at most, found out in a few milliseconds.
 *
 * Arithmetic: independent multiply-adds in registers, by the widest vectors that the processor has.
 * Memory: large arrays copied, counted as bytes read plus bytes written. Of several
 * short slices the best counts, and where threads need not work together a thread's own
 * clock counts, so that neighbours do little harm. */
#ifndef KERNELS_PEAK_H
#define KERNELS_PEAK_H

#include <stddef.h>

#include "kernels/device.h"

/* Multiplications and additions a second in that format. BF16: by dot products of pairs, where the
 * processor has them, else what F32 gives. */
double peak_flops(int threads, enum dtype d);

/* Bytes a second, read and written, over arrays of so many bytes together: arrays that fit in a
 * cache give the cache's speed. */
double peak_memory(int threads, size_t bytes);

/* All of it, memory by arrays that no cache holds. */
struct speed peak_measure(int threads);

#endif
