/* The devices themselves: the debug device's addresses fault on the host, its kernels are watched,
 * and the dry device counts what the cpu device counts. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/device.h"
#include "kernels/die.h"

enum { N = 1000 };

/* How a child that runs `act` ends. Its standard error is thrown away. */
static int fate(void (*act)(void *), void *with) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* the sanitizers have their own handlers */
        signal(SIGBUS, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(9);
        act(with);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void read_byte(void *p) {
    volatile char c = *(volatile char *)p;
    (void)c;
}

static void write_byte(void *p) {
    *(volatile char *)p = 1;
}

static void host_faults(void **state) {
    (void)state;
    struct device d, dry;
    device_cpu(&d, 1, true);
    device_dry(&dry);
    void *p = device_reserve(&d, N), *q = device_reserve(&dry, N);
    assert_non_null(p);
    assert_non_null(q);
    assert_true(WIFSIGNALED(fate(read_byte, p)));
    assert_true(WIFSIGNALED(fate(write_byte, p)));
    assert_true(WIFSIGNALED(fate(read_byte, q)));
    assert_int_equal(fate(read_byte, device_host(&d, p)), 0);
    assert_null(device_host(&dry, q));
    assert_null(device_host(&d, NULL));
    device_release(&d, p, N);
    device_release(&dry, q, N);
}

static void memory(void **state) {
    (void)state;
    for (int debug = 0; debug < 2; debug++) {
        struct device d;
        char out[N];
        device_cpu(&d, 1, debug);
        char *p = device_reserve(&d, (size_t)1 << 36); /* taken as it is touched */
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 4096, 0);
        memset(out, 7, N);
        device_write(&d, p + 100, out, N);
        device_zero(&d, p + 105, 5);
        device_read(&d, out, p + 95, N);
        for (int i = 0; i < N; i++)
            assert_int_equal(out[i], (i < 5) || (i >= 10 && i < 15) ? 0 : 7);
        device_release(&d, p, (size_t)1 << 36);
    }
}

static void dry_reads_zeros(void **state) {
    (void)state;
    struct device d;
    double x[4] = {1, 2, 3, 4};
    device_dry(&d);
    char *p = device_reserve(&d, 32), *q = device_reserve(&d, 5000);
    assert_true(q >= p + 32);
    assert_int_equal((uintptr_t)q % 4096, 0);
    device_write(&d, p, x, sizeof x);
    device_zero(&d, p, sizeof x);
    device_read(&d, x, p, sizeof x);
    for (int i = 0; i < 4; i++) assert_true(x[i] == 0);
}

