#include "kernels/device.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/table.h"
#include "kernels/die.h"
#include "kernels/dry/dry.h"
#include "kernels/exact.h"
#include "kernels/scan_recent.h"
#include "kernels/scan_split.h"

/* A debug device adds this to its addresses: no x86-64 or aarch64 system maps user memory there. */
static const uintptr_t disguise = (uintptr_t)1 << 54;

enum { WATCHED = 64 };

/* clang-format off */

/* Elements of each operand: the row's own expressions, with its sizes as local variables. */
#define IN(x, n) *count++ = (n);
#define OUT(x, n) *count++ = (n);
#define ADD(x, n) *count++ = (n);
#define INOUT(x, n) *count++ = (n);
#define INR IN
#define OUTR OUT
#define ADDR ADD
#define INOUTR INOUT
#define INI(x, n) *count++ = (n);
#define OUTI(x, n) *count++ = (n);
#define INOUTL(x, n) *count++ = (n);
#define TMPR(x, n) *count++ = (n);
#define ACC(x) *count++ = 1;
#define N(T) const int64_t T = a->T; (void)T;
#define R(eps)
#define VIEW(rows, width, ld) (((rows) > 0 && (width) > 0) * (((rows) - 1) * (ld) + (width)))
#define MET(n, m) (n)
#define OP(name, operands, sizes, reals, work, tolerance) \
    static void name##_counts(const void *args, int64_t *count) { \
        const struct name##_args *a = args; sizes operands }
#include "kernels/ops.def"
#undef VIEW
#undef MET
#undef OP

/* Those of them that are read or written: without the gaps of views, and rows nobody asks for. */
#define VIEW(rows, width, ld) ((rows) * (width))
#define MET(n, m) ((m) < (n) ? (m) : (n))
#define OP(name, operands, sizes, reals, work, tolerance) \
    static void name##_met(const void *args, int64_t *count) { \
        const struct name##_args *a = args; sizes operands }
#include "kernels/ops.def"
#include "kernels/ops_undef.h"

/* Work: the same with the sizes as doubles, which do not overflow. */
#define N(T) const double T = (double)a->T; (void)T;
#define OP(name, operands, sizes, reals, work, tolerance) \
    static double name##_work(const void *args) { \
        const struct name##_args *a = args; sizes return work; }
#include "kernels/ops.def"
#include "kernels/ops_undef.h"

#define ROW(x, kind, type) {#x, OPERAND_##kind, OPERAND_##type, offsetof(args, x), 0},
#define ADDED(x, type) {#x, OPERAND_ADD, OPERAND_##type, offsetof(args, x), offsetof(args, x##_add)},
#define IN(x, n) ROW(x, IN, STORED)
#define OUT(x, n) ROW(x, OUT, STORED)
#define ADD(x, n) ADDED(x, STORED)
#define INOUT(x, n) ROW(x, INOUT, STORED)
#define INR(x, n) ROW(x, IN, REAL)
#define OUTR(x, n) ROW(x, OUT, REAL)
#define ADDR(x, n) ADDED(x, REAL)
#define INOUTR(x, n) ROW(x, INOUT, REAL)
#define INI(x, n) ROW(x, IN, I32)
#define OUTI(x, n) ROW(x, OUT, I32)
#define INOUTL(x, n) ROW(x, INOUT, I64)
#define TMPR(x, n) ROW(x, TMP, REAL)
#define ACC(x) ROW(x, INOUT, EXACT)
#define OP(name_, operands_, sizes_, reals_, work_, tolerance_) \
    case OP_##name_: { \
        typedef struct name_##_args args; \
        static const struct operand_row operands[] = {operands_}; \
        _Static_assert(sizeof operands / sizeof *operands <= MOST_OPERANDS, "MOST_OPERANDS"); \
        static const struct op_row row = { \
            #name_, sizeof(args), sizeof operands / sizeof *operands, operands, \
            name_##_counts, name_##_met, name_##_work, tolerance_}; \
        return &row; }
const struct op_row *op_row(enum op op) {
    switch (op) {
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
    case N_OPS: break;
    }
    bug("operation %d", (int)op);
}
#undef ROW
#undef ADDED

union any_args {
#define OP(name, ...) struct name##_args name;
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
};
/* clang-format on */

void device_cpu(struct device *d, int threads, bool debug) {
    if (threads < 1) bug("%d threads", threads);
    memset(d, 0, sizeof *d);
    d->name = "cpu";
    d->threads = threads;
    d->debug = debug;
    d->disguise = debug ? disguise : 0;
    d->level = cpu_best_level();
}

