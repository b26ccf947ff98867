/* head_word: which of a rank's words is the target; for the kernels of the head. */
#ifndef KERNELS_CPU_HEAD_WORD_H
#define KERNELS_CPU_HEAD_WORD_H

#include <stdint.h>

/* Where the target is among our words, or -1. */
static inline int64_t word_here(int32_t target, int64_t first, int64_t V) {
    return target >= 0 && target >= first && target < first + V ? target - first : -1;
}

#endif
