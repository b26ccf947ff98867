/* Memory of a pipeline's activations. What a schedule is said to hold, rank by rank, is what the
 * executor then holds at most: to the byte where the routing of experts is no matter of chance. And
 * the schedules that put weight halves off hold no more than 1f1b of the same ranks, if their order
 * alone does not; at equal costs they do not, and still idle the published share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "parallel/schedule_bytes.h"
#include "parallel/schedule_time.h"
#include "tests/lab.h"

enum { RANKS = 8 };
static const char text[] = LAB_PIPELINE_MODEL
                           "run: {threads: 1}\n"
                           "train: {sequence_length: 96}\n";

static const char equal_costs[] = "----------------"; /* in products: two each */

/* What the executor holds at most as that rank of the pipeline; *said: what the schedule says. */
static int64_t held_by(const char *pattern, enum schedule_kind kind, int ranks, int rank,
                       int micro_batches, const char *more, int64_t *said, double *idle) {
    bool equal = !strcmp(pattern, equal_costs);
    struct lab l;
    struct host_batch b[8 * RANKS];
    struct schedule_times times;
    int64_t most[RANKS];
    char *over[] = {die_format("model.hybrid_override_pattern=%s", pattern),
                    die_format("parallel.pipeline=%d", ranks),
                    die_format("parallel.schedule=%s", schedule_kind_name(kind)),
                    die_format("%s", *more ? more : "memory.recompute=none"),
                    die_format("parallel.virtual_stages=%d",
                               kind == SCHEDULE_INTERLEAVED || kind == SCHEDULE_ZBV ? 2 : 1)};
    lab_read_for(&l, text, ranks, 5, over);
    for (int i = 0; i < 5; i++) free(over[i]);
    comm_init_dry(&l.comm, ranks, rank);
    assert_int_equal(engine_open(&l.e, &l.deck, &l.config, &l.m), 0);
    assert_int_equal(engine_init(&l.e, &l.comm, &l.shape, true, true, false, &l.m), 0);
    for (int i = 0; i < micro_batches; i++) b[i] = host_batch_shape(&l.e, 1, 96);
    for (int i = 0; equal && i < l.e.stages.n; i++)
        l.e.stages.forward[i] = l.e.stages.input[i] = l.e.stages.weight[i] =
            1000 * (staging_stage(&l.e.stages, i).end - staging_stage(&l.e.stages, i).first);
    l.e.work.live_most = l.e.work.live;
    pipeline_run(
        &l.e.pipeline,
        &(struct pipeline_pass){.what = PASS_GRADIENTS, .n = micro_batches, .batch = b, .seed = 1});
    int64_t held = (int64_t)l.e.work.live_most;
    schedule_bytes(l.e.pipeline.schedule, &l.e.stages.sizes, most);
    schedule_time(&times, l.e.pipeline.schedule, &l.e.stages.costs, NULL);
    *said = most[rank];
    *idle = times.idle;
    schedule_times_free(&times);
    lab_close(&l);
    return held;
}

/* Of all ranks the most. */
static int64_t most_of(const char *pattern, enum schedule_kind kind, int ranks, int micro_batches,
                       const char *more, double *idle) {
    int64_t most = 0;
    for (int r = 0; r < ranks; r++) {
        int64_t said, held = held_by(pattern, kind, ranks, r, micro_batches, more, &said, idle);
        if (held != said)
            fail_msg("%s, %s, %s, %d ranks, %d micro-batches: rank %d holds %ld bytes, is said to "
                     "hold %ld",
                     schedule_kind_name(kind), pattern, more, ranks, micro_batches, r, (long)held,
                     (long)said);
        if (held > most) most = held;
    }
    return most;
}

static void test_said(void **state) {
    (void)state;
    static const char *const patterns[] = {"M-*M-*M-*M-*M-*-", equal_costs, "*-M"};
    static const char *const more[] = {"", "memory.recompute=full", "memory.recompute=selective",
                                       "precision.recipe=bf16"};
    double idle;
    for (int p = 0; p < 3; p++)
        for (int k = 0; k < N_SCHEDULE_KINDS; k++)
            for (int m = 0; m < 4; m++)
                for (int ranks = 2; ranks <= 4; ranks++)
                    most_of(patterns[p], k, ranks, 1 + (p + k + m) % 9, more[m], &idle);
}

static void test_no_more(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= RANKS; ranks *= 2)
        for (int of_a_stage = 2; of_a_stage <= 8; of_a_stage *= 2) {
            double of_plain, of_zero, of_zbv;
            int m = ranks * of_a_stage;
            int64_t plain = most_of(equal_costs, SCHEDULE_1F1B, ranks, m, "", &of_plain);
            int64_t zero = most_of(equal_costs, SCHEDULE_ZERO_BUBBLE, ranks, m, "", &of_zero);
            int64_t zbv = most_of(equal_costs, SCHEDULE_ZBV, ranks, m, "", &of_zbv);
            print_message("%d ranks, %d micro-batches: 1f1b holds %ld bytes, zero-bubble %ld, zbv "
                          "%ld; idle shares of 1f1b's: %.3f, %.3f\n",
                          ranks, m, (long)plain, (long)zero, (long)zbv, of_zero / of_plain,
                          of_zbv / of_plain);
            assert_true(zero <= plain && zbv <= plain);
            assert_true(of_zero <= 0.45 * of_plain && of_zbv <= 0.3 * of_plain);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_said),
        cmocka_unit_test(test_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
