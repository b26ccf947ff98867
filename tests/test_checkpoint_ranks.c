/* Checkpoints written and read by several ranks, against bytes that this program makes itself.
 *
 *     mpirun -n N test_checkpoint_ranks [SEED]
 *
 * The tensors are cut at random into boxes (rows, columns, slices of fused tensors) that lie at
 * random ranks with random strides and dtypes; blocks and windows are made small, so that
 * everything is cut everywhere. The files must not depend on N: a group of one rank writes them
 * too, and the bytes are compared. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/checkpoint.h"
#include "io/exchange.h"
#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "tests/place.h"

enum { TENSORS = 14, BOXES = 400, GUARD = 0x5a };

static struct comm comm;
static struct group *world, *alone;
static int failed;
static char folder[256];
static uint64_t state;

static struct new_tensor table[TENSORS];
static unsigned char *raw[TENSORS]; /* what the files must hold */

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static int64_t below(int64_t n) {
    return (int64_t)(mix(state++) >> 1) % n;
}

/* One line a promise, said by rank 0; any rank may have found it broken. */
static void promise(bool good, const char *what, const char *detail) {
    bool bad = comm_max(world, !good) != 0;
    failed += bad;
    if (!good) printf("FAIL %s: rank %d, %s\n", what, comm.rank, detail);
    else if (comm.rank == 0 && !bad) printf("ok %s\n", what);
    fflush(stdout);
}

static int64_t elements(int i) {
    int64_t n = 1;
    for (int k = 0; k < table[i].n_dims; k++) n *= table[i].dim[k];
    return n;
}

/* Bits that every dtype in question keeps when widened and narrowed again: no NaN. */
static void raw_fill(int i) {
    int64_t n = elements(i), size = (int64_t)dtype_size(table[i].dtype);
    raw[i] = die_alloc((unsigned long)(n * size));
    for (int64_t k = 0; k < n; k++) {
        uint64_t bits = mix((uint64_t)i << 32 ^ (uint64_t)k);
        if (table[i].dtype == F32) bits &= 0xbfffffff;
        if (table[i].dtype == F64) bits &= 0xbfffffffffffffff;
        if (table[i].dtype == BF16) bits &= 0xbfff;
        if (table[i].dtype == F16) bits &= 0xbfff;
        if (table[i].dtype == BOOL) bits &= 1;
        memcpy(raw[i] + k * size, &bits, (size_t)size);
    }
}

static void table_make(void) {
    const struct new_tensor all[TENSORS] = {
        {"a.weight", F32, 2, {13, 29}, NULL, 0},
        {"b.in_proj", BF16, 2, {37, 11}, NULL, 0},
        {"c.odd", BF16, 1, {7}, NULL, 0},
        {"d.bias", F32, 1, {31}, NULL, 0},
        {"e.experts", F16, 3, {5, 6, 7}, NULL, 0},
        {"f.ids", I64, 2, {3, 4}, NULL, 0},
        {"g.scalar", F32, 0, {0}, NULL, 0},
        {"h.empty", BF16, 2, {0, 9}, NULL, 0},
        {"i.mask", U8, 1, {101}, NULL, 0},
        {"j.double", F64, 2, {9, 5}, NULL, 0},
        {"k.conv", BF16, 3, {24, 1, 4}, NULL, 0},
        {"l.flag", BOOL, 1, {3}, NULL, 0},
        {"m.embeddings", F32, 2, {97, 8}, NULL, 0},
        {"\xc3\xa9t\xc3\xa9 \"n\"", F16, 1, {50}, NULL, 0},
    };
    memcpy(table, all, sizeof all);
    for (int i = 0; i < TENSORS; i++) raw_fill(i);
}

struct held {
    struct box box;
    unsigned char *memory;
    int64_t bytes;
};
static struct held held[BOXES];
static int n_held;

static void box_hold(struct box b, const enum dtype stored) {
    if (n_held == BOXES) die("too many boxes");
    b.dtype = stored;
    if (dtype_is_real(stored) && stored != F64 && below(3)) b.dtype = below(3) ? F32 : F64;
    b.stride = b.columns + (below(2) ? below(4) : 0);
    struct held *h = &held[n_held++];
    h->bytes = (b.rows * b.stride + 1) * (int64_t)dtype_size(b.dtype);
    h->memory = die_alloc((unsigned long)h->bytes);
    memset(h->memory, GUARD, (size_t)h->bytes);
    b.memory = h->memory;
    h->box = b;
}

