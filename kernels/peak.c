#include "kernels/peak.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels/cpu/table.h"
#include "kernels/die.h"

/* Twelve chains hide the latency of a multiply-add on two ports. A slice takes 0.2 ms. */
enum { CHAINS = 12, ROUNDS = 40000, SLICES = 12, CACHED = 4 << 20 };

/* A loop returns something that depends on every one of its operations. */
typedef float (*loop_fn)(int rounds);

static float loop_plain(int rounds) {
    enum { WIDE = 4 * CHAINS };
    float c[WIDE];
    for (int i = 0; i < WIDE; i++) c[i] = (float)i;
    for (int k = 0; k < rounds; k++)
        for (int i = 0; i < WIDE; i++) c[i] = c[i] * 0.999f + 1e-3f;
    float sum = 0;
    for (int i = 0; i < WIDE; i++) sum += c[i];
    return sum;
}

#ifdef __x86_64__
#define CHAINS_OF(type, zero, step, total)                                                         \
    type c[CHAINS];                                                                                \
    for (int i = 0; i < CHAINS; i++) c[i] = zero;                                                  \
    for (int k = 0; k < rounds; k++)                                                               \
        for (int i = 0; i < CHAINS; i++) c[i] = step;                                              \
    for (int i = 1; i < CHAINS; i++) c[0] = total(c[0], c[i]);                                     \
    return ((float *)c)[0]

__attribute__((target("avx2,fma"))) static float loop_v3(int rounds) {
    const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
    CHAINS_OF(__m256, b, _mm256_fmadd_ps(c[i], a, b), _mm256_add_ps);
}

__attribute__((target("avx512f"))) static float loop_v4(int rounds) {
    const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
    CHAINS_OF(__m512, b, _mm512_fmadd_ps(c[i], a, b), _mm512_add_ps);
}

__attribute__((target("avx512f,avx512bf16"))) static float loop_v4_bf16(int rounds) {
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), /* pairs of 1 and of tiny */
        b = (__m512bh)_mm512_set1_epi32(0x30003000);
    CHAINS_OF(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(c[i], a, b), _mm512_add_ps);
}
#endif

/* The loop of a format at this processor's level, and what one round of it computes. */
static loop_fn choose(enum dtype d, double *work) {
    const int level = cpu_best_level();
    (void)level;
#ifdef __x86_64__
    if (d == BF16 && level >= CPU_V4_BF16) return *work = CHAINS * 16 * 4, loop_v4_bf16;
    if (level >= CPU_V4) return *work = CHAINS * 16 * 2, loop_v4;
    if (level >= CPU_V3) return *work = CHAINS * 8 * 2, loop_v3;
#endif
    (void)d;
    return *work = CHAINS * 4 * 2, loop_plain;
}

/* Seconds by that clock. A thread's own leaves out the time in which others had the core. */
static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double peak_flops(int threads, enum dtype d) {
    double work, sum = 0;
    const loop_fn loop = choose(d, &work);
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        /* Each thread's own best: a thread that waits for its core does not spoil the others'. */
        double best = 0;
        volatile float kept = 0;
        for (int s = 0; s < SLICES; s++) {
            const double began = seconds(CLOCK_THREAD_CPUTIME_ID);
            kept = loop(ROUNDS);
            const double rate = ROUNDS * work / (seconds(CLOCK_THREAD_CPUTIME_ID) - began);
            if (rate > best) best = rate;
        }
        (void)kept;
        sum += best;
    }
    return d == F64 ? sum / 2 : sum;
}

/* One slice of a thread: its part copied, often enough to be measured. */
static double copy_rate(float *to, const float *from, size_t n, int repeats) {
    const double began = seconds(CLOCK_THREAD_CPUTIME_ID);
    for (int r = 0; r < repeats; r++) {
        memcpy(to, from, n * sizeof *to);
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory"); /* each repeat counts */
    }
    return 2.0 * (double)(n * sizeof *to) * repeats / (seconds(CLOCK_THREAD_CPUTIME_ID) - began);
}

double peak_memory(int threads, size_t bytes) {
    const size_t each = bytes / 2 / sizeof(float) / (size_t)threads / 64 * 64 + 64;
    const bool alone = bytes <= CACHED || threads == 1;
    const int repeats = bytes <= CACHED ? (int)(CACHED / bytes) + 1 : 1;
    float *a = die_alloc(2 * each * (size_t)threads * sizeof *a), *b = a + each * (size_t)threads;
    double best = 0, sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        const size_t from = (size_t)omp_get_thread_num() * each;
        double own = 0, began = 0;
        /* Pages of their own: what was never written is all one page. */
        memset(a + from, 1, each * sizeof *a);
        memset(b + from, 1, each * sizeof *b);
        for (int s = 0; s < SLICES; s++) {
            /* Memory is shared: all at once, or it would be counted twice. Caches are a core's. */
            if (!alone) {
#pragma omp barrier
                began = seconds(CLOCK_MONOTONIC);
            }
            const double rate = copy_rate(b + from, a + from, each, repeats);
            if (rate > own) own = rate;
            if (!alone) {
#pragma omp barrier
#pragma omp master
                {
                    const double all = 2.0 * (double)(each * sizeof *a) * threads /
                                       (seconds(CLOCK_MONOTONIC) - began);
                    if (all > best) best = all;
                }
            }
        }
        sum += own;
    }
    free(a);
    return alone ? sum : best;
}

struct speed peak_measure(int threads) {
    return (struct speed){peak_flops(threads, F32), peak_flops(threads, BF16),
                          peak_memory(threads, (size_t)128 << 20)};
}
