/* mesh.h: all shapes of up to 64 ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/mistakes.h"
#include "kernels/die.h"
#include "parallel/mesh.h"

enum { MOST = 64 };

/* Calls f with every shape of n ranks, both factorings. Returns how many. */
static int each_shape(int n, void (*f)(const struct mesh_shape *s)) {
    int shapes = 0;
    for (int p = 1; p <= n; p++)
        for (int d = 1; n % p == 0 && d <= n / p; d++)
            for (int c = 1; n / p % d == 0 && c <= n / p / d; c++) {
                if (n / p / d % c) continue;
                int stage = n / p;
                for (int e = 1; e <= stage; e++)
                    for (int y = 1; stage % e == 0 && y <= stage / e; y++) {
                        if (stage / e % y) continue;
                        struct mesh_shape s = {p, d, c, n / p / d / c, stage / e / y, e, y};
                        f(&s);
                        shapes++;
                    }
            }
    return shapes;
}

static void check_coords(const struct mesh_shape *s) {
    int n = mesh_ranks(s), rank = 0;
    assert_int_equal(n, s->pipeline * s->expert_data * s->expert * s->expert_tensor);
    /* The order is written out here a second time: later axes run faster. */
    for (int p = 0; p < s->pipeline; p++)
        for (int d = 0; d < s->data; d++)
            for (int c = 0; c < s->context; c++)
                for (int t = 0; t < s->tensor; t++, rank++) {
                    struct mesh_coords at = mesh_coords(s, rank);
                    assert_true(at.pipeline == p && at.data == d && at.context == c &&
                                at.tensor == t);
                    assert_int_equal(mesh_rank(s, p, d, c, t), rank);
                }
    assert_int_equal(rank, n);
    rank = 0;
    for (int p = 0; p < s->pipeline; p++)
        for (int x = 0; x < s->expert_data; x++)
            for (int e = 0; e < s->expert; e++)
                for (int y = 0; y < s->expert_tensor; y++, rank++) {
                    struct mesh_coords at = mesh_coords(s, rank);
                    assert_true(at.pipeline == p && at.expert_data == x && at.expert == e &&
                                at.expert_tensor == y);
                    assert_int_equal(mesh_rank_expert(s, p, x, e, y), rank);
                }
}

/* Groups partition the ranks: everyone is in its own, and all its members name the same ones in the
 * same order. */
static void check_partition(const struct mesh_shape *s, int axis, int share) {
    static int of[MOST][MOST];
    int n = mesh_ranks(s), size = axis < MESH_AXES ? mesh_extent(s, axis) : s->data * s->context;
    if (share) size = share;
    for (int r = 0; r < n; r++) {
        int got = share              ? mesh_share_members(s, r, axis, share, of[r])
                  : axis < MESH_AXES ? mesh_members(s, r, axis, of[r])
                                     : mesh_replica_members(s, r, of[r]);
        assert_int_equal(got, size);
        int own = 0;
        for (int i = 0; i < size; i++) {
            assert_in_range(of[r][i], 0, n - 1);
            assert_true(i == 0 || of[r][i] > of[r][i - 1]);
            own += of[r][i] == r;
        }
        assert_int_equal(own, 1);
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < size; i++)
            assert_memory_equal(of[of[r][i]], of[r], (size_t)size * sizeof(int));
}

