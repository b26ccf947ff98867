#include "io/exchange.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/comm.h"

int64_t exchange_window_bytes = (int64_t)256 << 20;

enum { STEP_UNIT = 64 }; /* windows end where no number of an aligned file is cut */

void cut_init(struct cut *c, int n_files) {
    c->n_files = n_files;
    c->size = die_alloc((unsigned long)n_files * sizeof *c->size);
    c->block_bytes = die_alloc((unsigned long)n_files * sizeof *c->block_bytes);
    c->first = die_alloc(((unsigned long)n_files + 1) * sizeof *c->first);
}

void cut_number(struct cut *c) {
    for (int f = 0; f < c->n_files; f++)
        c->first[f + 1] = c->first[f] + (c->size[f] + c->block_bytes[f] - 1) / c->block_bytes[f];
}

void cut_free(struct cut *c) {
    free(c->size);
    free(c->block_bytes);
    free(c->first);
}

struct block cut_block(const struct cut *c, int64_t number) {
    struct block b = {-1, 0, 0};
    if (number >= c->first[c->n_files]) return b;
    int lo = 0, hi = c->n_files; /* first[lo] <= number < first[hi] */
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (c->first[mid] <= number) lo = mid;
        else hi = mid;
    }
    b.file = lo;
    b.begin = (number - c->first[lo]) * c->block_bytes[lo];
    b.end = b.begin + c->block_bytes[lo];
    if (b.end > c->size[lo]) b.end = c->size[lo];
    return b;
}

struct place place_of(const struct box *b, const struct stored_tensor *t) {
    int64_t rows_end, last;
    if (b->first < 0 || b->width < 0 || b->row < 0 || b->rows < 0 || b->column < 0 ||
        b->columns < 0 || b->column > b->width - b->columns ||
        __builtin_add_overflow(b->row, b->rows, &rows_end) ||
        __builtin_mul_overflow(rows_end, b->width, &last) ||
        __builtin_add_overflow(last, b->first, &last))
        bug("a box of tensor %s is not a box", t->name);
    bool empty = b->rows == 0 || b->columns == 0;
    if (!empty && last > t->elements) bug("a box reaches past the end of tensor %s", t->name);
    if (b->dtype != t->dtype && !(dtype_is_real(b->dtype) && dtype_is_real(t->dtype)))
        bug("tensor %s: %s cannot become %s", t->name, dtype_name(t->dtype), dtype_name(b->dtype));
    int64_t size = (int64_t)dtype_size(t->dtype);
    struct place p = {.box = *b, .file = t->file, .stored = t->dtype, .begin = t->begin};
    p.lo = p.hi = t->begin;
    if (empty) return p;
    p.lo += (b->first + b->row * b->width + b->column) * size;
    p.hi += (b->first + (rows_end - 1) * b->width + b->column + b->columns) * size;
    return p;
}

/* How many of the box's numbers, counted row by row, begin before byte x of the file. */
static int64_t place_before(const struct place *p, int64_t x) {
    const struct box *b = &p->box;
    int64_t size = (int64_t)dtype_size(p->stored);
    if (x <= p->lo) return 0;
    if (x >= p->hi) return b->rows * b->columns;
    int64_t element = (x - p->begin + size - 1) / size - b->first;
    int64_t i = element / b->width - b->row, j = element % b->width - b->column;
    if (i >= b->rows) return b->rows * b->columns;
    j = j < 0 ? 0 : j > b->columns ? b->columns : j;
    return i * b->columns + j;
}

/* The box's numbers q0 to q1 as runs, written to `to` if it is not NULL. Returns how many (at most
 * 3). */
static int place_runs(const struct place *p, int64_t q0, int64_t q1, int64_t origin,
                      struct run *to) {
    const struct box *b = &p->box;
    int64_t size = (int64_t)dtype_size(p->stored), width = b->columns;
    int n = 0;
    while (q0 < q1) {
        int64_t i = q0 / width, j = q0 % width, rows = 1, take = width - j;
        if (take > q1 - q0 || b->columns == b->width) take = q1 - q0;
        else if (j == 0) rows = (q1 - q0) / width;
        int64_t at =
            p->begin + (b->first + (b->row + i) * b->width + b->column + j) * size - origin;
        if (to) to[n] = (struct run){at, take * size, rows, b->width * size};
        n++;
        q0 += take * rows;
    }
    return n;
}