/* Cuts a box in two until it is small or luck ends it; the parts go to random ranks of n. */
static void cut_at_random(struct box b, int i, int n, int rank, int depth) {
    if (depth > 0 && b.rows * b.columns > 1 && below(5)) {
        struct box c = b;
        if (b.rows > 1 && (b.columns < 2 || below(2))) {
            b.rows = 1 + below(b.rows - 1);
            c.row += b.rows;
            c.rows -= b.rows;
        } else {
            b.columns = 1 + below(b.columns - 1);
            c.column += b.columns;
            c.columns -= b.columns;
        }
        cut_at_random(b, i, n, rank, depth - 1);
        cut_at_random(c, i, n, rank, depth - 1);
        return;
    }
    bool mine = below(n) == rank;
    uint64_t kept = state;
    if (mine) box_hold(b, table[i].dtype);
    state = kept + 8; /* all ranks go on with the same numbers */
}

/* All numbers of tensor i exactly once over the ranks: segments one after the other, each a matrix
 * of a width of its own. */
static void tensor_cut(int i, int n, int rank) {
    int64_t all = elements(i);
    for (int64_t first = 0; first < all;) {
        int64_t take = below(2) ? all - first : 1 + below(all - first), width = 1 + below(20);
        if (width > take) width = take;
        take = take / width * width;
        struct box b = {
            .tensor = i, .first = first, .width = width, .rows = take / width, .columns = width};
        cut_at_random(b, i, n, rank, 4);
        first += take;
    }
}

/* Any box at all, for reading. */
static void box_any(int i) {
    int64_t all = elements(i);
    if (all == 0) return;
    int64_t width = 1 + below(all), high = all / width;
    struct box b = {.tensor = i, .width = width, .first = below(all - width * high + 1)};
    b.row = below(high);
    b.rows = 1 + below(high - b.row);
    b.column = below(width);
    b.columns = 1 + below(width - b.column);
    box_hold(b, table[i].dtype);
}

static void held_free(void) {
    for (int k = 0; k < n_held; k++) free(held[k].memory);
    n_held = 0;
}

static void held_boxes(struct box *boxes) {
    for (int k = 0; k < n_held; k++) boxes[k] = held[k].box;
}

static unsigned char *number_at(const struct box *b, int64_t i, int64_t j) {
    return (unsigned char *)b->memory + (size_t)(i * b->stride + j) * dtype_size(b->dtype);
}

static const unsigned char *raw_at(const struct box *b, int64_t i, int64_t j) {
    return raw[b->tensor] + (size_t)(b->first + (b->row + i) * b->width + b->column + j) *
                                dtype_size(table[b->tensor].dtype);
}

static void number_convert(void *to, enum dtype d, const void *from, enum dtype s) {
    if (d == s) memcpy(to, from, dtype_size(s));
    else dtype_convert(to, d, from, s, 1);
}

static void held_fill(void) {
    for (int k = 0; k < n_held; k++)
        for (int64_t i = 0; i < held[k].box.rows; i++)
            for (int64_t j = 0; j < held[k].box.columns; j++)
                number_convert(number_at(&held[k].box, i, j), held[k].box.dtype,
                               raw_at(&held[k].box, i, j), table[held[k].box.tensor].dtype);
}

/* Every number as it must be, every byte between rows as it was. */
static bool held_right(char *detail, size_t room) {
    for (int k = 0; k < n_held; k++) {
        const struct box *b = &held[k].box;
        unsigned char *want = die_alloc((unsigned long)held[k].bytes);
        memset(want, GUARD, (size_t)held[k].bytes);
        struct box w = *b;
        w.memory = want;
        for (int64_t i = 0; i < b->rows; i++)
            for (int64_t j = 0; j < b->columns; j++)
                number_convert(number_at(&w, i, j), b->dtype, raw_at(b, i, j),
                               table[b->tensor].dtype);
        bool right = memcmp(want, held[k].memory, (size_t)held[k].bytes) == 0;
        free(want);
        if (right) continue;
        snprintf(detail, room, "a box of %s, %lld x %lld in %s", table[b->tensor].name,
                 (long long)b->rows, (long long)b->columns, dtype_name(b->dtype));
        return false;
    }
    return true;
}

static void write_by(struct group *g, const char *path, int64_t shard_bytes,
                     const struct checkpoint *from) {
    static const struct new_file config = {"config.json", "{\"a\": 1}\n", 9};
    struct new_tensor t[TENSORS];
    struct box boxes[BOXES];
    memcpy(t, table, sizeof t);
    for (int i = 0; i < TENSORS; i++) {
        if (from && i % 3 == 0) {
            const struct stored_tensor *s = checkpoint_find(from, t[i].name);
            t[i].from = from;
            t[i].from_tensor = (int)(s - from->tensor);
        } else {
            tensor_cut(i, g->size, g->rank);
        }
    }
    held_fill();
    held_boxes(boxes);
    checkpoint_write(path, g, TENSORS, t, n_held, boxes, 1, &config, shard_bytes, NULL);
    held_free();
}

