/* Every row of ops.def through the harness (tests/harness.h): sizes that are odd, prime, one and
 * zero, views, documents, operands present and absent; and larger ones, where threads share the
 * work.
 *
 *     test_ops          the tests
 *     test_ops bench [bf16]    the speed of every row
 *     test_ops lengths [bf16]  the cost of a token in short and long sequences */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/harness.h"
#include "tests/operands.h"

/* clang-format off */
static const struct op_case cases[] = {
    CASE(add, .n = 0),
    CASE(add, .n = 37),
    LARGE(add, .n = 40001),
    CASE(add_scaled, .n = 0, .s = 2),
    CASE(add_scaled, .n = 19, .s = -0.75),
    LARGE(add_scaled, .n = 40003, .s = 1.25),
    CASE(scale, .n = 0, .s = 1),
    CASE(scale, .n = 23, .s = 0.5),
    LARGE(scale, .n = 40009, .s = -3),
    CASE(widen, .n = 0),
    CASE(widen, .n = 37),
    LARGE(widen, .n = 40001),
    CASE(narrow, .n = 0),
    CASE(narrow, .n = 37),
    LARGE(narrow, .n = 40001),
    CASE(fill, .T = 0, .W = 3, .ld = 5),
    CASE(fill, .T = 4, .W = 0, .ld = 5),
    CASE(fill, .T = 4, .W = 3, .ld = 5, .value = -1.5),
    LARGE(fill, .T = 201, .W = 101, .ld = 103, .value = 7),
    CASE(copy, .T = 0, .W = 3, .ldx = 3, .ldy = 3),
    CASE(copy, .T = 5, .W = 0, .ldx = 1, .ldy = 1),
    CASE(copy, .T = 5, .W = 7, .ldx = 9, .ldy = 11),
    LARGE(copy, .T = 211, .W = 97, .ldx = 97, .ldy = 100),
    LARGE(copy, .T = 211, .W = 97, .ldx = 97, .ldy = 97),
    LARGE(copy, .T = 1, .W = 40009, .ldx = 1, .ldy = 1),
    CASE(add_bias, .T = 0, .W = 5),
    CASE(add_bias, .T = 7, .W = 0),
    CASE(add_bias, .T = 6, .W = 67),
    LARGE(add_bias, .T = 131, .W = 301),
    CASE(embedding, .T = 0, .H = 3, .V = 4),
    CASE(embedding, .T = 5, .H = 3, .V = 0, .first = 2),
    CASE(embedding, .T = 11, .H = 5, .V = 4, .first = 3),
    LARGE(embedding, .T = 301, .H = 130, .V = 37, .first = 0),
    CASE(rms_norm, .T = 0, .H = 4, .eps = 1e-5),
    CASE(rms_norm, .T = 3, .H = 1, .eps = 0.5),
    CASE(rms_norm, .T = 5, .H = 71, .eps = 1e-2),
    LARGE(rms_norm, .T = 67, .H = 517, .eps = 1e-5),
    CASE(matmul, .M = 0, .N = 3, .K = 2, .lda = 2, .ldb = 3, .ldc = 3),
    CASE(matmul, .M = 3, .N = 0, .K = 2, .lda = 2, .ldb = 1, .ldc = 1),
    CASE(matmul, .M = 3, .N = 5, .K = 0, .lda = 1, .ldb = 5, .ldc = 7),
    CASE(matmul, .M = 1, .N = 1, .K = 1, .lda = 1, .ldb = 1, .ldc = 1),
    CASE(matmul, .M = 17, .N = 67, .K = 65, .lda = 66, .ldb = 70, .ldc = 69),
    CASE(matmul, .M = 5, .N = 7, .K = 11, .lda = 13, .ldb = 12, .ldc = 7, .tb = 1),
    CASE(matmul, .M = 5, .N = 7, .K = 11, .lda = 6, .ldb = 9, .ldc = 8, .ta = 1),
    CASE(matmul, .M = 5, .N = 7, .K = 3, .lda = 5, .ldb = 3, .ldc = 7, .ta = 1, .tb = 1),
    LARGE(matmul, .M = 1, .N = 701, .K = 509, .lda = 509, .ldb = 509, .ldc = 701, .tb = 1),
    LARGE(matmul, .M = 8, .N = 1031, .K = 515, .lda = 515, .ldb = 517, .ldc = 1031, .tb = 1),
    LARGE(matmul, .M = 11, .N = 403, .K = 2817, .lda = 2817, .ldb = 2817, .ldc = 405, .tb = 1),
    LARGE(matmul, .M = 8, .N = 403, .K = 1024, .lda = 1024, .ldb = 1024, .ldc = 403, .tb = 1),
    LARGE(matmul, .M = 3, .N = 311, .K = 129, .lda = 130, .ldb = 129, .ldc = 311, .tb = 1),
    LARGE(matmul, .M = 2, .N = 403, .K = 2816, .lda = 2816, .ldb = 2816, .ldc = 403, .tb = 1),
    LARGE(matmul, .M = 16, .N = 701, .K = 512, .lda = 512, .ldb = 512, .ldc = 701, .tb = 1),
    LARGE(matmul, .M = 257, .N = 311, .K = 129, .lda = 129, .ldb = 129, .ldc = 320, .tb = 1),
    LARGE(matmul, .M = 391, .N = 97, .K = 203, .lda = 210, .ldb = 97, .ldc = 97),
    LARGE(matmul, .M = 61, .N = 1031, .K = 199, .lda = 61, .ldb = 1031, .ldc = 1031, .ta = 1),
    LARGE(matmul, .M = 33, .N = 35, .K = 4099, .lda = 4099, .ldb = 4099, .ldc = 35, .tb = 1),
    LARGE(matmul, .M = 500, .N = 500, .K = 500, .lda = 500, .ldb = 500, .ldc = 500, .ta = 1, .tb = 1),
    CASE(matmul_weight, .M = 0, .N = 3, .K = 2, .lda = 2, .ldb = 3, .ldc = 3),
    CASE(matmul_weight, .M = 3, .N = 5, .K = 0, .lda = 3, .ldb = 5, .ldc = 7, .ta = 1),
    CASE(matmul_weight, .M = 17, .N = 67, .K = 65, .lda = 66, .ldb = 70, .ldc = 69),
    CASE(matmul_weight, .M = 5, .N = 7, .K = 11, .lda = 6, .ldb = 9, .ldc = 8, .ta = 1),
    LARGE(matmul_weight, .M = 257, .N = 311, .K = 129, .lda = 257, .ldb = 311, .ldc = 320, .ta = 1),
    LARGE(matmul_weight, .M = 97, .N = 203, .K = 391, .lda = 391, .ldb = 391, .ldc = 203, .tb = 1),
    CASE(grouped_matmul, .S = 0, .N = 3, .K = 2, .E = 2),
    CASE(grouped_matmul, .S = 0, .N = 3, .K = 2, .E = 0),
    CASE(grouped_matmul, .S = 9, .N = 5, .K = 0, .E = 2, .tb = 1),
    CASE(grouped_matmul, .S = 23, .N = 5, .K = 7, .E = 6),
    CASE(grouped_matmul, .S = 23, .N = 5, .K = 7, .E = 6, .tb = 1),
    LARGE(grouped_matmul, .S = 301, .N = 203, .K = 101, .E = 7, .tb = 1),
    LARGE(grouped_matmul, .S = 301, .N = 103, .K = 201, .E = 3),
    CASE(grouped_weight, .S = 0, .N = 3, .K = 2, .E = 2),
    CASE(grouped_weight, .S = 0, .N = 3, .K = 2, .E = 0),
    CASE(grouped_weight, .S = 23, .N = 5, .K = 7, .E = 6),
    LARGE(grouped_weight, .S = 301, .N = 203, .K = 101, .E = 7),
    CASE(relu2, .n = 0),
    CASE(relu2, .n = 41),
    LARGE(relu2, .n = 40007),
    CASE(conv, .B = 0, .L = 3, .C = 2, .K = 4, .ldx = 2),
    CASE(conv, .B = 2, .L = 0, .C = 3, .K = 4, .ldx = 3),
    CASE(conv, .B = 2, .L = 3, .C = 0, .K = 4, .ldx = 1),
    CASE(conv, .B = 2, .L = 1, .C = 5, .K = 4, .ldx = 6),
    CASE(conv, .B = 2, .L = 2, .C = 5, .K = 4, .ldx = 5),
    CASE(conv, .B = 2, .L = 13, .C = 5, .K = 4, .ldx = 7),
    CASE(conv, .B = 2, .L = 5, .C = 3, .K = 1, .ldx = 3),
    CASE(conv, .B = 1, .L = 9, .C = 67, .K = 6, .ldx = 67),
    WITHOUT("b db", conv, .B = 2, .L = 7, .C = 5, .K = 4, .ldx = 7),
    WITHOUT("state_in state_out dstate_out dstate_in", conv, .B = 2, .L = 7, .C = 5, .K = 4, .ldx = 5),
    WITHOUT("state_in", conv, .B = 2, .L = 2, .C = 5, .K = 4, .ldx = 5),
    LARGE(conv, .B = 2, .L = 61, .C = 203, .K = 4, .ldx = 300),
    LARGE(conv, .B = 13, .L = 1, .C = 259, .K = 4, .ldx = 261), /* one token, as in generation */
    LARGE(conv, .B = 5, .L = 1, .C = 83, .K = 6, .ldx = 83),
    LARGE(conv, .B = 9, .L = 1, .C = 259, .K = 1, .ldx = 259),
    LARGE_WITHOUT("state_in", conv, .B = 9, .L = 1, .C = 259, .K = 4, .ldx = 259),
    LARGE_WITHOUT("state_in state_out dstate_out dstate_in", conv, .B = 9, .L = 1, .C = 259, .K = 4, .ldx = 259),
    CASE(scan, .B = 0, .L = 3, .H = 2, .P = 3, .G = 1, .S = 4, .Q = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan, .B = 2, .L = 0, .H = 2, .P = 3, .G = 1, .S = 4, .Q = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan, .B = 2, .L = 3, .H = 0, .P = 3, .G = 1, .S = 4, .Q = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan, .B = 2, .L = 3, .H = 2, .P = 3, .G = 1, .S = 0, .Q = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan, .B = 1, .L = 1, .H = 1, .P = 1, .G = 1, .S = 1, .Q = 1, .lddt = 1, .dt_max = INFINITY),
    CASE(scan, .B = 2, .L = 11, .H = 6, .P = 3, .G = 3, .S = 5, .Q = 4, .lddt = 9, .dt_max = INFINITY),
    CASE(scan, .B = 2, .L = 11, .H = 4, .P = 2, .G = 1, .S = 3, .Q = 64, .lddt = 4, .dt_max = INFINITY),
    CASE(scan, .B = 1, .L = 8, .H = 2, .P = 3, .G = 2, .S = 4, .Q = 4, .lddt = 2, .dt_min = 0.1, .dt_max = 1.5),
    WITHOUT("state_in state_out dstate_in dstate_out", scan, .B = 2, .L = 7, .H = 2, .P = 3, .G = 1, .S = 4, .Q = 3,
            .lddt = 2, .dt_max = INFINITY),
    WITHOUT("states", scan, .B = 2, .L = 7, .H = 2, .P = 3, .G = 1, .S = 4, .Q = 3, .lddt = 2, .dt_max = INFINITY),
    LARGE(scan, .B = 2, .L = 67, .H = 6, .P = 24, .G = 3, .S = 40, .Q = 16, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan, .B = 1, .L = 9, .H = 2, .P = 13, .G = 1, .S = 1031, .Q = 8, .lddt = 2, .dt_max = INFINITY),
    /* Rows of L and states at Q that are no multiples of a block; many heads
     * in few groups; one of P, of S. */
    LARGE(scan, .B = 1, .L = 131, .H = 12, .P = 5, .G = 1, .S = 19, .Q = 50, .lddt = 17, .dt_max = INFINITY),
    LARGE(scan, .B = 1, .L = 99, .H = 9, .P = 17, .G = 3, .S = 33, .Q = 33, .lddt = 9, .dt_max = INFINITY),
    LARGE(scan, .B = 17, .L = 37, .H = 4, .P = 4, .G = 4, .S = 16, .Q = 100, .lddt = 4, .dt_max = INFINITY),
    LARGE(scan, .B = 2, .L = 65, .H = 6, .P = 1, .G = 2, .S = 64, .Q = 64, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan, .B = 2, .L = 65, .H = 6, .P = 70, .G = 2, .S = 1, .Q = 31, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan, .B = 1, .L = 40, .H = 2, .P = 129, .G = 1, .S = 130, .Q = 7, .lddt = 2, .dt_max = INFINITY),
    LARGE(scan, .B = 1, .L = 33, .H = 3, .P = 20, .G = 1, .S = 300, .Q = 32, .lddt = 3, .dt_max = INFINITY),
    /* One token; decays that are 0; decays of almost 1; clamped D. */
    LARGE(scan, .B = 3, .L = 1, .H = 8, .P = 21, .G = 2, .S = 65, .Q = 128, .lddt = 8, .dt_max = INFINITY),
    LARGE(scan, .B = 1, .L = 70, .H = 4, .P = 9, .G = 2, .S = 20, .Q = 64, .lddt = 4, .dt_min = 1e4, .dt_max = 1e5),
    LARGE(scan, .B = 1, .L = 170, .H = 4, .P = 9, .G = 2, .S = 20, .Q = 64, .lddt = 4, .dt_max = 1e-6),
    LARGE(scan, .B = 1, .L = 70, .H = 4, .P = 9, .G = 2, .S = 20, .Q = 64, .lddt = 4, .dt_min = 0.001, .dt_max = 0.1),
    CASE(scan, .B = 1, .L = 35, .H = 4, .P = 2, .G = 2, .S = 3, .Q = 34, .lddt = 5, .dt_max = INFINITY),
    WITHOUT("state_in dstate_in dstate_out", scan, .B = 1, .L = 45, .H = 4, .P = 3, .G = 2, .S = 4, .Q = 32, .lddt = 4,
            .dt_max = INFINITY),
    WITHOUT("state_in states", scan, .B = 2, .L = 45, .H = 2, .P = 3, .G = 1, .S = 4, .Q = 3, .lddt = 2, .dt_max = INFINITY),
    CASE(gate_squares, .T = 0, .W = 6, .G = 2, .ldz = 6),
    CASE(gate_squares, .T = 5, .W = 6, .G = 2, .ldz = 9),
    CASE(gate_squares, .T = 3, .W = 71, .G = 1, .ldz = 71),
    LARGE(gate_squares, .T = 101, .W = 210, .G = 3, .ldz = 211),
    CASE(gate_norm, .T = 0, .W = 6, .G = 2, .ldz = 6, .width = 3, .eps = 1e-5),
    CASE(gate_norm, .T = 5, .W = 6, .G = 2, .ldz = 9, .width = 3, .eps = 1e-5),
    CASE(gate_norm, .T = 3, .W = 150, .G = 3, .ldz = 150, .width = 100, .eps = 1e-2),
    LARGE(gate_norm, .T = 101, .W = 210, .G = 3, .ldz = 211, .width = 70, .eps = 1e-5),
    CASE(gated_norm, .T = 0, .W = 6, .G = 2, .ldz = 6, .eps = 1e-5),
    CASE(gated_norm, .T = 5, .W = 6, .G = 2, .ldz = 9, .eps = 1e-5),
    CASE(gated_norm, .T = 37, .W = 71, .G = 1, .ldz = 71, .eps = 1e-2),
    LARGE(gated_norm, .T = 101, .W = 210, .G = 3, .ldz = 211, .eps = 1e-5),
    LARGE(gated_norm, .T = 5, .W = 4801, .G = 1, .ldz = 4801, .eps = 1e-5),
    CASE(attention, .B = 0, .L = 3, .P = 2, .H = 2, .G = 1, .D = 4, .ldq = 8, .ldk = 4, .ldv = 4, .ldp = 8, .C = 1, .scale = 0.5),
    CASE(attention, .B = 2, .L = 0, .P = 2, .H = 2, .G = 1, .D = 4, .ldq = 8, .ldk = 4, .ldv = 4, .ldp = 8, .C = 1, .scale = 0.5),
    CASE(attention, .B = 1, .L = 1, .P = 0, .H = 1, .G = 1, .D = 1, .ldq = 1, .ldk = 1, .ldv = 1, .ldp = 0, .C = 1, .scale = 1),
    CASE(attention, .B = 2, .L = 9, .P = 3, .H = 4, .G = 2, .D = 5, .ldq = 23, .ldk = 11, .ldv = 13, .ldp = 37,
         .C = 2, .scale = 0.7),
    CASE(attention, .B = 2, .L = 7, .P = 7, .H = 3, .G = 1, .D = 4, .ldq = 12, .ldk = 4, .ldv = 4, .ldp = 28, .C = 3, .scale = 2),
    CASE(attention, .B = 1, .L = 1, .P = 5, .H = 2, .G = 2, .D = 67, .ldq = 134, .ldk = 134, .ldv = 134,
         .ldp = 670, .C = 2, .scale = 0.1),
    WITHOUT("k_past v_past dk_past dv_past", attention, .B = 2, .L = 7, .P = 0, .H = 2, .G = 1, .D = 3, .ldq = 6,
            .ldk = 3, .ldv = 3, .ldp = 0, .C = 1, .scale = 0.5),
    WITHOUT("k_past v_past", attention, .B = 2, .L = 7, .P = 4, .H = 2, .G = 1, .D = 3, .ldq = 6, .ldk = 3, .ldv = 3,
            .ldp = 12, .C = 2, .scale = 0.5),
    LARGE(attention, .B = 2, .L = 151, .P = 5, .H = 6, .G = 2, .D = 20, .ldq = 121, .ldk = 40, .ldv = 43,
          .ldp = 240, .C = 3, .scale = 0.3),
    LARGE(attention, .B = 2, .L = 65, .P = 63, .H = 2, .G = 2, .D = 33, .ldq = 67, .ldk = 69, .ldv = 66,
          .ldp = 4165, .C = 1, .scale = 0.4),
    LARGE(attention, .B = 1, .L = 130, .P = 64, .H = 5, .G = 1, .D = 64, .ldq = 320, .ldk = 64, .ldv = 64,
          .ldp = 4096, .C = 2, .scale = 0.3),
    LARGE(attention, .B = 2, .L = 64, .P = 129, .H = 2, .G = 1, .D = 7, .ldq = 14, .ldk = 8, .ldv = 9,
          .ldp = 906, .C = 16, .scale = 1),
    LARGE(attention, .B = 1, .L = 97, .P = 128, .H = 12, .G = 2, .D = 16, .ldq = 192, .ldk = 32, .ldv = 32,
          .ldp = 4096, .C = 5, .scale = 0.5),
    LARGE(attention, .B = 2, .L = 200, .P = 0, .H = 3, .G = 3, .D = 24, .ldq = 72, .ldk = 72, .ldv = 72,
          .ldp = 0, .C = 2, .scale = 0.5),
    LARGE(attention, .B = 1, .L = 31, .P = 40, .H = 4, .G = 2, .D = 257, .ldq = 1030, .ldk = 515, .ldv = 515,
          .ldp = 20560, .C = 3, .scale = 0.2),
    LARGE(attention, .B = 1, .L = 35, .P = 33, .H = 2, .G = 1, .D = 515, .ldq = 1030, .ldk = 515, .ldv = 515,
          .ldp = 16995, .C = 2, .scale = 0.1),
    LARGE(attention, .B = 3, .L = 1, .P = 300, .H = 8, .G = 2, .D = 128, .ldq = 1024, .ldk = 256, .ldv = 256,
          .ldp = 76800, .C = 1, .scale = 0.2),
    LARGE(attention, .B = 3, .L = 1, .P = 300, .H = 8, .G = 2, .D = 128, .ldq = 1024, .ldk = 256, .ldv = 256,
          .ldp = 76800, .C = 4, .scale = 0.2),
    /* few queries: three and seven of a key head; features that are not whole blocks of 64 */
    LARGE(attention, .B = 5, .L = 1, .P = 301, .H = 6, .G = 2, .D = 96, .ldq = 576, .ldk = 192, .ldv = 192,
          .ldp = 57792, .C = 1, .scale = 0.2),
    LARGE(attention, .B = 2, .L = 1, .P = 402, .H = 14, .G = 2, .D = 32, .ldq = 449, .ldk = 65, .ldv = 67,
          .ldp = 25730, .C = 3, .scale = 0.2),
    LARGE(attention, .B = 3, .L = 1, .P = 1100, .H = 5, .G = 5, .D = 35, .ldq = 175, .ldk = 177, .ldv = 176,
          .ldp = 192509, .C = 16, .scale = 0.3),
    LARGE(attention, .B = 2, .L = 3, .P = 257, .H = 120, .G = 1, .D = 9, .ldq = 1080, .ldk = 9, .ldv = 9,
          .ldp = 2313, .C = 3, .scale = 0.5),
    /* scores up to 80 */
    LARGE(attention, .B = 1, .L = 140, .P = 70, .H = 4, .G = 2, .D = 12, .ldq = 48, .ldk = 24, .ldv = 24,
          .ldp = 1680, .C = 2, .scale = 20),
    /* The past alone, some tokens before the row: seen by all, some or none. */
    WITHOUT("k v dk dv", attention, .B = 2, .L = 9, .P = 5, .H = 4, .G = 2, .D = 5, .ldq = 23, .ldk = 10, .ldv = 10,
            .ldp = 57, .C = 2, .away = 1, .scale = 0.7),
    WITHOUT("k v dk dv", attention, .B = 2, .L = 7, .P = 7, .H = 3, .G = 1, .D = 4, .ldq = 12, .ldk = 4, .ldv = 4, .ldp = 28,
            .C = 3, .away = 4, .scale = 2),
    WITHOUT("k v dk dv", attention, .B = 3, .L = 1, .P = 1, .H = 2, .G = 1, .D = 3, .ldq = 6, .ldk = 3, .ldv = 3, .ldp = 3,
            .C = 1, .away = 2, .scale = 2),
    LARGE_WITHOUT("k v dk dv", attention, .B = 2, .L = 151, .P = 140, .H = 6, .G = 2, .D = 20, .ldq = 121, .ldk = 40,
                  .ldv = 40, .ldp = 5700, .C = 3, .away = 1, .scale = 0.3),
    LARGE_WITHOUT("k v dk dv", attention, .B = 1, .L = 131, .P = 67, .H = 8, .G = 1, .D = 64, .ldq = 512, .ldk = 64,
                  .ldv = 64, .ldp = 4288, .C = 1, .away = 68, .scale = 0.2),
    LARGE_WITHOUT("k v dk dv", attention, .B = 3, .L = 2, .P = 700, .H = 4, .G = 2, .D = 35, .ldq = 140, .ldk = 70,
                  .ldv = 70, .ldp = 49000, .C = 5, .away = 30, .scale = 0.3),
    CASE(attention_merge, .T = 0, .H = 2, .D = 3),
    CASE(attention_merge, .T = 5, .H = 2, .D = 7),
    LARGE(attention_merge, .T = 101, .H = 5, .D = 67),
    CASE(scan_next, .B = 0, .H = 2, .P = 3, .G = 1, .S = 4, .R = 1, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_next, .B = 2, .H = 0, .P = 3, .G = 1, .S = 4, .R = 1, .lddt = 1, .dt_max = INFINITY),
    CASE(scan_next, .B = 2, .H = 2, .P = 3, .G = 1, .S = 0, .R = 3, .n = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_next, .B = 2, .H = 2, .P = 0, .G = 1, .S = 3, .R = 3, .n = 2, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_next, .B = 1, .H = 1, .P = 1, .G = 1, .S = 1, .R = 1, .lddt = 1, .dt_max = INFINITY),
    CASE(scan_next, .B = 9, .H = 6, .P = 3, .G = 3, .S = 5, .R = 4, .n = 3, .lddt = 9, .dt_max = INFINITY),
    WITHOUT("state_out", scan_next, .B = 9, .H = 6, .P = 3, .G = 3, .S = 5, .R = 4, .lddt = 9, .dt_max = INFINITY),
    WITHOUT("state_out", scan_next, .B = 9, .H = 4, .P = 5, .G = 2, .S = 3, .R = 8, .n = 5, .lddt = 4, .dt_max = INFINITY),
    WITHOUT("state_out", scan_next, .B = 2, .H = 4, .P = 5, .G = 1, .S = 3, .R = 64, .n = 62, .lddt = 4, .dt_max = INFINITY),
    CASE(scan_next, .B = 2, .H = 2, .P = 3, .G = 2, .S = 4, .R = 64, .n = 63, .lddt = 2, .dt_min = 0.1, .dt_max = 1.5),
    LARGE(scan_next, .B = 7, .H = 6, .P = 24, .G = 3, .S = 40, .R = 8, .n = 7, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan_next, .B = 5, .H = 2, .P = 129, .G = 1, .S = 300, .R = 3, .n = 2, .lddt = 2, .dt_max = INFINITY),
    LARGE(scan_next, .B = 3, .H = 8, .P = 21, .G = 2, .S = 65, .R = 2, .n = 1, .lddt = 11, .dt_min = 1e4, .dt_max = 1e5),
    LARGE_WITHOUT("state_out", scan_next, .B = 7, .H = 6, .P = 70, .G = 3, .S = 128, .R = 8, .lddt = 7, .dt_max = INFINITY),
    LARGE_WITHOUT("state_out", scan_next, .B = 7, .H = 6, .P = 24, .G = 3, .S = 40, .R = 8, .n = 6, .lddt = 6, .dt_max = INFINITY),
    LARGE_WITHOUT("state_out", scan_next, .B = 2, .H = 2, .P = 13, .G = 1, .S = 1031, .R = 8, .n = 3, .lddt = 2, .dt_max = 1e-6),
    CASE(scan_end, .B = 0, .L = 3, .H = 2, .P = 3, .G = 1, .S = 4, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_end, .B = 2, .L = 0, .H = 2, .P = 3, .G = 1, .S = 4, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_end, .B = 2, .L = 3, .H = 2, .P = 3, .G = 1, .S = 0, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_end, .B = 2, .L = 3, .H = 4, .P = 3, .G = 2, .S = 5, .lddt = 7, .dt_max = INFINITY),
    CASE(scan_end, .B = 1, .L = 1, .H = 1, .P = 1, .G = 1, .S = 1, .lddt = 1, .dt_min = 0.1, .dt_max = 1.5),
    LARGE(scan_end, .B = 7, .L = 67, .H = 6, .P = 24, .G = 3, .S = 40, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan_end, .B = 3, .L = 9, .H = 2, .P = 129, .G = 1, .S = 300, .lddt = 2, .dt_max = INFINITY),
    LARGE(scan_end, .B = 2, .L = 3, .H = 12, .P = 16, .G = 1, .S = 1031, .lddt = 12, .dt_min = 0.001, .dt_max = 0.1),
    CASE(scan_begin, .B = 0, .L = 3, .H = 2, .P = 3, .G = 1, .S = 4, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_begin, .B = 2, .L = 0, .H = 2, .P = 3, .G = 1, .S = 4, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_begin, .B = 2, .L = 3, .H = 4, .P = 3, .G = 2, .S = 5, .lddt = 7, .dt_max = INFINITY),
    LARGE(scan_begin, .B = 7, .L = 67, .H = 6, .P = 24, .G = 3, .S = 40, .lddt = 6, .dt_max = INFINITY),
    LARGE(scan_begin, .B = 3, .L = 9, .H = 2, .P = 129, .G = 1, .S = 300, .lddt = 2, .dt_max = INFINITY),
    CASE(scan_chain, .N = 0, .B = 2, .W = 3, .H = 1, .each = 3),
    CASE(scan_chain, .N = 1, .B = 2, .W = 3, .H = 1, .each = 3),
    CASE(scan_chain, .N = 5, .B = 2, .W = 7, .H = 4, .first = 5, .each = 4),
    CASE(scan_chain, .N = 5, .B = 2, .W = 7, .H = 4, .first = 5, .each = 4, .backward = 1),
    LARGE(scan_chain, .N = 7, .B = 3, .W = 1031, .H = 2, .each = 600),
    CASE(route, .T = 0, .E = 4, .K = 2, .groups = 1, .kept = 1),
    CASE(route, .T = 5, .E = 4, .K = 0, .groups = 1, .kept = 1),
    CASE(route, .T = 11, .E = 12, .K = 3, .groups = 4, .kept = 2),
    CASE(route, .T = 7, .E = 5, .K = 5, .groups = 1, .kept = 1),
    LARGE(route, .T = 301, .E = 24, .K = 4, .groups = 6, .kept = 3),
    CASE(route_weight, .T = 0, .E = 4, .K = 2, .scale = 1),
    CASE(route_weight, .T = 7, .E = 6, .K = 3, .normalise = 1, .scale = 2.5),
    CASE(route_weight, .T = 7, .E = 6, .K = 3, .scale = 1.5),
    CASE(route_weight, .T = 5, .E = 3, .K = 1, .normalise = 1, .scale = 2),
    LARGE(route_weight, .T = 901, .E = 24, .K = 4, .normalise = 1, .scale = 5),
    CASE(sort_experts, .T = 0, .K = 2, .E = 3),
    CASE(sort_experts, .T = 17, .K = 3, .E = 7),
    CASE(route_evenly, .T = 0, .E = 4, .K = 2, .L = 1, .piece = 1),
    CASE(route_evenly, .T = 17, .E = 7, .K = 3, .first = 4, .L = 5, .piece = 3, .low = 6, .high = 30),
    CASE(count_choices, .T = 0, .K = 2, .E = 3, .G = 2),
    CASE(count_choices, .T = 13, .K = 3, .E = 7, .G = 4),
    CASE(count_choices, .T = 13, .K = 3, .E = 7, .G = 1, .all = 1),
    WITHOUT("document", count_choices, .T = 13, .K = 3, .E = 7, .G = 1),
    CASE(count_experts, .T = 0, .K = 2, .E = 3),
    CASE(count_experts, .T = 13, .K = 3, .E = 7),
    WITHOUT("document", count_experts, .T = 13, .K = 3, .E = 7),
    CASE(add_counts, .n = 0),
    CASE(add_counts, .n = 9),
    CASE(drop_choices, .T = 0, .K = 2, .E = 3, .L = 1, .C = 1, .limit = 1),
    CASE(drop_choices, .T = 30, .K = 3, .E = 5, .L = 10, .C = 1, .limit = 4, .n = 30),
    CASE(drop_choices, .T = 30, .K = 3, .E = 5, .L = 30, .C = 1, .limit = 0, .first = 7, .n = 11),
    CASE(drop_choices, .T = 48, .K = 3, .E = 5, .L = 24, .C = 3, .limit = 9, .first = 16, .n = 16),
    WITHOUT("document", drop_choices, .T = 48, .K = 3, .E = 5, .L = 24, .C = 2, .limit = 9, .n = 48),
    CASE(balance_loss, .T = 0, .E = 4, .K = 2, .G = 1, .share = 1),
    CASE(balance_loss, .T = 31, .E = 6, .K = 2, .G = 4, .share = 0.5),
    CASE(balance_loss, .T = 11, .E = 6, .K = 2, .G = 1, .all = 1, .share = 0.5),
    WITHOUT("document", balance_loss, .T = 7, .E = 3, .K = 3, .share = 2),
    LARGE(balance_loss, .T = 301, .E = 24, .K = 4, .G = 3, .share = 0.25),
    CASE(gather_rows, .T = 0, .K = 2, .W = 3),
    CASE(gather_rows, .T = 7, .K = 3, .W = 5),
    LARGE(gather_rows, .T = 67, .K = 3, .W = 131),
    CASE(combine_rows, .T = 0, .K = 2, .W = 3),
    CASE(combine_rows, .T = 7, .K = 3, .W = 67),
    LARGE(combine_rows, .T = 67, .K = 3, .W = 131),
    CASE(head, .T = 0, .H = 3, .V = 5, .C = 2),
    CASE(head, .T = 5, .H = 3, .V = 0, .first = 4, .C = 2),
    CASE(head, .T = 7, .H = 5, .V = 11, .first = 6, .C = 3),
    CASE(head, .T = 4, .H = 5, .V = 11, .C = 9),
    LARGE(head, .T = 101, .H = 67, .V = 203, .first = 100, .C = 32),
    CASE(word_loss, .T = 0, .R = 2),
    CASE(word_loss, .T = 7, .R = 1),
    CASE(word_loss, .T = 8, .R = 3),
    CASE(exact_sum, .n = 0),
    CASE(exact_sum, .n = 101),
    LARGE(exact_sum, .n = 50001, .squares = 1),
    CASE(adamw, .n = 0, .c1 = 1, .c2 = 1),
    CASE(adamw, .n = 37, .clip = 0.5, .rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .c1 = 0.1,
         .c2 = 0.05),
    WITHOUT("low", adamw, .n = 41, .clip = 0.5, .rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .c1 = 0.1,
            .c2 = 0.05, .clear = 1),
    LARGE(adamw, .n = 40013, .clip = 1, .rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .c1 = 0.3, .c2 = 0.1),
};
/* clang-format on */
enum { N_CASES = sizeof cases / sizeof *cases };