/* The members along an axis depend on its own factoring alone: each is gone through once. */
static void check_groups(const struct mesh_shape *s) {
    static const enum mesh_axis dense[] = {MESH_PIPELINE, MESH_DATA, MESH_CONTEXT, MESH_TENSOR};
    static const enum mesh_axis experts[] = {MESH_PIPELINE, MESH_EXPERT_DATA, MESH_EXPERT,
                                             MESH_EXPERT_TENSOR};
    int n = mesh_ranks(s), members[MOST];
    bool plain_dense = s->context == 1 && s->tensor == 1,
         plain_experts = s->expert == 1 && s->expert_tensor == 1;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        int extent = mesh_extent(s, axis);
        if (axis < MESH_EXPERT_DATA ? !plain_experts : !plain_dense) continue;
        check_partition(s, axis, 0);
        for (int share = 1; share <= extent; share++)
            if (extent % share == 0) check_partition(s, axis, share);
        for (int r = 0; r < n; r++) {
            struct mesh_coords own = mesh_coords(s, r);
            int at = mesh_coordinate(&own, axis);
            mesh_members(s, r, axis, members);
            assert_int_equal(members[at], r);
            const enum mesh_axis *factoring = axis < MESH_EXPERT_DATA ? dense : experts;
            for (int i = 0; i < extent; i++) {
                struct mesh_coords c = mesh_coords(s, members[i]);
                for (int k = 0; k < 4; k++)
                    assert_int_equal(
                        mesh_coordinate(&c, factoring[k]),
                        (int)factoring[k] == axis ? i : mesh_coordinate(&own, factoring[k]));
            }
            for (int share = 1; share <= extent; share++) {
                if (extent % share) continue;
                int few[MOST];
                mesh_share_members(s, r, axis, share, few);
                assert_memory_equal(few, members + at / share * share, (size_t)share * sizeof *few);
            }
        }
    }
    if (!plain_experts) return;
    check_partition(s, MESH_AXES, 0);
    for (int r = 0; r < n; r++) {
        struct mesh_coords own = mesh_coords(s, r);
        int k = mesh_replica_members(s, r, members);
        for (int i = 0; i < k; i++) {
            struct mesh_coords c = mesh_coords(s, members[i]);
            assert_true(c.pipeline == own.pipeline && c.tensor == own.tensor);
            assert_int_equal(c.data * s->context + c.context, i);
        }
    }
}

static void test_coords(void **state) {
    (void)state;
    int shapes = 0;
    for (int n = 1; n <= MOST; n++) shapes += each_shape(n, check_coords);
    print_message("%d shapes\n", shapes);
}

static void test_groups(void **state) {
    (void)state;
    for (int n = 1; n <= MOST; n++) each_shape(n, check_groups);
}

static void test_part_begin(void **state) {
    (void)state;
    for (int64_t w = 0; w <= 200; w++)
        for (int n = 1; n <= 16; n++)
            for (int64_t unit = 1; unit <= 32; unit++) {
                assert_int_equal(part_begin(w, n, 0, unit), 0);
                assert_int_equal(part_begin(w, n, n, unit), w);
                for (int r = 0; r < n; r++) {
                    int64_t from = part_begin(w, n, r, unit), to = part_begin(w, n, r + 1, unit);
                    assert_true(from <= to && from % unit == 0);
                    assert_true((to - from) / unit <= w / unit / n + 1);
                    if (unit == 1) assert_int_equal(from, r * w / n);
                }
            }
    assert_int_equal(part_begin((int64_t)1 << 50, 4096, 4095, 16), ((int64_t)1 << 38) * 4095);
}

static void test_part_heads(void **state) {
    (void)state;
    for (int64_t count = -1; count <= 64; count++)
        for (int n = 1; n <= 64; n++) {
            int64_t holders[64] = {0}, first, held, last = 0;
            int share;
            bool legal = count > 0 && (count % n == 0 || n % count == 0);
            for (int r = 0; r < n; r++) {
                assert_int_equal(part_heads(count, n, r, &first, &held, &share), legal ? 0 : -1);
                if (!legal) continue;
                assert_int_equal(share, count < n ? n / count : 1);
                assert_true(first >= last && first + held <= count);
                last = first;
                for (int64_t h = first; h < first + held; h++) holders[h]++;
            }
            for (int64_t h = 0; legal && h < count; h++) assert_int_equal(holders[h], share);
        }
}

/* Completes a shape given as pipeline, data, context, tensor, expert, expert_tensor, and returns
 * what was said. */
static const char *told(struct mesh_shape s, int ranks) {
    static char text[512];
    struct mistakes m = {0};
    int result = mesh_complete(&s, ranks, &m);
    assert_int_equal(result, m.n ? -1 : 0);
    snprintf(text, sizeof text, "%s", m.n ? m.text[0] : "");
    if (!m.n)
        snprintf(text, sizeof text, "%d,%d,%d,%d %d,%d,%d", s.pipeline, s.data, s.context, s.tensor,
                 s.expert_data, s.expert, s.expert_tensor);
    mistakes_free(&m);
    return text;
}

#define SHAPE(p, d, c, t, e, y)                                                                    \
    (struct mesh_shape) {                                                                          \
        .pipeline = p, .data = d, .context = c, .tensor = t, .expert = e, .expert_tensor = y       \
    }

