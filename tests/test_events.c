/* events.h: records as TensorBoard reads them, byte for byte, and going back to a step. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/events.h"
#include "tests/place.h"

static char folder[256];

static int make_folder(void **state) {
    (void)state;
    place_make(folder, sizeof folder, "events");
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    struct events e;
    events_open(&e, folder, -1); /* removes what is there */
    unlink(e.path);
    events_close(&e);
    return rmdir(folder);
}

/* Vectors of RFC 3720, B.4, and the check value of the polynomial. */
static void crc(void **state) {
    (void)state;
    unsigned char x[32] = {0};
    assert_int_equal(crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(crc32c("", 0), 0);
    assert_int_equal(crc32c(x, 32), 0x8a9136aa);
    memset(x, 0xff, 32);
    assert_int_equal(crc32c(x, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) x[i] = (unsigned char)i;
    assert_int_equal(crc32c(x, 32), 0x46dd794e);
    assert_int_equal(crc32c_masked("123456789", 9),
                     (0xe3069283u >> 15 | 0xe3069283u << 17) + 0xa282ead8u);
}

static size_t contents(const char *path, unsigned char *to, size_t room) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(to, 1, room, f);
    fclose(f);
    return n;
}

static char *begin(int64_t after, struct events *e) {
    events_open(e, folder, after);
    return strdup(e->path);
}

static void write_steps(struct events *e, int from, int to) {
    for (int s = from; s <= to; s++) {
        struct event_value v[] = {{"loss", 10.0 / s}, {"grad_norm", 0.5}};
        events_write(e, 1000.0 + s, s, 2, v);
    }
}

/* The version and one number, as bytes worked out by hand from the definition of the format. */
static void bytes(void **state) {
    (void)state;
    struct events e;
    char *path = begin(-1, &e);
    events_write(&e, 2.0, 300, 1, (struct event_value[]){{"loss", 1.5}});
    events_close(&e);
    unsigned char got[256];
    size_t n = contents(path, got, sizeof got);
    static const unsigned char event[] = {
        0x09, 0,    0,    0,    0,    0,   0, 0, 0x40, /* wall_time = 2.0 */
        0x10, 0xac, 0x02,                              /* step = 300 */
        0x2a, 13,                                      /* summary */
        0x0a, 11,                                      /* value */
        0x0a, 4,    'l',  'o',  's',  's',             /* tag */
        0x15, 0,    0,    0xc0, 0x3f,                  /* simple_value = 1.5 */
    };
    size_t version = 12 + 9 + 2 + 13 + 4, second = 12 + sizeof event + 4;
    assert_int_equal(n, version + second);
    assert_int_equal(got[0], 24);
    assert_memory_equal(got + 12 + 9,
                        "\x1a\x0d"
                        "brain.Event:2",
                        15);
    const unsigned char *r = got + version;
    assert_memory_equal(r, "\x1b\0\0\0\0\0\0\0", 8);
    uint32_t of_length, of_data;
    memcpy(&of_length, r + 8, 4);
    memcpy(&of_data, r + second - 4, 4);
    assert_int_equal(of_length, crc32c_masked(r, 8));
    assert_memory_equal(r + 12, event, sizeof event);
    assert_int_equal(of_data, crc32c_masked(event, sizeof event));
    free(path);
}

/* A run that goes back to step 5 and writes 6 to 9 again leaves what one without a break leaves. */
static void continued(void **state) {
    (void)state;
    unsigned char want[4096], got[4096];
    struct events e;
    char *path = begin(-1, &e);
    write_steps(&e, 1, 9);
    events_close(&e);
    size_t n = contents(path, want, sizeof want);
    char *again = begin(5, &e);
    assert_string_equal(again, path);
    size_t cut = contents(path, got, sizeof got);
    assert_true(cut < n);
    assert_memory_equal(got, want, cut);
    write_steps(&e, 6, 9);
    events_close(&e);
    assert_int_equal(contents(path, got, sizeof got), n);
    assert_memory_equal(got, want, n);
    assert_int_equal(events_truncate(path, 9), 0);
    assert_int_equal(contents(path, got, sizeof got), n);
    assert_int_equal(events_truncate("/no/such/file", 1), -1);
    free(path);
    free(again);
}

/* A record cut short by a kill, and a damaged one, are dropped with what follows. */
static void damaged(void **state) {
    (void)state;
    unsigned char whole[4096], got[4096];
    struct events e;
    char *path = begin(-1, &e);
    write_steps(&e, 1, 3);
    events_close(&e);
    size_t n = contents(path, whole, sizeof whole), record = (n - 40) / 3;
    assert_int_equal(truncate(path, (long)n - 5), 0);
    assert_int_equal(events_truncate(path, 100), 0);
    assert_int_equal(contents(path, got, sizeof got), n - record);
    FILE *f = fopen(path, "r+b");
    fseek(f, (long)(40 + 20), SEEK_SET);
    fputc(0x55, f);
    fclose(f);
    assert_int_equal(events_truncate(path, 100), 0);
    assert_int_equal(contents(path, got, sizeof got), 40);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc),
        cmocka_unit_test(bytes),
        cmocka_unit_test(continued),
        cmocka_unit_test(damaged),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
