/* operands: what the harness gives an operation to work on.
 *
 * Operands are made from their names: random reals mostly, documents for "start", a permutation for
 * "order", and so on. The same name gives the same numbers, all of them floats, so that an
 * operation and its adjoint, in float and in double, see the same. A row's sizes and reals are
 * found by their names too. */
#ifndef TESTS_OPERANDS_H
#define TESTS_OPERANDS_H

#include <stdbool.h>

#include "kernels/device.h"

enum { MOST_VALUES = 48 };

/* A named array on the host: reals in double, or integers. */
struct value {
    const char *name;
    int64_t n;
    double *x;
    int64_t *i;
    bool *written; /* of an output: which elements the operation gave */
};
struct values {
    int n;
    struct value value[MOST_VALUES];
};

struct value *values_find(struct values *all, const char *name);
struct value *values_append(struct values *all, const char *name, int64_t n);
void values_free(struct values *all);

/* A size by name; 0 if the row has none of that name. */
int64_t field_size(enum op op, const void *args, const char *name);
/* Copies the sizes and reals that both rows have. */
void fields_copy(enum op to, void *to_args, enum op from, const void *from_args);
/* Sets every leading dimension to the width of its rows: operand counts are then the elements that
 * are really there. */
void fields_dense(enum op op, void *args);

/* What an operand that is read holds: appended to `all`, unless it is there already. */
void operand_make(struct values *all, enum op op, const void *args, const struct operand_row *r,
                  int64_t n);

/* Numbers that depend on the seed and i alone: a float in [-1, 1); an integer in [0, n). */
uint64_t random_seed(const char *name);
double random_real(uint64_t seed, int64_t i);
int64_t random_below(uint64_t seed, int64_t i, int64_t n);
/* n of them, malloc'd. */
double *random_reals(int64_t n, uint64_t seed);

#endif
