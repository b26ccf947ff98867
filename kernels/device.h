/* device: a table of operations, and memory whose addresses only the device may follow.
 *
 * Each row of ops.def is one operation: a struct of arguments (made here from the row), a kernel
 * per room, and its operand counts, work and tolerance as data. Two rooms: `cpu` computes, by a
 * plain definition of every operation in float and in double and by faster versions where there are
 * any (kernels/cpu/table.h); `dry` computes nothing and counts everything, so that the real program
 * can be planned. Callers fill the struct and call device_run; they never follow a pointer into
 * device memory themselves. To make sure of that, a debug device hands out addresses that fault
 * when the host reads them, and checks what kernels leave behind. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

enum op {
#define OP(name, ...) OP_##name,
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
    N_OPS
};

/* struct rms_norm_args { const void *x, *w; void *y, *rstd; int64_t T, H; double eps; }; and so on.
 * Stored and real operands have the formats that device_run is told. */
#define IN(x, n) const void *x;
#define OUT(x, n) void *x;
#define ADD(x, n)                                                                                  \
    void *x;                                                                                       \
    int x##_add;
#define INOUT(x, n) void *x;
#define INR IN
#define OUTR OUT
#define ADDR ADD
#define INOUTR INOUT
#define INI(x, n) const int32_t *x;
#define OUTI(x, n) int32_t *x;
#define INOUTL(x, n) int64_t *x;
#define TMPR(x, n) void *x;
#define ACC(x) void *x;
#define N(T) int64_t T;
#define R(eps) double eps;
#define OP(name, operands, sizes, reals, work, tolerance)                                          \
    struct name##_args {                                                                           \
        operands sizes reals                                                                       \
    };
#include "kernels/ops.def"
#include "kernels/ops_undef.h"

/* What a row says, as data. */
enum { MOST_OPERANDS = 16 };
enum operand_kind { OPERAND_IN, OPERAND_OUT, OPERAND_ADD, OPERAND_INOUT, OPERAND_TMP };
enum operand_type { OPERAND_STORED, OPERAND_REAL, OPERAND_I32, OPERAND_I64, OPERAND_EXACT };
struct operand_row {
    const char *name;
    enum operand_kind kind;
    enum operand_type type;
    size_t at;     /* offset of the pointer in the args struct */
    size_t add_at; /* offset of x_add, for OPERAND_ADD */
};
struct op_row {
    const char *name;
    size_t args_size;
    int n_operands;
    const struct operand_row *operands;
    void (*counts)(const void *args, int64_t *n); /* elements of each operand, gaps included */
    void (*met)(const void *args, int64_t *n);    /* those that are read or written */
    double (*work)(const void *args);             /* multiply-adds as two */
    double tolerance;
};
const struct op_row *op_row(enum op op);

/* What a processor and its memory reach at most; 0: not known. */
struct speed {
    double fp32, bf16; /* multiplications and additions a second */
    double memory;     /* bytes a second, read and written */
};
double speed_of(const struct speed *s, enum dtype stored);

/* Counters of one device, by operation. bytes: all operands once, which is the least. least_s: the
 * roofline, call by call: work or bytes at the device's speed, whichever takes longer. */
struct op_count {
    int64_t calls;
    double work, bytes, least_s;
    double spent_s; /* if the device is timed */
};

struct device {
    const char *name; /* "cpu", "dry" */
    bool dry, debug;
    int threads;
    uintptr_t disguise; /* debug: added to every address given out */
    uintptr_t next;     /* dry: where the next made-up region begins */
    struct op_count count[N_OPS];
    struct speed speed;
    bool timed; /* measures every call */
    bool plain; /* use the plain definitions even where a faster version exists */
    int level;  /* which of the faster versions: kernels/cpu/table.h */
    /* If set, runs in place of every kernel: for devices that are like one and are none, such as
     * one that sleeps as long as another computes. */
    void (*instead)(void *context, enum op op, enum dtype stored, const void *args);
    void *context;
};

/* A device that computes on `threads` host threads. debug: see above. */
void device_cpu(struct device *d, int threads, bool debug);
/* A device that counts. debug must not change what it counts. */
void device_dry(struct device *d);

/* Reserves address space for up to `bytes` (physical memory comes as it is touched); NULL if the
 * system refuses. On dry: a made-up address. Page-aligned. */
void *device_reserve(struct device *d, size_t bytes);
void device_release(struct device *d, void *p, size_t bytes);

/* The same memory as the host sees it, for transports and files; NULL on dry. */
void *device_host(const struct device *d, const void *p);

/* Between host and device memory; nothing on dry (device_read gives zeros). */
void device_write(struct device *d, void *to, const void *host, size_t bytes);
void device_read(struct device *d, void *host, const void *from, size_t bytes);
void device_zero(struct device *d, void *p, size_t bytes);

/* Bytes of one element of an operand, where stored numbers are of format `stored`. */
size_t operand_size(enum operand_type type, enum dtype stored);
/* The format of real numbers beside stored ones: F64 beside F64, else F32. */
enum dtype dtype_real(enum dtype stored);

/* Runs one operation. `stored` is F32, F64 or BF16: see ops.def. args: the row's struct. */
void device_run(struct device *d, enum op op, enum dtype stored, const void *args);

/* device_run with the struct written in place: DEVICE_RUN(d, add, F32,
 * .a = x, .b = y, .y = z, .n = 3). */
#define DEVICE_RUN(d, name, stored, ...)                                                           \
    device_run(d, OP_##name, stored, &(struct name##_args){__VA_ARGS__})

#endif