/* Numbers q0 to q1 of the box from its memory into a packet, or (fill) the other way. */
static unsigned char *place_copy(const struct place *p, int64_t q0, int64_t q1,
                                 unsigned char *packet, bool fill) {
    const struct box *b = &p->box;
    size_t size = dtype_size(p->stored), own = dtype_size(b->dtype);
    while (q0 < q1) {
        int64_t i = q0 / b->columns, j = q0 % b->columns, n = b->columns - j;
        if (n > q1 - q0 || b->stride == b->columns) n = q1 - q0;
        unsigned char *memory = (unsigned char *)b->memory + (size_t)(i * b->stride + j) * own;
        if (b->dtype == p->stored) {
            memcpy(fill ? memory : packet, fill ? packet : memory, (size_t)n * size);
        } else if (fill) {
            dtype_convert(memory, b->dtype, packet, p->stored, (size_t)n);
        } else {
            dtype_convert(packet, p->stored, memory, b->dtype, (size_t)n);
        }
        packet += (size_t)n * size;
        q0 += n;
    }
    return packet;
}

static int by_place(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    if (x->lo != y->lo) return x->lo < y->lo ? -1 : 1;
    if (x->hi != y->hi) return x->hi < y->hi ? -1 : 1;
    return 0;
}

static void *buffer_need(struct buffer *b, int64_t bytes) {
    if (bytes > b->room || !b->p) {
        free(b->p);
        b->room = bytes + bytes / 8 + 8;
        b->p = die_alloc((unsigned long)b->room);
    }
    return b->p;
}

void exchange_init(struct exchange *e, struct group *g, const struct cut *cut, int n,
                   struct place *place) {
    unsigned long size = (unsigned long)g->size;
    *e = (struct exchange){.g = g, .cut = cut, .n = n, .place = place, .round = -1};
    if (n) qsort(place, (size_t)n, sizeof *place, by_place);
    e->block = die_alloc(size * sizeof *e->block);
    e->list_begin = die_alloc((size + 1) * sizeof *e->list_begin);
    e->active = die_alloc((unsigned long)n * sizeof *e->active);
    e->mine = die_alloc(size * sizeof *e->mine);
    e->theirs = die_alloc(size * sizeof *e->theirs);
    e->bytes_out = die_alloc(size * sizeof *e->bytes_out);
    e->bytes_in = die_alloc(size * sizeof *e->bytes_in);
    int64_t largest = STEP_UNIT;
    for (int f = 0; f < cut->n_files; f++)
        if (cut->block_bytes[f] > largest) largest = cut->block_bytes[f];
    e->window_step = exchange_window_bytes / g->size / STEP_UNIT * STEP_UNIT;
    if (e->window_step < STEP_UNIT) e->window_step = STEP_UNIT;
    e->windows = (largest + e->window_step - 1) / e->window_step;
}

void exchange_free(struct exchange *e) {
    free(e->place);
    free(e->block);
    free(e->list_begin);
    free(e->list);
    free(e->active);
    free(e->mine);
    free(e->theirs);
    free(e->bytes_out);
    free(e->bytes_in);
    free(e->runs_out.p);
    free(e->runs_in.p);
    free(e->data_out.p);
    free(e->data_in.p);
}

/* Moves the set of places that are open on to this block, and appends them to the list. */
static void round_list(struct exchange *e, struct block block, int64_t *used) {
    while (e->next_place < e->n) {
        const struct place *p = &e->place[e->next_place];
        if (p->file > block.file || (p->file == block.file && p->lo >= block.end)) break;
        e->active[e->n_active++] = e->next_place++;
    }
    int kept = 0;
    for (int k = 0; k < e->n_active; k++) {
        const struct place *p = &e->place[e->active[k]];
        if (p->file < block.file || p->hi <= block.begin) continue;
        e->active[kept++] = e->active[k];
    }
    e->n_active = kept;
    if (*used + kept > e->list_room) {
        e->list_room = 2 * (*used + kept);
        e->list = die_realloc(e->list, (unsigned long)e->list_room * sizeof *e->list);
    }
    if (kept) memcpy(e->list + *used, e->active, (size_t)kept * sizeof *e->list);
    *used += kept;
}

bool exchange_round(struct exchange *e) {
    e->round++;
    e->window = -1;
    if (e->round * e->g->size >= e->cut->first[e->cut->n_files]) return false;
    int64_t used = 0;
    for (int r = 0; r < e->g->size; r++) {
        e->list_begin[r] = used;
        e->block[r] = cut_block(e->cut, e->round * e->g->size + r);
        if (e->block[r].file >= 0) round_list(e, e->block[r], &used);
    }
    e->list_begin[e->g->size] = used;
    return true;
}