/* The same calls on both; also for sizes whose work would overflow an integer. */
static void both_count_alike(void **state) {
    (void)state;
    struct device cpu, dry;
    float x[6] = {1, 2, 3, 4, 5, 6}, w[9] = {0}, y[6];
    device_cpu(&cpu, 1, false);
    device_dry(&dry);
    struct device *devices[] = {&cpu, &dry};
    for (int i = 0; i < 2; i++) {
        DEVICE_RUN(devices[i], matmul, F32, .a = x, .b = w, .c = y, .M = 2, .N = 3, .K = 3,
                   .lda = 3, .ldb = 3, .ldc = 3);
        DEVICE_RUN(devices[i], matmul, F32, .a = x, .b = w, .c = y, .c_add = 1, .M = 2, .N = 3,
                   .K = 3, .lda = 3, .ldb = 3, .ldc = 3);
        DEVICE_RUN(devices[i], scale, F32, .x = x, .y = NULL, .n = 6, .s = 1);
    }
    assert_memory_equal(cpu.count, dry.count, sizeof cpu.count);
    assert_int_equal(cpu.count[OP_matmul].calls, 2);
    assert_true(cpu.count[OP_matmul].work == 72);
    assert_true(cpu.count[OP_matmul].bytes == 4 * (6 + 9 + 6 + 6 + 9 + 2 * 6));
    assert_true(cpu.count[OP_scale].bytes == 4 * 6);
    memset(cpu.count, 0, sizeof cpu.count);
    /* Without the gap behind each row of a: 2 of 3 numbers, twice. */
    cpu.speed = (struct speed){.fp32 = 4, .memory = 1000};
    DEVICE_RUN(&cpu, matmul, F32, .a = x, .b = w, .c = y, .M = 2, .N = 3, .K = 2, .lda = 3,
               .ldb = 3, .ldc = 3);
    assert_true(cpu.count[OP_matmul].bytes == 4 * (2 * 2 + 2 * 3 + 2 * 3));
    assert_true(cpu.count[OP_matmul].least_s == 24 / 4.0);
    DEVICE_RUN(&cpu, scale, F32, .x = x, .y = y, .n = 6, .s = 1);
    assert_true(cpu.count[OP_scale].least_s == 6 / 4.0);
    cpu.speed.memory = 4;
    DEVICE_RUN(&cpu, scale, F32, .x = x, .y = y, .n = 6, .s = 1);
    assert_true(cpu.count[OP_scale].least_s == 6 / 4.0 + 48 / 4.0);
    /* Of a table, the rows that tokens ask for. */
    DEVICE_RUN(&dry, embedding, F32, .w = x, .id = (int32_t[]){1}, .y = y, .T = 1, .H = 2, .V = 3);
    assert_true(dry.count[OP_embedding].bytes == 4 * (2 + 1 + 2));
    const int64_t big = (int64_t)1 << 22;
    DEVICE_RUN(&dry, matmul, F32, .a = x, .b = x, .c = y, .M = big, .N = big, .K = big, .lda = big,
               .ldb = big, .ldc = big);
    assert_true(dry.count[OP_matmul].work == 72 + 2 * 73786976294838206464.0);
}

/* A slot that does not exist: the kernel writes behind the gradient of the slots. */
static void writes_behind(struct device *d, char *p) {
    const int32_t position = 1;
    const float ones[4] = {1, 1, 1, 1};
    device_write(d, p, &position, sizeof position);
    device_write(d, p + 128, ones, sizeof ones);
    device_write(d, p + 192, ones, sizeof ones);
    DEVICE_RUN(d, combine_rows_adjoint, F32, .position = (int32_t *)(void *)p, .y = p + 64,
               .weight = p + 128, .go = p + 192, .dy = p + 256, .T = 1, .K = 1, .W = 4);
}

static void unknown_expert(struct device *d, char *p) {
    const int32_t index = 2; /* 1 is none of one expert */
    device_write(d, p, &index, sizeof index);
    DEVICE_RUN(d, sort_experts, F32, .index = (int32_t *)(void *)p,
               .order = (int32_t *)(void *)(p + 64), .position = (int32_t *)(void *)(p + 128),
               .offset = (int32_t *)(void *)(p + 192), .T = 1, .K = 1, .E = 1);
}

/* Runs in a process of its own, started afresh: OpenMP does not promise to live through a fork. */
static int make_mistake(const char *which) {
    struct device d;
    device_cpu(&d, 1, true);
    char *p = device_reserve(&d, N);
    if (strcmp(which, "behind") == 0) writes_behind(&d, p);
    else unknown_expert(&d, p);
    return 0;
}

static void start_mistake(void *which) {
    execl("/proc/self/exe", "test_device", which, (char *)NULL);
    _exit(0);
}

