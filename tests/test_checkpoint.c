/* Folders: the two forms that are read, all that is wrong with others, and saving that leaves
 * nothing half done. The exchange between ranks is tried by test_checkpoint_ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <signal.h>

#include <cmocka.h>

#include "io/checkpoint.h"
#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "tests/place.h"

static struct comm comm;
static char top[256], folder[300];

/* Each test has an empty folder, and paths in it. */
static int begin(void **unused) {
    (void)unused;
    static int number;
    snprintf(folder, sizeof folder, "%s/%d", top, number++);
    return mkdir(folder, 0777);
}

static const char *in(const char *name) {
    static char path[8][600];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* A file with F32 tensors of one number each. */
static void put_tensors(const char *path, int n, const char *const *names) {
    struct stored_tensor t[8];
    memset(t, 0, sizeof t);
    for (int i = 0; i < n; i++)
        t[i] = (struct stored_tensor){.name = die_strdup(names[i]), .dtype = F32};
    int64_t length;
    char *header = safetensors_header(n, t, NULL, &length);
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot write %s", path);
    fwrite(header, 1, (size_t)length, f);
    for (int i = 0; i < 4 * n; i++) fputc(i, f);
    if (fclose(f) != 0) die("cannot write %s", path);
    for (int i = 0; i < n; i++) free(t[i].name);
    free(header);
}
#define PUT(path, ...)                                                                             \
    put_tensors(path, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),                      \
                (const char *[]){__VA_ARGS__})

static bool said(const struct mistakes *m, const char *what) {
    for (int i = 0; i < m->n; i++)
        if (strstr(m->text[i], what)) return true;
    return false;
}

static void refused(const char *path, const char *expected) {
    struct checkpoint c;
    struct mistakes m = {0};
    assert_int_equal(checkpoint_open(&c, path, &m), -1);
    if (!said(&m, expected)) {
        mistakes_print(&m, stderr);
        fail_msg("expected: %s", expected);
    }
    mistakes_free(&m);
}

static struct checkpoint accepted(const char *path) {
    struct checkpoint c;
    struct mistakes m = {0};
    int result = checkpoint_open(&c, path, &m);
    if (result != 0) mistakes_print(&m, stderr);
    assert_int_equal(result, 0);
    return c;
}

static const char index_name[] = "model.safetensors.index.json";

static void test_forms(void **unused) {
    (void)unused;
    PUT(in("model.safetensors"), "b", "a");
    place_put_text(in("config.json"), "{\"x\": 1}");
    struct checkpoint c = accepted(folder);
    assert_int_equal(c.n, 2);
    assert_string_equal(c.tensor[0].name, "a");
    assert_string_equal(c.config, "{\"x\": 1}");
    assert_non_null(checkpoint_find(&c, "b"));
    assert_null(checkpoint_find(&c, "c"));
    assert_null(c.checksums[0].hash);
    struct mistakes m = {0};
    unsigned char number[4];
    assert_int_equal(checkpoint_read_whole(&c, checkpoint_find(&c, "a"), number, &m), 0);
    assert_int_equal(number[0], 4);
    checkpoint_close(&c);
    c = accepted(in("model.safetensors"));
    assert_int_equal(c.n, 2);
    assert_null(c.config);
    checkpoint_close(&c);
    char slash[400];
    snprintf(slash, sizeof slash, "%s///", folder);
    c = accepted(slash);
    assert_string_equal(c.folder, folder);
    checkpoint_close(&c);
}

static void test_shards(void **unused) {
    (void)unused;
    PUT(in("one.safetensors"), "a", "b");
    PUT(in("two.safetensors"), "c", "kept");
    place_put_text(in(index_name),
                   "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"a\":\"one.safetensors\","
                   "\"b\":\"one.safetensors\",\"c\":\"two.safetensors\"}}");
    refused(folder, "does not name tensor kept, which two.safetensors holds");
    place_put_text(in(index_name),
                   "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\","
                   "\"c\":\"two.safetensors\",\"kept\":\"two.safetensors\"}}");
    struct checkpoint c = accepted(folder);
    assert_int_equal(c.n, 4);
    assert_int_equal(c.n_files, 2);
    assert_int_equal(checkpoint_find(&c, "a")->file, 0);
    assert_int_equal(checkpoint_find(&c, "kept")->file, 1);
    checkpoint_close(&c);
}

