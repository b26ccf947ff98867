#include "src/sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "src/init.h"

void sampler_init(struct sampler *s, int64_t vocabulary, double temperature, int64_t top_k,
                  double top_p) {
    *s = (struct sampler){.temperature = temperature,
                          .top_p = top_p,
                          .vocabulary = vocabulary,
                          .top_k = top_k < vocabulary ? top_k : 0};
    s->logit = die_alloc((unsigned long)vocabulary * sizeof *s->logit);
    s->weight = die_alloc((unsigned long)vocabulary * sizeof *s->weight);
    s->heap = die_alloc((unsigned long)vocabulary * sizeof *s->heap);
    s->kept = die_alloc((unsigned long)vocabulary * sizeof *s->kept);
}

void sampler_free(struct sampler *s) {
    free(s->logit);
    free(s->weight);
    free(s->heap);
    free(s->kept);
    memset(s, 0, sizeof *s);
}

double sampler_uniform(uint64_t seed, int64_t prompt, int64_t number) {
    char name[48];
    snprintf(name, sizeof name, "sampling %lld", (long long)prompt);
    return random_uniform(random_stream(seed, name), (uint64_t)number);
}

/* Largest first, the lower id among equals. */
static bool before(const double *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift(int32_t *heap, int64_t n, int64_t i, const double *logits) {
    for (int64_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && before(logits, heap[child + 1], heap[child])) child++;
        if (!before(logits, heap[child], heap[i])) return;
        int32_t other = heap[i];
        heap[i] = heap[child];
        heap[child] = other;
        i = child;
    }
}

/* Marks what top_k and top_p leave: ids come off a heap, largest first, as many as are needed. */
static void keep_some(struct sampler *s, const double *logits) {
    int64_t n = s->vocabulary, most = s->top_k ? s->top_k : n, taken = 0;
    double sum = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        s->heap[i] = (int32_t)i;
        s->kept[i] = false;
    }
    for (int64_t i = n / 2; i-- > 0;) sift(s->heap, n, i, logits);
    for (int64_t i = 0; i < n && !s->top_k; i++) all += s->weight[i];
    /* Taken ids go behind the shrinking heap, so that the first one is the last entry. */
    for (bool enough = false; taken < most && !enough; taken++) {
        int32_t id = s->heap[0];
        s->heap[0] = s->heap[n - 1 - taken];
        s->heap[n - 1 - taken] = id;
        sift(s->heap, n - 1 - taken, 0, logits);
        s->kept[id] = true;
        sum += s->weight[id];
        enough = !s->top_k && sum >= s->top_p * all;
    }
    if (!s->top_k || s->top_p >= 1) return;
    all = sum;
    sum = 0;
    for (int64_t k = 0; k < taken; k++) {
        int32_t id = s->heap[n - 1 - k];
        s->kept[id] = k == 0 || sum < s->top_p * all;
        sum += s->weight[id];
    }
}

/* The first of the largest, or -1 if there is none that is finite, or something is no number.
 * Vectors, as compilers leave the plain loop in memory: it would take as long as a layer. */
#define LARGEST(name, real, mark)                                                                  \
    static int64_t name(const real *x, int64_t n) {                                                \
        typedef real few __attribute__((vector_size(16)));                                         \
        typedef mark marks __attribute__((vector_size(16)));                                       \
        enum { LANES = 16 / sizeof(real), VECTORS = 4, ALL = VECTORS * LANES };                    \
        few best[VECTORS], v;                                                                      \
        marks bad[VECTORS] = {{0}}, more;                                                          \
        real all = -INFINITY;                                                                      \
        bool good = true;                                                                          \
        int64_t i = 0;                                                                             \
        for (int k = 0; k < VECTORS; k++) best[k] = (few){0} - (real)INFINITY;                     \
        for (; i + ALL <= n; i += ALL)                                                             \
            _Pragma("GCC unroll 4") for (int k = 0; k < VECTORS; k++) {                            \
                memcpy(&v, x + i + k * LANES, sizeof v);                                           \
                bad[k] |= v != v;                                                                  \
                more = v > best[k];                                                                \
                best[k] = (few)(((marks)v & more) | ((marks)best[k] & ~more));                     \
            }                                                                                      \
        for (int k = 0; k < ALL; k++) {                                                            \
            const real one = best[k / LANES][k % LANES];                                           \
            good &= bad[k / LANES][k % LANES] == 0;                                                \
            all = one > all ? one : all;                                                           \
        }                                                                                          \
        for (; i < n; i++) {                                                                       \
            good &= x[i] == x[i];                                                                  \
            all = x[i] > all ? x[i] : all;                                                         \
        }                                                                                          \
        if (!good || !isfinite(all)) return -1;                                                    \
        for (i = 0; i + LANES <= n; i += LANES) {                                                  \
            memcpy(&v, x + i, sizeof v);                                                           \
            more = v == all;                                                                       \
            mark found = 0;                                                                        \
            for (int k = 0; k < LANES; k++) found |= more[k];                                      \
            if (found) break;                                                                      \
        }                                                                                          \
        while (x[i] != all) i++;                                                                   \
        return i;                                                                                  \
    }
LARGEST(largest_float, float, int32_t)
LARGEST(largest_double, double, int64_t)
#undef LARGEST

int32_t sampler_choose(struct sampler *s, const void *logits, enum dtype d, double u) {
    const int64_t n = s->vocabulary,
                  best = d == F32 ? largest_float(logits, n) : largest_double(logits, n);
    const double *const x = s->logit;
    int64_t last = 0;
    if (best < 0) return -1;
    if (s->temperature <= 0) return (int32_t)best;
    dtype_convert(s->logit, F64, logits, d, (size_t)n);
    for (int64_t i = 0; i < n; i++) s->weight[i] = exp((x[i] - x[best]) / s->temperature);
    bool some = s->top_k || s->top_p < 1;
    if (some) keep_some(s, x);
    double total = 0, reached = 0;
    for (int64_t i = 0; i < n; i++)
        if (!some || s->kept[i]) total += s->weight[i];
    for (int64_t i = 0; i < n; i++) {
        if ((some && !s->kept[i]) || s->weight[i] == 0) continue;
        reached += s->weight[i];
        last = i;
        if (reached > u * total) break;
    }
    return (int32_t)last;
}