/* Which numbers of a place this window takes from rank r's block. */
static bool window_piece(const struct exchange *e, const struct place *p, int r, int64_t *q0,
                         int64_t *q1) {
    const struct block *block = &e->block[r];
    int64_t begin = block->begin + e->window * e->window_step, end = begin + e->window_step;
    if (end > block->end) end = block->end;
    if (begin >= end) return false;
    *q0 = place_before(p, begin);
    *q1 = place_before(p, end);
    return *q0 < *q1;
}

static void window_runs(struct exchange *e) {
    int64_t total = 0, q0, q1, n = 0;
    for (int r = 0; r < e->g->size; r++) {
        e->mine[r][0] = e->mine[r][1] = 0;
        for (int64_t k = e->list_begin[r]; k < e->list_begin[r + 1]; k++) {
            const struct place *p = &e->place[e->list[k]];
            if (!window_piece(e, p, r, &q0, &q1)) continue;
            e->mine[r][0] += place_runs(p, q0, q1, 0, NULL);
            e->mine[r][1] += (q1 - q0) * (int64_t)dtype_size(p->stored);
        }
        total += e->mine[r][0];
    }
    struct run *runs = buffer_need(&e->runs_out, total * (int64_t)sizeof *runs);
    for (int r = 0; r < e->g->size; r++)
        for (int64_t k = e->list_begin[r]; k < e->list_begin[r + 1]; k++) {
            const struct place *p = &e->place[e->list[k]];
            if (window_piece(e, p, r, &q0, &q1))
                n += place_runs(p, q0, q1, e->block[r].begin, runs + n);
        }
}

/* Every rank's piece of `out` to the others; the lengths are column `which` of mine and theirs,
 * times `unit`. */
static void swap(struct exchange *e, const struct buffer *out, struct buffer *in, int which,
                 int64_t unit, bool back) {
    int64_t total = 0;
    for (int r = 0; r < e->g->size; r++) {
        e->bytes_out[r] = (back ? e->theirs : e->mine)[r][which] * unit;
        e->bytes_in[r] = (back ? e->mine : e->theirs)[r][which] * unit;
        total += e->bytes_in[r];
    }
    buffer_need(in, total);
    struct request request;
    comm_exchange_start(e->g, out->p, e->bytes_out, in->p, e->bytes_in, &request);
    comm_wait(&request);
}

bool exchange_window(struct exchange *e) {
    if (++e->window >= e->windows) return false;
    window_runs(e);
    for (int r = 0; r < e->g->size; r++) e->bytes_out[r] = e->bytes_in[r] = sizeof *e->mine;
    struct request request;
    comm_exchange_start(e->g, e->mine, e->bytes_out, e->theirs, e->bytes_in, &request);
    comm_wait(&request);
    swap(e, &e->runs_out, &e->runs_in, 0, sizeof(struct run), false);
    e->their_runs = (struct run *)(void *)e->runs_in.p;
    e->their_data = NULL;
    return true;
}

int64_t exchange_asked(const struct exchange *e) {
    int64_t n = 0;
    for (int r = 0; r < e->g->size; r++) n += e->theirs[r][0];
    return n;
}

static int64_t sum(const struct exchange *e, int64_t (*counts)[2]) {
    int64_t n = 0;
    for (int r = 0; r < e->g->size; r++) n += counts[r][1];
    return n;
}

/* All pieces of this window between boxes and packets, in the order of the runs. */
static void window_copy(struct exchange *e, unsigned char *packet, bool fill) {
    int64_t q0, q1;
    for (int r = 0; r < e->g->size; r++)
        for (int64_t k = e->list_begin[r]; k < e->list_begin[r + 1]; k++) {
            const struct place *p = &e->place[e->list[k]];
            if (window_piece(e, p, r, &q0, &q1)) packet = place_copy(p, q0, q1, packet, fill);
        }
}

void exchange_push(struct exchange *e) {
    window_copy(e, buffer_need(&e->data_out, sum(e, e->mine)), false);
    swap(e, &e->data_out, &e->data_in, 1, 1, false);
    e->their_data = e->data_in.p;
}

void exchange_pull(struct exchange *e, const unsigned char *bytes, int64_t have) {
    unsigned char *packet = buffer_need(&e->data_out, sum(e, e->theirs));
    int64_t n = exchange_asked(e);
    for (int64_t k = 0; k < n; k++) {
        const struct run *run = &e->their_runs[k];
        if (run->at < 0 || run->at + (run->rows - 1) * run->step + run->bytes > have)
            bug("a run of numbers leaves its block");
        for (int64_t i = 0; i < run->rows; i++, packet += run->bytes)
            memcpy(packet, bytes + run->at + i * run->step, (size_t)run->bytes);
    }
    swap(e, &e->data_out, &e->data_in, 1, 1, true);
    window_copy(e, e->data_in.p, true);
}
