/* Headers of safetensors files: right ones are read, damaged ones (tests/damaged/files.def) are
 * named, no bytes at all make the reader stumble. `test_safetensors damaged FOLDER` writes the
 * damaged files, each as FOLDER/<case>/model.safetensors with the expected words in
 * FOLDER/<case>.expected, for runs of the whole program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/files.h"
#include "io/safetensors.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "tests/place.h"

static char folder[256];

struct damaged {
    const char *name;
    int64_t length;
    const char *header;
    int data_bytes;
    const char *expected;
};
static const struct damaged damaged[] = {
#define FILE_CASE(name, length, header, data, expected) {name, length, header, data, expected},
#include "tests/damaged/files.def"
#undef FILE_CASE
};
enum { N_DAMAGED = sizeof damaged / sizeof *damaged };

static void file_put(const char *path, int64_t length, const char *header, int data_bytes) {
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot write %s", path);
    if (length == -1) length = (int64_t)strlen(header);
    for (int i = 0; i < 8; i++) fputc((int)((uint64_t)length >> (8 * i) & 255), f);
    fputs(header, f);
    for (int i = 0; i < data_bytes; i++) fputc(i, f);
    if (fclose(f) != 0) die("cannot write %s", path);
}

static const char *scratch(const char *name) {
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static bool said(const struct mistakes *m, const char *what) {
    for (int i = 0; i < m->n; i++)
        if (strstr(m->text[i], what)) return true;
    return false;
}

/* The file must be refused with these words, after its path. */
static void refused(const char *path, const char *expected) {
    struct safetensors s;
    struct mistakes m = {0};
    assert_int_equal(safetensors_open(&s, path, &m), -1);
    if (!said(&m, expected) || !said(&m, path)) {
        mistakes_print(&m, stderr);
        fail_msg("expected: %s", expected);
    }
    mistakes_free(&m);
}

static void accepted(struct safetensors *s, const char *path) {
    struct mistakes m = {0};
    int result = safetensors_open(s, path, &m);
    if (result != 0) mistakes_print(&m, stderr);
    assert_int_equal(result, 0);
    assert_int_equal(m.n, 0);
}

static void test_damaged_files(void **unused) {
    (void)unused;
    assert_true(N_DAMAGED >= 20);
    for (int i = 0; i < N_DAMAGED; i++) {
        const char *path = scratch(damaged[i].name);
        file_put(path, damaged[i].length, damaged[i].header, damaged[i].data_bytes);
        refused(path, damaged[i].expected);
    }
}