static void test_wrong_index(void **unused) {
    (void)unused;
    PUT(in("one.safetensors"), "a", "b");
    PUT(in("two.safetensors"), "b", "c");
    const char *path = in(index_name);
    place_put_text(path,
                   "{\"weight_map\":{\"a\":\"one.safetensors\",\"z.weight\":\"one.safetensors\"}}");
    refused(folder, "tensor z.weight is said to be in one.safetensors, which does not hold it");
    place_put_text(path,
                   "{\"weight_map\":{\"a\":\"one.safetensors\",\"x\":\"three.safetensors\"}}");
    refused(folder,
            "three.safetensors: is absent; the index says it holds 1 tensors, x among them");
    place_put_text(path, "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}");
    refused(folder, "tensor b is in two shards, one.safetensors and two.safetensors");
    PUT(in("two.safetensors"), "c");
    place_put_text(
        path, "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"one.safetensors\",\"b\":\"two."
              "safetensors\"}}");
    refused(folder, "tensor c is said to be in one.safetensors, but it is in two.safetensors");
    place_put_text(path, "{\"weight_map\":{\"a\":\"../one.safetensors\"}}");
    refused(folder, "../one.safetensors is not the plain name of a file");
    place_put_text(path, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}");
    refused(folder, "/etc/passwd is not the plain name of a file");
    place_put_text(path, "{\"weight_map\":{\"a\":\"..\"}}");
    refused(folder, ".. is not the plain name of a file");
    place_put_text(path, "{\"weight_map\":{\"a\":3}}");
    refused(folder, "tensor a: its file is not a text");
    place_put_text(path, "{\"weight_map\":[]}");
    refused(folder, "has no weight_map");
    place_put_text(path, "{\"weight_map\":{}}");
    refused(folder, "its weight_map names no tensor");
    place_put_text(path, "[]");
    refused(folder, "has no weight_map");
    place_put_text(path, "{\"weight_map\":{\"a\":\"one.saf");
    refused(folder, "is not JSON");
    place_put_text(path, "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\"}}");
    refused(folder, "duplicate object key");
    place_put_text(path, "");
    refused(folder, "is not JSON");
    place_put_text(in("one.safetensors"), "");
    place_put_text(path, "{\"weight_map\":{\"a\":\"one.safetensors\"}}");
    refused(folder, "one.safetensors: has 0 bytes");
}

static void test_other_folders(void **unused) {
    (void)unused;
    refused(in("absent"), "No such file or directory; expected a Hugging Face folder");
    refused(folder, "holds no checkpoint: expected model.safetensors");
    place_put_text(in("pytorch_model.bin"), "");
    refused(folder, "holds a pickled checkpoint");
    place_put_text(in("latest_checkpointed_iteration.txt"), "1");
    refused(folder, "is a Megatron checkpoint");
    PUT(in("consolidated.safetensors"), "a");
    refused(folder, "consolidated.safetensors among them");
    assert_int_equal(mkdir(in("model.safetensors"), 0777), 0);
    refused(folder, "model.safetensors: is a folder");
    assert_int_equal(mkfifo(in("pipe"), 0600), 0);
    refused(in("pipe"), "is not a regular file");
}

