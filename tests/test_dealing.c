/* dealing.h: ranks whose exchanges of tokens meet are dealt as many
 * micro-batches, on every mesh of 24 ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "src/dealing.h"
#include "src/deck.h"
#include "src/engine.h"

enum { RANKS = 24, MOST_ROWS = 7, LENGTH = 3 };

static void check(struct engine *e, const struct reference *r) {
    const int together = e->shape.expert * e->shape.expert_tensor;
    int n[RANKS];
    int64_t rows = 0;
    for (int rank = 0; rank < RANKS; rank++) {
        e->parallel.at = mesh_coords(&e->shape, rank);
        struct dealt w = dealing_make(r, e);
        n[rank] = w.n;
        assert_true(w.n * e->deck->train.micro_batch >= w.rows);
        rows += e->parallel.at.tensor + e->parallel.at.context ? 0 : w.rows;
        if (rank % together) assert_int_equal(n[rank], n[rank - 1]);
        dealing_free(&w);
    }
    assert_int_equal(rows, r->rows);
}

static void test_as_many(void **state) {
    (void)state;
    int64_t ids[MOST_ROWS * LENGTH] = {0}, mask[MOST_ROWS * LENGTH];
    struct reference r = {.length = LENGTH, .ids = ids, .labels = ids, .mask = mask};
    struct engine *e = die_alloc(sizeof *e);
    struct deck *d = die_alloc(sizeof *d);
    int shapes = 0;
    for (int i = 0; i < MOST_ROWS * LENGTH; i++) mask[i] = 1;
    e->deck = d;
    for (int data = 1; data <= RANKS; data++)
        for (int context = 1; context <= RANKS / data; context++)
            for (int expert = 1; expert <= RANKS; expert++)
                for (int part = 1; part <= RANKS / expert; part++) {
                    const int tensor = RANKS / data / context;
                    if (data * context * tensor != RANKS || RANKS % (expert * part)) continue;
                    e->shape = (struct mesh_shape){
                        1, data, context, tensor, RANKS / expert / part, expert, part};
                    d->train.micro_batch = 1 + shapes++ % 2;
                    e->parallel.shape = e->shape;
                    for (r.rows = 1; r.rows <= MOST_ROWS; r.rows++) check(e, &r);
                }
    print_message("%d meshes\n", shapes);
    free(d);
    free(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