static bool same_file(const char *a, const char *b) {
    char why[WHY_BYTES];
    int64_t n = -1, k = -2;
    char *x = file_text(a, 1 << 24, &n, why), *y = file_text(b, 1 << 24, &k, why);
    bool same = x && y && n == k && memcmp(x, y, (size_t)n) == 0;
    free(x);
    free(y);
    return same;
}

static bool same_folder(const char *a, const char *b, char *detail, size_t room) {
    char command[1200];
    snprintf(command, sizeof command, "diff -r '%s' '%s' >&2", a, b);
    snprintf(detail, room, "%s and %s differ", a, b);
    return system(command) == 0;
}

static void read_by(struct group *g, const char *path, const char *what) {
    struct checkpoint c;
    struct mistakes m = {0};
    struct box boxes[BOXES];
    char detail[256] = "cannot be opened";
    bool good = checkpoint_open(&c, path, &m) == 0;
    uint64_t kept = state;
    state +=
        (uint64_t)g->rank << 20; /* each rank wants boxes of its own, that overlap the others' */
    for (int k = 0; k < 60; k++) box_any((int)below(TENSORS));
    state = kept + 1000;
    held_boxes(boxes);
    for (int k = 0; k < n_held && good; k++)
        boxes[k].tensor = (int)(checkpoint_find(&c, table[boxes[k].tensor].name) - c.tensor);
    if (good) {
        good = checkpoint_read(&c, g, n_held, boxes, &m) == 0;
        snprintf(detail, sizeof detail, "read returns -1");
        good = good && m.n == 0 && held_right(detail, sizeof detail);
        checkpoint_close(&c);
    }
    if (comm.rank == 0) mistakes_print(&m, stdout);
    mistakes_free(&m);
    held_free();
    promise(good, what, detail);
}

static void any_cut_same_bytes(void) {
    const struct {
        int64_t block, window, shard;
    } all[] = {{64, 64, 0},
               {192, 1 << 20, 700},
               {4096, 640, 0},
               {320, 128, 1},
               {8 << 20, 256 << 20, 1500}};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        char a[300], b[300], what[100], detail[700];
        snprintf(a, sizeof a, "%s/world-%zu", folder, k);
        snprintf(b, sizeof b, "%s/alone-%zu", folder, k);
        snprintf(what, sizeof what, "blocks of %lld, windows of %lld, shards of %lld",
                 (long long)all[k].block, (long long)all[k].window, (long long)all[k].shard);
        checkpoint_block_bytes = all[k].block;
        exchange_window_bytes = all[k].window;
        write_by(world, a, all[k].shard, NULL);
        uint64_t kept = state;
        if (comm.rank == 0) write_by(alone, b, all[k].shard, NULL);
        state = kept + 100000;
        bool good = comm.rank != 0 || same_folder(a, b, detail, sizeof detail);
        char name[160];
        snprintf(name, sizeof name, "same bytes as by one rank: %s", what);
        promise(good, name, detail);
        checkpoint_block_bytes = 64 + 64 * below(5);
        snprintf(name, sizeof name, "what was written is read back: %s", what);
        read_by(world, a, name);
    }
}

static void single_file(void) {
    char a[300], b[300];
    snprintf(a, sizeof a, "%s/world.safetensors", folder);
    snprintf(b, sizeof b, "%s/world-0/model.safetensors", folder);
    checkpoint_block_bytes = 128;
    write_by(world, a, 0, NULL);
    promise(comm.rank != 0 || same_file(a, b), "a single file has the bytes of the one in a folder",
            a);
    read_by(world, a, "a single file is read");
}

static void copied(void) {
    char a[300], b[300], detail[700];
    struct checkpoint c;
    struct mistakes m = {0};
    snprintf(b, sizeof b, "%s/world-1", folder);
    if (checkpoint_open(&c, b, &m) != 0) die("%s", m.text[0]);
    checkpoint_block_bytes = 192;
    snprintf(a, sizeof a, "%s/copied", folder);
    write_by(world, a, 700, &c);
    promise(comm.rank != 0 || same_folder(a, b, detail, sizeof detail),
            "tensors copied from another folder", detail);
    write_by(world, b, 700, &c);
    promise(comm.rank != 0 || same_folder(a, b, detail, sizeof detail),
            "a folder replaced by itself", detail);
    checkpoint_close(&c);
}