static void test_wrong_texts(void **unused) {
    (void)unused;
    PUT(in("model.safetensors"), "a");
    assert_int_equal(mkdir(in("config.json"), 0777), 0);
    refused(folder, "config.json: is a folder");
    rmdir(in("config.json"));
    FILE *f = fopen(in("config.json"), "wb");
    fwrite("{\0}", 1, 3, f);
    fclose(f);
    refused(folder, "holds a NUL byte");
    truncate(in("config.json"), (1 << 24) + 1);
    refused(folder, "more than the 16777216 that are read");
    unlink(in("config.json"));
    const char *sums = in("checksums.json");
    place_put_text(sums, "{");
    refused(folder, "checksums.json: is not JSON");
    place_put_text(sums, "{\"algorithm\":\"MD5\",\"files\":{}}");
    refused(folder, "is not a list of XXH3-64 checksums");
    const char *bad[] = {"[]",
                         "{\"bytes\":132}",
                         "{\"bytes\":132,\"block_bytes\":1,\"blocks\":[]}",
                         "{\"bytes\":132,\"block_bytes\":64,\"blocks\":[]}",
                         "{\"bytes\":-1,\"block_bytes\":64,\"blocks\":[]}",
                         "{\"bytes\":9223372036854775807,\"block_bytes\":64,\"blocks\":[]}",
                         "{\"bytes\":132,\"block_bytes\":256,\"blocks\":[\"zz\"]}",
                         "{\"bytes\":132,\"block_bytes\":256,\"blocks\":[7]}"};
    struct checkpoint c = accepted(in("model.safetensors"));
    int64_t size = c.file[0].size;
    checkpoint_close(&c);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[300], entry[200], *at;
        snprintf(entry, sizeof entry, "%s", bad[i]);
        if ((at = strstr(entry, "132"))) {
            char *rest = die_strdup(at + 3);
            snprintf(at, sizeof entry - (size_t)(at - entry), "%lld%s", (long long)size, rest);
            free(rest);
        }
        snprintf(text, sizeof text,
                 "{\"algorithm\":\"XXH3-64\",\"files\":{\"model.safetensors\":%s}}", entry);
        place_put_text(sums, text);
        refused(folder, "what it says of model.safetensors cannot be understood");
    }
    place_put_text(
        sums, "{\"algorithm\":\"XXH3-64\",\"files\":{\"model.safetensors\":{\"bytes\":1,\"block_"
              "bytes\":64,"
              "\"blocks\":[\"0123456789abcdef\"]}}}");
    c = accepted(folder); /* of another file of that name: no word about this one */
    assert_null(c.checksums[0].hash);
    checkpoint_close(&c);
}