/* A page more than asked for, so that `device_run` may look past the end of an operand. */
static size_t region_bytes(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + 2 * page - 1) / page * page;
}

void *device_reserve(struct device *d, size_t bytes) {
    if (d->dry) return dry_reserve(d, bytes);
    void *p = mmap(NULL, region_bytes(bytes), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    /* Weights are walked from end to end: with pages of 2 MiB the processor fetches ahead across
     * what would be borders of small ones (generation: 10% faster). Where there are none, nothing
     * happens. */
    madvise(p, region_bytes(bytes), MADV_HUGEPAGE);
    return (void *)((uintptr_t)p + d->disguise);
}

void device_release(struct device *d, void *p, size_t bytes) {
    if (!p || d->dry) return;
    if (munmap(device_host(d, p), region_bytes(bytes)) != 0) bug("release of %p", p);
}

void *device_host(const struct device *d, const void *p) {
    return d->dry || !p ? NULL : (void *)((uintptr_t)p - d->disguise);
}

void device_write(struct device *d, void *to, const void *host, size_t bytes) {
    if (!d->dry && bytes > 0) memcpy(device_host(d, to), host, bytes);
}

void device_read(struct device *d, void *host, const void *from, size_t bytes) {
    if (bytes == 0) return;
    if (d->dry) memset(host, 0, bytes);
    else memcpy(host, device_host(d, from), bytes);
}

void device_zero(struct device *d, void *p, size_t bytes) {
    if (!d->dry && bytes > 0) memset(device_host(d, p), 0, bytes);
}

/* One operand of one call, with the address as the host sees it. */
struct operand {
    unsigned char *p;
    size_t bytes;
    bool written;
    unsigned char after[WATCHED]; /* debug: what lay behind it before the call */
};

enum dtype dtype_real(enum dtype stored) {
    return stored == F64 ? F64 : F32;
}

size_t operand_size(enum operand_type type, enum dtype stored) {
    switch (type) {
    case OPERAND_STORED: return dtype_size(stored);
    case OPERAND_REAL: return dtype_size(dtype_real(stored));
    case OPERAND_I32: return sizeof(int32_t);
    case OPERAND_I64: return sizeof(int64_t);
    case OPERAND_EXACT: return sizeof(struct exact);
    }
    bug("operand type %d", (int)type);
}

/* The least traffic of an operand: everything that is met is read once and written once. Scratch is
 * meant to stay in the cache. */
static double traffic(const struct operand_row *r, const void *args, double bytes) {
    int add = 0;
    switch (r->kind) {
    case OPERAND_IN:
    case OPERAND_OUT: return bytes;
    case OPERAND_INOUT: return 2 * bytes;
    case OPERAND_ADD:
        memcpy(&add, (const char *)args + r->add_at, sizeof add);
        return (add ? 2 : 1) * bytes;
    case OPERAND_TMP: return 0;
    }
    bug("operand kind %d", (int)r->kind);
}

double speed_of(const struct speed *s, enum dtype stored) {
    return stored == BF16 ? s->bf16 : stored == F64 ? s->fp32 / 2 : s->fp32;
}

/* The time below which nobody comes: at the peak of arithmetic or at that of memory. */
static double least_seconds(const struct speed *s, enum dtype stored, double work, double bytes) {
    const double peak = speed_of(s, stored), computing = peak > 0 ? work / peak : 0,
                 moving = s->memory > 0 ? bytes / s->memory : 0;
    return computing > moving ? computing : moving;
}

static void count_call(struct device *d, enum op op, enum dtype stored, const void *args) {
    const struct op_row *row = op_row(op);
    int64_t met[MOST_OPERANDS];
    double bytes = 0;
    row->met(args, met);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        void *p; /* all object pointers look alike on the systems this runs on */
        memcpy(&p, (const char *)args + r->at, sizeof p);
        if (p) bytes += traffic(r, args, (double)met[i] * (double)operand_size(r->type, stored));
    }
    const double work = row->work(args);
    struct op_count *total = &d->count[op];
    total->calls++;
    total->work += work;
    total->bytes += bytes;
    total->least_s += least_seconds(&d->speed, stored, work, bytes);
}

/* Fills `operands`, and turns the pointers of `args` into host pointers. */
static void prepare(struct device *d, enum op op, enum dtype stored, void *args,
                    struct operand *operands) {
    const struct op_row *row = op_row(op);
    int64_t counts[MOST_OPERANDS];
    row->counts(args, counts);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        void *p;
        memcpy(&p, (char *)args + r->at, sizeof p);
        size_t bytes = p ? (size_t)counts[i] * operand_size(r->type, stored) : 0;
        p = device_host(d, p);
        memcpy((char *)args + r->at, &p, sizeof p);
        operands[i].p = p;
        operands[i].bytes = bytes;
        operands[i].written = r->kind != OPERAND_IN;
    }
}

