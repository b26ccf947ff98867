/* taping: what tests of the tape share. A bench has one device, its arenas and one tape; tensors
 * are made on it with a layout spelled in letters and numbers that a seed decides.
 *
 * Used by tests/test_arena.c, test_states.c, test_tape.c and test_carried.c. */
#ifndef TESTS_TAPING_H
#define TESTS_TAPING_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/ops.h"
#include "parallel/groups.h"

enum { ROWS = 2, LENGTH = 4, TOKENS = ROWS * LENGTH, WIDTH = 4 };

struct bench {
    struct device device;
    struct arena work, scratch, weights;
    struct comm comm;
    struct parallel parallel;
    struct tape t;
    uint64_t seed;
    struct param *param[64];
    int n_params;
};

void bench_open(struct bench *b, enum dtype real);
/* Everything must have been given back. */
void bench_close(struct bench *b);
/* One more tape on the same arenas. */
void open_tape(struct bench *b, struct tape *t, enum dtype real);
void forget_params(struct bench *b);

/* Numbers between -1 and 1, and their way to and from the device. */
double random_number(uint64_t *seed);
double *random_numbers(int64_t n, uint64_t seed);
void put(struct bench *b, void *to, enum dtype d, int64_t n, const double *x);
void get(struct bench *b, const void *from, enum dtype d, int64_t n, double *x);
/* To a relative 1e-12 or so. */
void same(const double *found, const double *expected, int64_t n, const char *what);

/* A letter for data, context and tensor: w whole, e entered, r split by rows, c split by columns,
 * s the same shared by two neighbours, p partial. Before them X: the experts' factoring; ?: the
 * value was left out of a replay. Weights: - not split, R by rows, C by columns, before it X. */
struct layout layout_of(const char *text, int64_t width);
const char *layout_text(const struct layout *l);
struct tensor *make(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                    int64_t width);
struct tensor *make_from(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                         int64_t width, const double *v);
struct tensor *make_ints(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                         int64_t width, const int32_t *v);
struct param *make_param(struct bench *b, const char *split, int64_t rows, int64_t width);
struct batch make_batch(struct bench *b, struct tape *t, int64_t length, int32_t start);

struct ending {
    bool refused;
    char text[2048];
};

/* How a child that does this ends, and what it says; and that it dies and names that. */
struct ending ending_of(void (*act)(void *), void *with);
void refuses(void (*act)(void *), void *with, const char *name);

/* The gradient that backward left at x, whole. */
double *grad_of(struct bench *b, const struct tensor *x);
void expect_grad(struct bench *b, const struct tensor *x, const double *want);

#endif