static float numbers[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const struct new_tensor two[] = {{"a", BF16, 1, {3}, NULL, 0},
                                        {"b", F32, 2, {2, 3}, NULL, 0}};
static const struct box boxes[] = {{0, 0, 3, 0, 1, 0, 3, numbers, 3, F32},
                                   {1, 0, 3, 0, 2, 0, 3, numbers + 3, 3, F32}};
static const struct new_file config = {"config.json", "{}\n", 3};

static void save(const char *path, int n_boxes, const struct box *b) {
    checkpoint_write(path, comm.world, 2, two, n_boxes, b, 1, &config, 0, NULL);
}

static bool there(const char *name) {
    return file_exists(in(name));
}

static void check_saved(const char *path) {
    struct checkpoint c = accepted(path);
    struct mistakes m = {0};
    float got[6];
    assert_int_equal(c.n, 2);
    struct box b = {1, 0, 3, 0, 2, 0, 3, got, 3, F32};
    assert_int_equal(checkpoint_read(&c, comm.world, 1, &b, &m), 0);
    assert_memory_equal(got, numbers + 3, sizeof got);
    checkpoint_close(&c);
}

static void test_save(void **unused) {
    (void)unused;
    save(in("new/deep/model"), 2, boxes);
    check_saved(in("new/deep/model"));
    struct checkpoint c = accepted(in("new/deep/model"));
    assert_string_equal(c.config, "{}\n");
    assert_non_null(c.checksums[0].hash);
    /* Wider dtypes first, so that every number is aligned. */
    assert_string_equal(c.file[0].tensor[0].name, "b");
    assert_int_equal(c.file[0].tensor[0].begin % 64, 0);
    checkpoint_close(&c);
    assert_false(there("new/deep/model.tmp"));
    assert_false(there("new/deep/model/.mestar-is-writing"));
}

static void test_replace(void **unused) {
    (void)unused;
    save(in("m"), 2, boxes);
    save(in("m"), 2, boxes);
    check_saved(in("m"));
    assert_false(there("m.tmp"));
    assert_false(there("m.old"));
    place_put_text(in("m/notes.txt"), "mine"); /* a person's file among ours is kept */
    PUT(in("m/model-00001-of-00002.safetensors"), "x");
    save(in("m"), 2, boxes);
    check_saved(in("m"));
    assert_true(there("m.old/notes.txt"));
    assert_false(there("m.old/model.safetensors"));
    assert_false(there("m/notes.txt"));
    assert_false(there("m/model-00001-of-00002.safetensors"));
    place_put_text(in("m/notes.txt"), "mine");
    save(in("m"), 2, boxes);
    assert_true(there("m.old-2/notes.txt"));
    /* Through a link. */
    assert_int_equal(symlink("m", in("link")), 0);
    save(in("link"), 2, boxes);
    check_saved(in("m"));
    struct stat s;
    assert_int_equal(lstat(in("link"), &s), 0);
    assert_true(S_ISLNK(s.st_mode));
    save(in("x.safetensors"), 2, boxes);
    save(in("x.safetensors"), 2, boxes);
    check_saved(in("x.safetensors"));
    assert_false(there("x.safetensors.tmp"));
}

static void test_leftovers(void **unused) {
    (void)unused;
    mkdir(in("m.tmp"), 0777);
    place_put_text(in("m.tmp/.mestar-is-writing"), "");
    place_put_text(in("m.tmp/model-00001-of-00003.safetensors"), "half");
    place_put_text(in("m.tmp/anything"), "");
    save(in("m"), 2, boxes);
    check_saved(in("m"));
    assert_false(there("m/anything"));
    place_put_text(in("x.safetensors.tmp"), "half");
    save(in("x.safetensors"), 2, boxes);
    check_saved(in("x.safetensors"));
}

/* What a child says and how it ends. */
struct ending {
    int code;
    char text[4000];
};

static struct ending ends(void (*act)(void)) {
    struct ending e = {-1, ""};
    int pipe_ends[2], status;
    assert_int_equal(pipe(pipe_ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipe_ends[1], 2);
        close(pipe_ends[0]);
        close(pipe_ends[1]);
        die_set_hooks(NULL, _exit); /* leaves what cmocka registered alone */
        act();
        _exit(0);
    }
    close(pipe_ends[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(pipe_ends[0], e.text + used, sizeof e.text - 1 - used)) > 0;)
        used += (size_t)n;
    e.text[used] = 0;
    close(pipe_ends[0]);
    waitpid(child, &status, 0);
    e.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    return e;
}

static void dies(void (*act)(void), const char *expected) {
    struct ending e = ends(act);
    if (e.code != 1 || !strstr(e.text, expected))
        fail_msg("ended with %d: %s\nexpected: %s", e.code, e.text, expected);
}

static void save_m(void) {
    save(in("m"), 2, boxes);
}

static void test_in_the_way(void **unused) {
    (void)unused;
    mkdir(in("m"), 0777);
    save(in("m"), 2, boxes); /* an empty folder is nobody's */
    check_saved(in("m"));
    folder_remove(in("m"));
    mkdir(in("m"), 0777);
    place_put_text(in("m/thesis.tex"), "");
    dies(save_m, "holds no checkpoint; it is not replaced");
    assert_true(there("m/thesis.tex"));
    assert_false(there("m.tmp"));
    folder_remove(in("m"));
    place_put_text(in("m"), "a file");
    dies(save_m, "is not a folder");
    unlink(in("m"));
    mkdir(in("m.tmp"), 0777);
    place_put_text(in("m.tmp/thesis.tex"), "");
    dies(save_m, "is in the way and not left by an earlier save");
    assert_true(there("m.tmp/thesis.tex"));
}

static void save_limited(void) {
    struct rlimit limit = {200, 200};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    save_m();
}

static void test_no_room(void **unused) {
    (void)unused;
    dies(save_limited, "make room there or save elsewhere");
    assert_false(there("m"));
    save(in("m"), 2, boxes); /* over what the failure left */
    check_saved(in("m"));
    struct checkpoint c = accepted(in("m"));
    dies(save_limited, "Nothing older was touched");
    check_saved(in("m"));
    checkpoint_close(&c);
    save(in("m"), 2, boxes);
    assert_false(there("m.tmp"));
}

static void save_hole(void) {
    struct box b[2] = {boxes[0], boxes[1]};
    b[1].columns = 2;
    save(in("m"), 2, b);
}
static void save_twice(void) {
    struct box b[3] = {boxes[0], boxes[1], boxes[1]};
    b[2].rows = 1;
    save(in("m"), 3, b);
}
static void save_outside(void) {
    struct box b[2] = {boxes[0], boxes[1]};
    b[1].rows = 3;
    save(in("m"), 2, b);
}
static void save_reserved(void) {
    const struct new_file file = {"checksums.json", "", 0};
    checkpoint_write(in("m"), comm.world, 2, two, 2, boxes, 1, &file, 0, NULL);
}
static void save_name_twice(void) {
    const struct new_tensor t[] = {two[0], two[0]};
    checkpoint_write(in("m"), comm.world, 2, t, 2, boxes, 0, NULL, 0, NULL);
}

static void test_our_own_mistakes(void **unused) {
    (void)unused;
    dies(save_hole, "nobody supplies byte");
    dies(save_twice, "are supplied twice");
    dies(save_outside, "reaches past the end of tensor b");
    dies(save_reserved, "checksums.json cannot be a file beside the tensors");
    dies(save_name_twice, "two new tensors have the same name");
    assert_false(there("m"));
}

static void copy_damaged(void) {
    struct checkpoint c;
    struct mistakes m = {0};
    if (checkpoint_open(&c, in("m"), &m) != 0) die("not opened");
    struct new_tensor t = {"b", F32, 2, {2, 3}, &c, 1};
    checkpoint_write(in("copy"), comm.world, 1, &t, 0, NULL, 0, NULL, 0, NULL);
}

/* A damaged tensor is not copied and given a new, right checksum. */
static void test_copy_verifies(void **unused) {
    (void)unused;
    save(in("m"), 2, boxes);
    struct checkpoint c = accepted(in("m"));
    int64_t at = checkpoint_find(&c, "b")->begin;
    checkpoint_close(&c);
    FILE *f = fopen(in("m/model.safetensors"), "r+b");
    fseek(f, at, SEEK_SET);
    fputc(1, f);
    fclose(f);
    dies(copy_damaged, "do not have the checksum they were written with");
    assert_false(there("copy"));
}

/* What a folder's files say of themselves is said by what is written from it. */
static void test_metadata(void **unused) {
    (void)unused;
    json_t *said_first = json_pack("{s:s,s:s}", "made by", "a friend", "format", "np");
    json_t *said_second = json_pack("{s:s,s:s}", "made by", "another", "licence", "free");
    PUT(in("model.safetensors"), "a");
    struct checkpoint like = accepted(folder);
    like.file = die_realloc(like.file, 2 * sizeof *like.file);
    json_decref(like.file[0].metadata);
    like.file[0].metadata = said_first;
    like.file[1] = (struct safetensors){.fd = -1, .metadata = said_second};
    like.n_files = 2;
    checkpoint_write(in("m"), comm.world, 2, two, 2, boxes, 0, NULL, 0, &like);
    struct checkpoint c = accepted(in("m"));
    json_t *want =
        json_pack("{s:s,s:s,s:s}", "made by", "a friend", "licence", "free", "format", "pt");
    assert_true(json_equal(c.file[0].metadata, want));
    json_decref(want);
    checkpoint_close(&c);
    json_decref(said_second);
    like.n_files = 1;
    checkpoint_close(&like);
}

static void test_link_to_nowhere(void **unused) {
    (void)unused;
    assert_int_equal(symlink("/nowhere/blob", in("model.safetensors")), 0);
    refused(folder, "is a link to a file that is not there");
}

int main(void) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) die("%s", m.text[0]);
    place_make(top, sizeof top, "folders");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_forms, begin),
        cmocka_unit_test_setup(test_shards, begin),
        cmocka_unit_test_setup(test_wrong_index, begin),
        cmocka_unit_test_setup(test_other_folders, begin),
        cmocka_unit_test_setup(test_wrong_texts, begin),
        cmocka_unit_test_setup(test_save, begin),
        cmocka_unit_test_setup(test_replace, begin),
        cmocka_unit_test_setup(test_leftovers, begin),
        cmocka_unit_test_setup(test_in_the_way, begin),
        cmocka_unit_test_setup(test_no_room, begin),
        cmocka_unit_test_setup(test_our_own_mistakes, begin),
        cmocka_unit_test_setup(test_copy_verifies, begin),
        cmocka_unit_test_setup(test_metadata, begin),
        cmocka_unit_test_setup(test_link_to_nowhere, begin),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(top);
    comm_end(&comm);
    return result;
}