static void mistakes_end_the_run(void **state) {
    (void)state;
    char which[][8] = {"behind", "expert"};
    for (int i = 0; i < 2; i++) {
        const int status = fate(start_mistake, which[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    }
}

static void rows_are_described(void **state) {
    (void)state;
    const struct op_row *row = op_row(OP_rms_norm);
    int64_t counts[4];
    assert_string_equal(row->name, "rms_norm");
    assert_int_equal(row->n_operands, 4);
    assert_int_equal(row->args_size, sizeof(struct rms_norm_args));
    assert_string_equal(row->operands[3].name, "rstd");
    assert_int_equal(row->operands[3].kind, OPERAND_OUT);
    assert_int_equal(row->operands[3].at, offsetof(struct rms_norm_args, rstd));
    row->counts(&(struct rms_norm_args){.T = 5, .H = 7}, counts);
    assert_int_equal(counts[0], 35);
    assert_int_equal(counts[1], 7);
    assert_int_equal(counts[3], 5);
    assert_true(row->work(&(struct rms_norm_args){.T = 5, .H = 7}) == 140);
    row = op_row(OP_relu2_adjoint);
    assert_int_equal(row->operands[2].kind, OPERAND_ADD);
    assert_int_equal(row->operands[2].add_at, offsetof(struct relu2_adjoint_args, dx_add));
}

/* Results that lie between one another, as the gradients of q, k and v do, are those that lie
 * apart; with NaN around them, and where they are added to; by the definition and by what is
 * faster. */
static void views_in_bf16(void **state) {
    (void)state;
    enum { T = 5, D = 4, W = 3 * D };
    struct device d;
    device_cpu(&d, 1, false);
    for (int way = 0; way < 4; way++) {
        const int add = way % 2;
        d.plain = way / 2;
        uint16_t in[6][T * D], between[T * W + 1], apart[3][T * D];
        float lse[T], scratch[2 * T * 16];
        int32_t start[T] = {0};
        for (int i = 0; i < 6; i++)
            for (int k = 0; k < T * D; k++)
                in[i][k] = (uint16_t)(0x3f00 + (37 * i + 11 * k) % 90 + (k % 3 ? 0 : 0x8000));
        for (int t = 0; t < T; t++) lse[t] = 1.5f + (float)t;
        memset(between, add ? 0x3f : 0xff, sizeof between);
        memset(apart, add ? 0x3f : 0xff, sizeof apart);
        struct attention_adjoint_args a = {.q = in[0],
                                           .k = in[1],
                                           .v = in[2],
                                           .o = in[3],
                                           .go = in[4],
                                           .lse = lse,
                                           .start = start,
                                           .dq = apart[0],
                                           .dk = apart[1],
                                           .dv = apart[2],
                                           .dq_add = add,
                                           .dk_add = add,
                                           .dv_add = add,
                                           .B = 1,
                                           .L = T,
                                           .H = 1,
                                           .G = 1,
                                           .D = D,
                                           .ldq = D,
                                           .ldk = D,
                                           .ldv = D,
                                           .scratch = scratch,
                                           .C = 1,
                                           .scale = 0.5};
        device_run(&d, OP_attention_adjoint, BF16, &a);
        /* now q, k and v are views too, with the strides of their gradients */
        uint16_t all[T * W];
        for (int t = 0; t < T; t++)
            for (int i = 0; i < 3; i++) memcpy(all + t * W + i * D, in[i] + t * D, D * sizeof *all);
        a.q = all, a.k = all + D, a.v = all + 2 * D;
        a.dq = between, a.dk = between + D, a.dv = between + 2 * D;
        a.ldq = a.ldk = a.ldv = W;
        device_run(&d, OP_attention_adjoint, BF16, &a);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < 3; i++)
                assert_memory_equal(between + t * W + i * D, apart[i] + t * D, D * sizeof *all);
        assert_int_equal(between[T * W], add ? 0x3f3f : 0xffff);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) return make_mistake(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(host_faults),          cmocka_unit_test(memory),
        cmocka_unit_test(dry_reads_zeros),      cmocka_unit_test(both_count_alike),
        cmocka_unit_test(mistakes_end_the_run), cmocka_unit_test(rows_are_described),
        cmocka_unit_test(views_in_bf16),
    };
    const int n = sizeof tests / sizeof *tests, failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d passed, %d failed\n", n - failed, failed);
    return failed != 0;
}
