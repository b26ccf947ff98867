/* Arenas: the same addresses on every device and in every step, the best fit, and that overruns,
 * leaks and second returns are found where they happen. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "parallel/expert_parallel.h"
#include "parallel/tensor_parallel.h"
#include "tests/taping.h"

enum { STEPS = 3000, HELD = 60 };

struct history {
    size_t at[STEPS], top[STEPS], peak, live;
};

/* Where a piece should come to lie: in the smallest gap between those in use that is large enough,
 * of equal ones the lowest; else behind all. Looked for in every gap there is. */
static size_t best_place(struct piece *const *piece, const size_t *from, const size_t *size,
                         size_t wanted) {
    size_t best = 0, least = SIZE_MAX, top = 0;
    for (int k = -1; k < HELD; k++) {
        if (k >= 0 && !piece[k]) continue;
        const size_t begin = k < 0 ? 0 : from[k] + size[k];
        size_t next = SIZE_MAX;
        if (begin > top) top = begin;
        for (int j = 0; j < HELD; j++)
            if (piece[j] && from[j] >= begin && from[j] < next) next = from[j];
        const size_t gap = next - begin;
        if (next == SIZE_MAX || gap < wanted || gap > least || (gap == least && begin > best))
            continue;
        best = begin;
        least = gap;
    }
    return least < SIZE_MAX ? best : top;
}

/* Takes and gives at random, the same on every device. Returns with nothing in use. */
static void take_and_give(struct device *d, struct history *h) {
    struct arena a;
    struct piece *piece[HELD] = {0};
    size_t from[HELD] = {0}, size[HELD] = {0};
    uint64_t seed = 7;
    size_t spread = d->debug && !d->dry ? 2 : 1;
    arena_init(&a, "history", d);
    for (int i = 0; i < STEPS; i++) {
        int k = (int)((random_number(&seed) + 1) / 2 * HELD) % HELD;
        h->at[i] = 0;
        if (piece[k]) {
            arena_give(&a, piece[k]);
            piece[k] = NULL;
        } else {
            void *p;
            size_t bytes = (size_t)(exp(5 * (random_number(&seed) + 1)) - 1);
            const size_t want = best_place(piece, from, size, arena_round(bytes));
            piece[k] = arena_take(&a, bytes, "piece", &p);
            h->at[i] = from[k] = (size_t)((char *)p - a.base) / spread;
            size[k] = arena_round(bytes);
            assert_int_equal(from[k], want);
            assert_true(size[k] >= bytes && size[k] % 64 == 0 && size[k] > 0);
            assert_int_equal(from[k] % 64, 0);
            for (int j = 0; j < HELD; j++)
                if (j != k && piece[j])
                    assert_true(from[j] + size[j] <= from[k] || from[k] + size[k] <= from[j]);
        }
        h->top[i] = a.top;
        size_t end = 0, live = 0;
        for (int j = 0; j < HELD; j++)
            if (piece[j]) end = from[j] + size[j] > end ? from[j] + size[j] : end, live += size[j];
        assert_int_equal(a.top, end);
        assert_int_equal(a.live, live);
        assert_true(a.peak >= end);
    }
    h->peak = a.peak;
    h->live = a.live;
    for (int k = 0; k < HELD; k++)
        if (piece[k]) arena_give(&a, piece[k]);
    arena_check_empty(&a);
    assert_int_equal(a.top, 0);
    assert_int_equal(a.live, 0);
    assert_null(a.first);
    arena_free_all(&a);
}

static void same_addresses(void **state) {
    (void)state;
    static struct history h[4];
    for (int i = 0; i < 4; i++) {
        struct device d;
        if (i < 2) device_cpu(&d, 1, i == 1);
        else device_dry(&d);
        if (i == 3) d.debug = true;
        take_and_give(&d, &h[i]);
        assert_memory_equal(&h[i], &h[0], sizeof h[0]);
    }
}

/* The smallest hole that is large enough, of equal ones the lowest; neighbours become one hole. */
static void best_fit(void **state) {
    (void)state;
    static const size_t bytes[] = {256, 64, 128, 64, 128, 64, 192, 64};
    struct device d;
    struct arena a;
    struct piece *piece[8];
    void *at[8], *p;
    device_dry(&d);
    arena_init(&a, "holes", &d);
    for (int i = 0; i < 8; i++) piece[i] = arena_take(&a, bytes[i], "piece", &at[i]);
    for (int i = 0; i < 8; i += 2) arena_give(&a, piece[i]);
    arena_take(&a, 100, "first of two equal holes", &p);
    assert_ptr_equal(p, at[2]);
    arena_take(&a, 128, "second", &p);
    assert_ptr_equal(p, at[4]);
    arena_take(&a, 65, "next larger", &p);
    assert_ptr_equal(p, at[6]);
    arena_take(&a, 64, "what was left of it", &p);
    assert_ptr_equal(p, (char *)at[6] + 128);
    arena_give(&a, piece[1]);
    arena_take(&a, 320, "two holes in one", &p);
    assert_ptr_equal(p, at[0]);
    assert_int_equal(a.peak, 960);
    arena_free_all(&a);
}

struct overrun {
    size_t bytes, at;
};

static void overrun(void *with) {
    const struct overrun *o = with;
    struct device d;
    struct arena a;
    void *p;
    device_cpu(&d, 1, true);
    arena_init(&a, "small", &d);
    struct piece *piece = arena_take(&a, o->bytes, "overrun piece", &p);
    ((char *)device_host(&d, p))[o->at] = 1;
    arena_give(&a, piece);
}

static void give_twice(void *with) {
    (void)with;
    struct device d;
    struct arena a;
    void *p;
    device_cpu(&d, 1, false);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 64, "given twice", &p);
    arena_take(&a, 64, "other", &p);
    arena_give(&a, one);
    arena_give(&a, one);
}

static void leak(void *with) {
    (void)with;
    struct device d;
    struct arena a;
    void *p;
    device_dry(&d);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 64, "given back", &p);
    arena_take(&a, 64, "leaked piece", &p);
    arena_give(&a, one);
    arena_check_empty(&a);
}

static void arena_mistakes(void **state) {
    (void)state;
    static struct overrun past[] = {{128, 128}, {128, 200}, {64, 64}, {1 << 16, (1 << 16) + 5}};
    for (int i = 0; i < 4; i++) refuses(overrun, &past[i], "overrun piece");
    struct overrun inside = {128, 127};
    assert_false(ending_of(overrun, &inside).refused);
    refuses(give_twice, NULL, "given twice");
    refuses(leak, NULL, "leaked piece");
}

/* On a debug device fresh memory and memory given back are NaN. */
static void poisoned(void **state) {
    (void)state;
    struct device d;
    struct arena a;
    void *p, *q;
    device_cpu(&d, 1, true);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 800, "one", &p);
    arena_take(&a, 64, "two", &q);
    double *v = device_host(&d, p);
    for (int i = 0; i < 100; i++) {
        assert_true(isnan(v[i]) && isnan(((float *)v)[2 * i + 1]));
        v[i] = 1;
    }
    arena_give(&a, one);
    for (int i = 0; i < 100; i++) assert_true(isnan(v[i]));
    arena_free_all(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_addresses),
        cmocka_unit_test(best_fit),
        cmocka_unit_test(arena_mistakes),
        cmocka_unit_test(poisoned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