/* As a program might write it that knows nothing of alignment: numbers are cut by blocks. */
static void foreign_file(void) {
    char path[300], *text = die_format("{");
    int64_t at = 0;
    for (int i = 0; i < TENSORS - 1; i++) {
        char shape[64] = "";
        for (int k = 0; k < table[i].n_dims; k++)
            snprintf(shape + strlen(shape), 20, "%s%lld", k ? "," : "", (long long)table[i].dim[k]);
        int64_t bytes = elements(i) * (int64_t)dtype_size(table[i].dtype);
        char *more =
            die_format("%s%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lld,%lld]}",
                       text, i ? "," : "", table[i].name, dtype_name(table[i].dtype), shape,
                       (long long)at, (long long)(at + bytes));
        free(text);
        text = more;
        at += bytes;
    }
    char *header =
        die_format("%s,\"%s\":{\"dtype\":\"F16\",\"shape\":[50],\"data_offsets\":[%lld,%lld]}}",
                   text, "\xc3\xa9t\xc3\xa9 \\\"n\\\"", (long long)at, (long long)at + 100);
    int64_t length = (int64_t)strlen(header);
    if (length % 2 == 0) length++;
    snprintf(path, sizeof path, "%s/foreign.safetensors", folder);
    if (comm.rank == 0) {
        FILE *f = fopen(path, "wb");
        for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), f);
        fprintf(f, "%-*s", (int)length, header);
        for (int i = 0; i < TENSORS; i++)
            fwrite(raw[i], dtype_size(table[i].dtype), (size_t)elements(i), f);
        if (fclose(f) != 0) die("cannot write %s", path);
    }
    comm_barrier(world);
    free(header);
    free(text);
    const int64_t blocks[] = {64, 128, 1 << 20};
    for (int k = 0; k < 3; k++) {
        checkpoint_block_bytes = blocks[k];
        exchange_window_bytes = 64 << below(8);
        read_by(world, path,
                k ? "unaligned numbers, larger blocks" : "unaligned numbers, cut by blocks");
    }
}

static bool said(const struct mistakes *m, const char *what) {
    for (int i = 0; i < m->n; i++)
        if (strstr(m->text[i], what)) return true;
    return false;
}

/* One flipped bit in the tensor that rank 0 alone reads: all ranks must hear of it. */
static void damage_is_found(void) {
    char path[300], file[400];
    struct checkpoint c;
    struct mistakes m = {0};
    checkpoint_block_bytes = 64;
    snprintf(path, sizeof path, "%s/damaged", folder);
    write_by(world, path, 0, NULL);
    if (checkpoint_open(&c, path, &m) != 0) die("%s", m.text[0]);
    const struct stored_tensor *t = checkpoint_find(&c, "k.conv");
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    if (comm.rank == 0) {
        FILE *f = fopen(file, "r+b");
        fseek(f, t->begin + 60, SEEK_SET);
        fputc(raw[10][60] ^ 4, f);
        if (fclose(f) != 0) die("cannot write %s", file);
    }
    comm_barrier(world);
    float number[96];
    struct box b = {(int)(t - c.tensor), 0, 96, 0, 1, 0, 96, number, 96, F32};
    int result = checkpoint_read(&c, world, comm.rank == 0, &b, &m);
    promise(result == -1 && m.n == 1 && said(&m, "in tensor") && said(&m, "k.conv") &&
                said(&m, file),
            "a flipped bit is found, and told to all ranks", m.n ? m.text[0] : "not found");
    t = checkpoint_find(&c, "a.weight");
    b = (struct box){(int)(t - c.tensor), 0, 29, 0, 1, 0, 29, number, 29, F32};
    struct mistakes none = {0};
    result = checkpoint_read(&c, world, 1, &b, &none);
    promise(result == 0 && none.n == 0 && memcmp(number, raw[0], 29 * 4) == 0,
            "the other tensors of a damaged file can be read", none.n ? none.text[0] : "");
    mistakes_free(&m);
    checkpoint_close(&c);
}

int main(int argc, char **argv) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) {
        mistakes_print(&m, stderr);
        return 2;
    }
    world = comm.world;
    alone = group_new(&comm, "alone", 1, &comm.rank);
    state = argc > 1 ? strtoull(argv[1], NULL, 10) << 32 : 1;
    if (comm.rank == 0) place_make(folder, sizeof folder, "checkpoint");
    comm_broadcast(world, folder, sizeof folder, 0);
    table_make();
    any_cut_same_bytes();
    single_file();
    copied();
    foreign_file();
    damage_is_found();
    comm_barrier(world);
    if (comm.rank == 0) folder_remove(folder);
    for (int i = 0; i < TENSORS; i++) free(raw[i]);
    group_free(alone);
    comm_end(&comm);
    return failed != 0;
}
