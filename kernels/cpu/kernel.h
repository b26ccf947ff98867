/* kernel: what every file of the cpu room begins with.
 *
 * A file of plain definitions is compiled twice, with -DREAL=float -DROOM=f32 and with
 * -DREAL=double -DROOM=f64. KERNEL(rms_norm) { ... a->x ... } defines rms_norm_f32 or rms_norm_f64;
 * the argument struct is made from the row in ops.def. Faster versions are in files of their own,
 * compiled with other rooms (kernels/cpu/table.h), those of BF16 with -DSTORED_BF16. */
#ifndef KERNELS_CPU_KERNEL_H
#define KERNELS_CPU_KERNEL_H

#include <math.h>

#include "kernels/device.h"

typedef REAL real;
#if defined STORED_BF16
typedef struct {
    uint16_t bits;
} stored;
#else
typedef real stored;
#endif

#define KERNEL_NAME2(name, room) name##_##room
#define KERNEL_NAME1(name, room) KERNEL_NAME2(name, room)
#define KERNEL_NAME(name) KERNEL_NAME1(name, ROOM)
#define KERNEL(name)                                                                               \
    static void name##_body(const struct name##_args *a);                                          \
    void KERNEL_NAME(name)(const void *args);                                                      \
    void KERNEL_NAME(name)(const void *args) {                                                     \
        name##_body(args);                                                                         \
    }                                                                                              \
    static void name##_body(const struct name##_args *a)

/* Calls with fewer numbers than this run on one thread: waking the others would take longer. */
enum { SMALL = 16384 };

static inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

#endif
