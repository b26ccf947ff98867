/* timer.h: at every moment one range has the clock, so the ranges add up to the total exactly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "parallel/timer.h"

static int64_t clock_ns;

static int64_t told(void) {
    return clock_ns;
}

static struct timer fresh(void) {
    struct timer t;
    timer_start(&t);
    t.now = told;
    t.since_ns = clock_ns = 1000;
    return t;
}

/* Something that takes this long, in this range. */
static void spend(struct timer *t, enum range r, int64_t ns) {
    timer_enter(t, r);
    clock_ns += ns;
    timer_leave(t);
}

static void inner_takes_from_outer(void **state) {
    (void)state;
    struct timer t = fresh();
    clock_ns += 3;
    timer_enter(&t, RANGE_GRADIENTS);
    clock_ns += 10;
    spend(&t, RANGE_DATA, 7);
    clock_ns += 2;
    timer_leave(&t);
    clock_ns += 1;
    assert_int_equal(timer_total_ns(&t), 23);
    assert_int_equal(t.spent_ns[RANGE_GRADIENTS], 12);
    assert_int_equal(t.spent_ns[RANGE_DATA], 7);
    assert_int_equal(t.spent_ns[RANGE_OTHER], 4);
    assert_int_equal(t.calls[RANGE_DATA], 1);
}

static void waits_of_a_pass_are_exchanges(void **state) {
    (void)state;
    struct timer t = fresh();
    timer_enter(&t, RANGE_FORWARD);
    clock_ns += 5;
    timer_wait(&t);
    clock_ns += 4;
    timer_waited(&t);
    timer_leave(&t);
    timer_enter(&t, RANGE_GRADIENTS);
    timer_wait(&t);
    clock_ns += 6;
    timer_waited(&t);
    timer_leave(&t);
    assert_int_equal(timer_total_ns(&t), 15);
    assert_int_equal(t.spent_ns[RANGE_FORWARD], 5);
    assert_int_equal(t.spent_ns[RANGE_EXCHANGE], 4);
    assert_int_equal(t.calls[RANGE_EXCHANGE], 1);
    assert_int_equal(t.spent_ns[RANGE_GRADIENTS], 6);
    assert_int_equal(t.waited_ns[RANGE_GRADIENTS], 6);
    assert_int_equal(timer_waited_ns(&t), 10);
}

static void validation_keeps_what_is_inside(void **state) {
    (void)state;
    struct timer t = fresh();
    timer_enter(&t, RANGE_VALIDATION);
    spend(&t, RANGE_FORWARD, 9);
    timer_wait(&t);
    clock_ns += 2;
    timer_waited(&t);
    timer_leave(&t);
    assert_int_equal(timer_total_ns(&t), 11);
    assert_int_equal(t.spent_ns[RANGE_VALIDATION], 11);
    assert_int_equal(t.calls[RANGE_FORWARD], 0);
    assert_int_equal(t.waited_ns[RANGE_VALIDATION], 2);
}

/* Any nesting, on the real clock: nothing is lost, nothing counted twice. */
static void adds_up(void **state) {
    (void)state;
    struct timer t;
    timer_start(&t);
    int64_t began = t.since_ns;
    uint64_t seed = 7;
    for (int i = 0; i < 20000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (t.depth < 10 && (seed >> 33) % 2)
            timer_enter(&t, (enum range)((seed >> 40) % N_RANGES));
        else if (t.depth > 0) timer_leave(&t);
        timer_wait(&t);
        timer_waited(&t);
    }
    int64_t total = timer_total_ns(&t);
    assert_int_equal(total, t.since_ns - began);
    assert_true(timer_waited_ns(&t) <= total);
}

static void nobody_counts(void **state) {
    (void)state;
    timer_enter(NULL, RANGE_FORWARD);
    timer_wait(NULL);
    timer_waited(NULL);
    timer_leave(NULL);
    for (int r = 0; r < N_RANGES; r++) assert_non_null(range_name((enum range)r));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inner_takes_from_outer),
        cmocka_unit_test(waits_of_a_pass_are_exchanges),
        cmocka_unit_test(validation_keeps_what_is_inside),
        cmocka_unit_test(adds_up),
        cmocka_unit_test(nobody_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