static void test_complete(void **state) {
    (void)state;
    assert_string_equal(told(SHAPE(1, 0, 1, 1, 1, 0), 1), "1,1,1,1 1,1,1");
    assert_string_equal(told(SHAPE(1, 0, 1, 2, 1, 0), 8), "1,4,1,2 4,1,2");
    assert_string_equal(told(SHAPE(2, 0, 1, 2, 4, 0), 16), "2,4,1,2 2,4,1");
    assert_string_equal(told(SHAPE(2, 2, 2, 2, 2, 2), 16), "2,2,2,2 2,2,2");
    assert_string_equal(told(SHAPE(1, 0, 1, 4, 1, 0), 0), "1,1,1,4 1,1,4");
    assert_string_equal(told(SHAPE(1, 3, 1, 4, 1, 0), 0), "1,3,1,4 3,1,4");
    assert_string_equal(
        told(SHAPE(1, 0, 1, 3, 1, 0), 4),
        "parallel.tensor: 3 does not divide the 4 ranks that were started; 1, 2 or 4 do");
    assert_string_equal(
        told(SHAPE(1, 0, 1, 5, 1, 0), 96),
        "parallel.tensor: 5 does not divide the 96 ranks that were started; 3, 4, 6 or 8 do");
    assert_string_equal(
        told(SHAPE(2, 0, 1, 3, 1, 0), 8),
        "parallel.tensor: 3 does not divide the 8 ranks that were started; 1, 2 or 4 do");
    assert_string_equal(
        told(SHAPE(1, 0, 1, 2, 1, 0), 1),
        "parallel.tensor: 2 needs 2 ranks or a multiple, 1 was started (mpirun -n 2)");
    assert_string_equal(
        told(SHAPE(1, 4, 1, 2, 1, 0), 4),
        "4 ranks were started but tensor 2 x data 4 needs 8 (mpirun -n 8, or parallel.data: 2)");
    assert_string_equal(told(SHAPE(1, 4, 1, 3, 1, 0), 4),
                        "4 ranks were started but tensor 3 x data 4 needs 12 (mpirun -n 12)");
    assert_string_equal(
        told(SHAPE(1, 1, 1, 1, 1, 0), 3),
        "3 ranks were started but data 1 needs 1 (mpirun -n 1, or parallel.data: 3)");
    assert_string_equal(
        told(SHAPE(4, 0, 1, 4, 1, 0), 8),
        "8 ranks were started but pipeline 4 x tensor 4 needs a multiple of 16 (mpirun -n 16, or "
        "parallel.tensor: 1 or 2)");
    assert_string_equal(told(SHAPE(1, 0, 1, 2, 3, 0), 4),
                        "parallel.expert: 3 does not divide the 4 ranks of a pipeline stage "
                        "(tensor 2 x data 2); 1, 2 "
                        "or 4 do");
    assert_string_equal(told(SHAPE(1, 0, 1, 2, 2, 3), 4),
                        "parallel.expert_tensor: 3 x expert 2 does not divide the 4 ranks of a "
                        "pipeline stage (tensor "
                        "2 x data 2); 1 or 2 do");
    assert_string_equal(told(SHAPE(1, 0, 1, 0, 1, 0), 4), "parallel.tensor: 0 is less than 1");
    assert_string_equal(told(SHAPE(1, -2, 1, 1, 1, 0), 4), "parallel.data: -2 is less than 0");
    assert_string_equal(told(SHAPE(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1, 0), 4),
                        "parallel: pipeline 1048576 x tensor 1048576 x context 1048576 x data "
                        "1048576 is more ranks "
                        "than can be counted");
    /* Whatever is asked, either a legal mesh of all ranks comes out or something is said. */
    for (int n = 1; n <= 12; n++)
        for (int k = 0; k < 5 * 5 * 5 * 5 * 6 * 5; k++) {
            struct mesh_shape s = SHAPE(1 + k % 5, k / 5 % 5, 1 + k / 25 % 5, 1 + k / 125 % 5,
                                        1 + k / 625 % 6, k / 3750 % 5);
            struct mistakes m = {0};
            if (mesh_complete(&s, n, &m) == 0) {
                assert_int_equal(m.n, 0);
                assert_int_equal(mesh_ranks(&s), n);
                assert_int_equal(s.expert_data * s.expert * s.expert_tensor, n / s.pipeline);
            } else {
                assert_true(m.n > 0);
            }
            mistakes_free(&m);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coords),     cmocka_unit_test(test_groups),
        cmocka_unit_test(test_part_begin), cmocka_unit_test(test_part_heads),
        cmocka_unit_test(test_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