/* One test a row: all its cases. A row without a case, that is no other
 * row's adjoint either, is a failure. */
static void try_row(void **state) {
    const enum op op = *(const enum op *)*state;
    int tried = 0, wrong = 0;
    for (int i = 0; i < N_CASES; i++) {
        if (adjoint_of(cases[i].op) == op) tried++;
        if (cases[i].op != op) continue;
        tried++;
        wrong += try_case(&cases[i]);
    }
    if (tried == 0) fail_msg("%s has no case", op_row(op)->name);
    assert_int_equal(wrong, 0);
}

/* Products of many shapes: the library's sums must not depend on how many threads share the tiles.
 */
static void products_on_any_threads(void **state) {
    (void)state;
    int wrong = 0;
    for (int i = 0; i < 40; i++) {
        const int64_t M = 1 + random_below(1, i, i % 4 ? 300 : 20),
                      N = 1 + random_below(2, i, i % 3 ? 500 : 40);
        const int64_t K = 1 + random_below(3, i, i % 5 ? 400 : 6000), ta = i / 2 % 2, tb = i % 2;
        const struct matmul_args args = {.M = M,
                                         .N = N,
                                         .K = K,
                                         .lda = ta ? M : K,
                                         .ldb = tb ? K : N,
                                         .ldc = N,
                                         .ta = ta,
                                         .tb = tb};
        const struct op_case c = {OP_matmul, &args, NULL, true, __LINE__};
        wrong += try_threads(&c);
    }
    assert_int_equal(wrong, 0);
}

static void every_row_has_a_speed(void **state) {
    (void)state;
    for (int op = 0; op < N_OPS; op++)
        if (!bench_has((enum op)op)) fail_msg("bench leaves out %s", op_row((enum op)op)->name);
}

int main(int argc, char **argv) {
    const enum dtype stored = argc > 2 && strcmp(argv[2], "bf16") == 0 ? BF16 : F32;
    if (argc > 1 && strcmp(argv[1], "bench") == 0) return bench(stored);
    if (argc > 1 && strcmp(argv[1], "lengths") == 0) return bench_lengths(stored);
    static enum op ops[N_OPS];
    enum { N_TESTS = N_OPS + 2 };
    struct CMUnitTest tests[N_TESTS];
    for (int i = 0; i < N_OPS; i++) {
        ops[i] = (enum op)i;
        tests[i] = (struct CMUnitTest){op_row(ops[i])->name, try_row, NULL, NULL, &ops[i]};
    }
    tests[N_OPS] = (struct CMUnitTest)cmocka_unit_test(products_on_any_threads);
    tests[N_OPS + 1] = (struct CMUnitTest)cmocka_unit_test(every_row_has_a_speed);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d passed, %d failed\n", N_TESTS - failed, failed);
    return failed != 0;
}