/* Debug: a kernel must not write behind its operands. Behind one view
 * another of the same call may lie. */
static void watch(struct operand *operands, int n) {
    for (int i = 0; i < n; i++)
        if (operands[i].bytes)
            memcpy(operands[i].after, operands[i].p + operands[i].bytes, WATCHED);
}

static bool is_written(const struct operand *operands, int n, const unsigned char *at) {
    for (int i = 0; i < n; i++)
        if (operands[i].written && at >= operands[i].p && at < operands[i].p + operands[i].bytes)
            return true;
    return false;
}

static void check_watched(const struct op_row *row, const struct operand *operands) {
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand *o = &operands[i];
        if (!o->bytes) continue;
        for (int j = 0; j < WATCHED; j++) {
            const unsigned char *at = o->p + o->bytes + j;
            if (*at != o->after[j] && !is_written(operands, row->n_operands, at))
                bug("%s wrote behind its operand %s", row->name, row->operands[i].name);
        }
    }
}

/* Rounds n numbers back to where they were widened from, but those that are as they were: between
 * the rows of a view lie those of another (the gradients of q, k and v), which has been given its
 * results meanwhile. */
static void narrow_changed(uint16_t *to, const float *x, const uint16_t *before, size_t n) {
    enum { BLOCK = 1024 };
    for (size_t b = 0; b < n; b += BLOCK) {
        const size_t m = n - b < BLOCK ? n - b : BLOCK;
        uint32_t was[BLOCK], is[BLOCK];
        uint16_t low[BLOCK];
        dtype_convert(was, F32, before + b, BF16, m);
        dtype_convert(low, BF16, x + b, F32, m);
        memcpy(is, x + b, m * sizeof *is);
        for (size_t i = 0; i < m; i++) to[b + i] = is[i] == was[i] ? to[b + i] : low[i];
    }
}

/* The definition of an operation on BF16: what is stored is widened, the plain float version runs
 * on copies, what it wrote is rounded. */
static void run_widened(enum op op, void *args, const struct operand *operands) {
    const struct op_row *row = op_row(op);
    float *copy[MOST_OPERANDS] = {0};
    uint16_t *before[MOST_OPERANDS] = {0};
    for (int i = 0; i < row->n_operands; i++) {
        const size_t n = operands[i].bytes / sizeof(uint16_t);
        if (row->operands[i].type != OPERAND_STORED || !operands[i].p) continue;
        copy[i] = die_alloc(n * sizeof(float));
        dtype_convert(copy[i], F32, operands[i].p, BF16, n);
        if (operands[i].written) {
            before[i] = die_alloc(operands[i].bytes);
            memcpy(before[i], operands[i].p, operands[i].bytes);
        }
        memcpy((char *)args + row->operands[i].at, &copy[i], sizeof copy[i]);
    }
    kernels_f32[op](args);
    for (int i = 0; i < row->n_operands; i++) {
        if (before[i])
            narrow_changed((uint16_t *)(void *)operands[i].p, copy[i], before[i],
                           operands[i].bytes / sizeof(uint16_t));
        free(before[i]);
        free(copy[i]);
    }
}

/* On one thread the time that the processor gave it, which other programs disturb less. */
static int64_t now_ns(const struct device *d) {
    struct timespec t;
    clock_gettime(d->threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void device_run(struct device *d, enum op op, enum dtype stored, const void *args) {
    if (stored != F32 && stored != F64 && stored != BF16)
        bug("operation in %s", dtype_name(stored));
    const struct op_row *row = op_row(op);
    union any_args host;
    struct operand operands[MOST_OPERANDS];
    count_call(d, op, stored, args);
    if (d->dry) return;
    if (d->instead) {
        d->instead(d->context, op, stored, args);
        return;
    }
    const int64_t began = d->timed ? now_ns(d) : 0;
    memcpy(&host, args, row->args_size);
    prepare(d, op, stored, &host, operands);
    kernel_fn kernel = d->plain ? NULL : cpu_fast_kernel(d->level, stored, op);
    if (!kernel && stored != BF16) kernel = stored == F64 ? kernels_f64[op] : kernels_f32[op];
    omp_set_num_threads(d->threads);
    if (d->debug) watch(operands, row->n_operands);
    if (kernel) kernel(&host);
    else run_widened(op, &host, operands);
    if (d->debug) check_watched(row, operands);
    if (d->timed) d->count[op].spent_s += 1e-9 * (double)(now_ns(d) - began);
}
