/* A store of schedules gives what schedule_build makes, once for all wishes that are the same, and
 * tells wishes apart by every number in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "parallel/schedule_store.h"

enum { STAGES = 6, TABLES = 9 };

/* A wish with costs and sizes of its own. */
struct wish {
    int64_t table[TABLES][STAGES];
    struct schedule_costs costs;
    struct schedule_sizes sizes;
    struct schedule_wish like, wish;
};

static void make(struct wish *w) {
    memset(w, 0, sizeof *w);
    for (int i = 0; i < TABLES * STAGES; i++) w->table[i / STAGES][i % STAGES] = 10 + i * 7 % 5;
    w->costs = (struct schedule_costs){w->table[0], w->table[1], w->table[2], 3};
    w->sizes = (struct schedule_sizes){.kept = w->table[3], .between = w->table[4], .stream = 2};
    for (int i = 0; i < N_COMPUTING; i++) w->sizes.rise[i] = w->table[5 + i];
    w->like = (struct schedule_wish){.shape = {SCHEDULE_1F1B, 3, 1, 0}, .sizes = &w->sizes};
    w->wish = (struct schedule_wish){
        .shape = {SCHEDULE_ZBV, 3, 2, 8}, .costs = &w->costs, .sizes = &w->sizes, .like = &w->like};
}

static void assert_same(const struct schedule *a, const struct schedule *b) {
    assert_memory_equal(&a->shape, &b->shape, sizeof a->shape);
    for (int r = 0; r < a->shape.ranks; r++) {
        assert_int_equal(a->rank[r].n, b->rank[r].n);
        assert_int_equal(a->rank[r].slots, b->rank[r].slots);
        assert_memory_equal(a->rank[r].action, b->rank[r].action,
                            (size_t)a->rank[r].n * sizeof *a->rank[r].action);
    }
}

static void once_for_all(void **state) {
    (void)state;
    struct schedule_store store = {0};
    struct schedule built;
    struct wish one, other;
    make(&one);
    make(&other);
    const struct schedule *first = schedule_store_get(&store, &one.wish);
    schedule_build(&built, &one.wish);
    assert_same(first, &built);
    schedule_free(&built);

    /* Each number in turn is another, and then the one it was. */
    int *shape[] = {&other.wish.shape.micro_batches, &other.wish.group, &other.like.shape.ranks};
    int64_t *number[TABLES * STAGES + 2] = {&other.costs.transfer, &other.sizes.stream};
    for (int i = 0; i < TABLES * STAGES; i++) number[2 + i] = &other.table[i / STAGES][i % STAGES];
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        ++*shape[i];
        const struct schedule *s = schedule_store_get(&store, &other.wish);
        assert_ptr_not_equal(s, first);
        assert_ptr_equal(s, schedule_store_get(&store, &other.wish));
        --*shape[i];
    }
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        ++*number[i];
        assert_ptr_not_equal(schedule_store_get(&store, &other.wish), first);
        --*number[i];
    }
    other.wish.sizes = NULL;
    other.wish.like = NULL;
    assert_ptr_not_equal(schedule_store_get(&store, &other.wish), first);
    other.wish.costs = NULL;
    const struct schedule *plain = schedule_store_get(&store, &other.wish);
    schedule_build(&built, &(struct schedule_wish){.shape = {SCHEDULE_ZBV, 3, 2, 8}});
    assert_same(plain, &built);
    schedule_free(&built);
    make(&other);
    assert_ptr_equal(schedule_store_get(&store, &other.wish), first);
    schedule_store_free(&store);
    assert_null(store.first);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(once_for_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