static void test_not_files(void **unused) {
    (void)unused;
    refused(scratch("absent"), "No such file");
    refused(folder, "is a folder");
    const char *path = scratch("pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    refused(path, "is not a regular file");
    path = scratch("empty");
    fclose(fopen(path, "wb"));
    refused(path, "has 0 bytes, too few");
    path = scratch("seven");
    FILE *f = fopen(path, "wb");
    fputs("1234567", f);
    fclose(f);
    refused(path, "has 7 bytes, too few");
}

/* Every length a download may stop at. */
static void test_every_truncation(void **unused) {
    (void)unused;
    const char *path = scratch("whole"),
               *header = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    struct safetensors s;
    file_put(path, -1, header, 8);
    accepted(&s, path);
    safetensors_close(&s);
    for (int64_t n = 8 + (int64_t)strlen(header) + 7; n >= 0; n--) {
        assert_int_equal(truncate(path, n), 0);
        refused(path, n < 8 + (int64_t)strlen(header) && n >= 8 ? "it was cut short" : "");
    }
}

static void test_many_mistakes_are_few_lines(void **unused) {
    (void)unused;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    for (int i = 0; i < 1000; i++) fprintf(f, "%c\"t%d\":{}", i ? ',' : '{', i);
    fputc('}', f);
    fclose(f);
    const char *path = scratch("thousand");
    file_put(path, -1, text, 0);
    free(text);
    struct safetensors s;
    struct mistakes m = {0};
    assert_int_equal(safetensors_open(&s, path, &m), -1);
    assert_int_equal(m.n, 21);
    assert_true(said(&m, "and 980 more mistakes"));
    mistakes_free(&m);
}

/* What other programs write: any order, spaces behind the header, scalars, empty tensors, metadata,
 * names of all sorts. */
static void test_right_files(void **unused) {
    (void)unused;
    struct safetensors s;
    const char *path = scratch("right");
    file_put(
        path, -1,
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"late\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[5,17]},"
        "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[1,5]},"
        "\"\xc3\xa9\\\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
        "\"none\":{\"dtype\":\"F64\",\"shape\":[0,9223372036854775807],\"data_offsets\":[5,5]},"
        "\"last\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[17,17],\"more\":1}}   ",
        17);
    accepted(&s, path);
    assert_int_equal(s.n, 5);
    const char *names[] = {"\xc3\xa9\"", "scalar", "none", "late", "last"};
    for (int i = 0; i < 5; i++) assert_string_equal(s.tensor[i].name, names[i]);
    assert_int_equal(s.tensor[1].n_dims, 0);
    assert_int_equal(s.tensor[1].elements, 1);
    assert_int_equal(s.tensor[3].begin, s.data_begin + 5);
    assert_int_equal(s.tensor[3].bytes, 12);
    assert_int_equal(s.tensor[3].dtype, BF16);
    assert_int_equal(s.tensor[4].elements, 0);
    safetensors_close(&s);
    file_put(path, -1, "{}", 0);
    accepted(&s, path);
    assert_int_equal(s.n, 0);
    safetensors_close(&s);
}

static void test_every_dtype(void **unused) {
    (void)unused;
    struct stored_tensor t[N_DTYPES];
    char names[N_DTYPES][16];
    memset(t, 0, sizeof t);
    for (int d = 0; d < N_DTYPES; d++) {
        snprintf(names[d], sizeof names[d], "t%d", d);
        t[d] = (struct stored_tensor){
            .name = names[d], .dtype = (enum dtype)d, .n_dims = 2, .dim = {3, 5}};
    }
    int64_t length;
    char *header = safetensors_header(N_DTYPES, t, NULL, &length);
    assert_int_equal(length % 64, 0);
    const char *path = scratch("dtypes");
    FILE *f = fopen(path, "wb");
    fwrite(header, 1, (size_t)length, f);
    int64_t end = t[N_DTYPES - 1].begin + t[N_DTYPES - 1].bytes;
    for (int64_t i = length; i < end; i++) fputc(0, f);
    fclose(f);
    free(header);
    struct safetensors s;
    accepted(&s, path);
    assert_int_equal(s.n, N_DTYPES);
    for (int d = 0; d < N_DTYPES; d++) {
        assert_string_equal(s.tensor[d].name, names[d]);
        assert_int_equal(s.tensor[d].dtype, d);
        assert_int_equal(s.tensor[d].begin, t[d].begin);
        assert_int_equal(s.tensor[d].bytes, 15 * (int64_t)dtype_size((enum dtype)d));
    }
    safetensors_close(&s);
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* Bytes of a right file changed at random: whatever is accepted must lie inside the file. The
 * sanitizers look on. */
static void test_mutations(void **unused) {
    (void)unused;
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"},\"a.weight\":{\"dtype\":\"F32\","
                         "\"shape\":[2,3],\"data_offsets\":[0,24]},"
                         "\"b.bias\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";
    const char *pieces[] = {
        "0", "9223372036854775807", "-1", "[", "]", "{", "}", "\"", ",", "1e9", "null", "\\u0000"};
    unsigned char file[700];
    int right = 0;
    for (uint64_t k = 0; k < 4000; k++) {
        size_t n = strlen(header), size = 8 + n + 32;
        memset(file, 0, sizeof file);
        file[0] = (unsigned char)n;
        memcpy(file + 8, header, n);
        int changes = 1 + (int)(mix(k) % 3);
        for (int c = 0; c < changes && size > 0; c++) {
            uint64_t r = mix(k * 16 + (uint64_t)c + 1);
            size_t at = (r >> 8) % (r & 64 ? size : 8 + n);
            const char *piece = pieces[(r >> 40) % (sizeof pieces / sizeof *pieces)];
            if (r % 4 == 0) file[at] ^= (unsigned char)(1 << (r >> 32) % 8);
            else if (r % 4 == 1) file[at] = (unsigned char)(r >> 32);
            else if (r % 4 == 2) memcpy(file + at, piece, strlen(piece));
            else size = at;
        }
        const char *path = scratch("mutation");
        FILE *f = fopen(path, "wb");
        fwrite(file, 1, size, f);
        fclose(f);
        struct safetensors s;
        struct mistakes m = {0};
        int result = safetensors_open(&s, path, &m);
        assert_int_equal(result, m.n ? -1 : 0);
        int64_t at = s.data_begin;
        for (int i = 0; result == 0 && i < s.n; i++) {
            assert_int_equal(s.tensor[i].begin, at);
            at += s.tensor[i].bytes;
        }
        if (result == 0) {
            right++;
            assert_int_equal(at, size);
            safetensors_close(&s);
        }
        mistakes_free(&m);
    }
    assert_true(right > 20); /* else the mutations are too wild to reach the later checks */
}

static int damaged_write(const char *into) {
    if (mkdir(into, 0777) != 0) die("cannot make %s", into);
    for (int i = 0; i < N_DAMAGED; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", into, damaged[i].name);
        if (mkdir(path, 0777) != 0) die("cannot make %s", path);
        snprintf(path, sizeof path, "%s/%s/model.safetensors", into, damaged[i].name);
        file_put(path, damaged[i].length, damaged[i].header, damaged[i].data_bytes);
        snprintf(path, sizeof path, "%s/%s.expected", into, damaged[i].name);
        FILE *f = fopen(path, "w");
        fprintf(f, "%s\n", damaged[i].expected);
        fclose(f);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "damaged") == 0) return damaged_write(argv[2]);
    place_make(folder, sizeof folder, "safetensors");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_files),    cmocka_unit_test(test_not_files),
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_many_mistakes_are_few_lines),
        cmocka_unit_test(test_right_files),      cmocka_unit_test(test_every_dtype),
        cmocka_unit_test(test_mutations),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(folder);
    return result;
}
