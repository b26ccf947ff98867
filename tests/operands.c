#include "tests/operands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

enum { MOST_FIELDS = 16 };

/* The names of a row's sizes and reals, which the device's own table has no need of. */
struct field {
    const char *name;
    size_t at;
    bool real;
};
struct fields {
    int n;
    struct field field[MOST_FIELDS];
};

/* clang-format off */
#define IN(x, n)
#define OUT(x, n)
#define ADD(x, n)
#define INOUT(x, n)
#define INI(x, n)
#define OUTI(x, n)
#define INOUTL(x, n)
#define TMP(x, n)
#define ACC(x)
#define N(T) list->field[list->n++] = (struct field){#T, offsetof(args, T), false};
#define R(eps) list->field[list->n++] = (struct field){#eps, offsetof(args, eps), true};
#define OP(name, operands, sizes, reals, work, tolerance) \
    case OP_##name: { typedef struct name##_args args; sizes reals break; }
static void fields_of(enum op op, struct fields *list) {
    list->n = 0;
    switch (op) {
#include "kernels/ops.def"
#include "kernels/ops_undef.h"
    case N_OPS: break;
    }
}
/* clang-format on */

int64_t field_size(enum op op, const void *args, const char *name) {
    struct fields list;
    int64_t value = 0;
    fields_of(op, &list);
    for (int i = 0; i < list.n; i++)
        if (!list.field[i].real && strcmp(list.field[i].name, name) == 0)
            memcpy(&value, (const char *)args + list.field[i].at, sizeof value);
    return value;
}

void fields_copy(enum op to, void *to_args, enum op from, const void *from_args) {
    struct fields a, b;
    fields_of(to, &a);
    fields_of(from, &b);
    for (int i = 0; i < a.n; i++)
        for (int j = 0; j < b.n; j++)
            if (strcmp(a.field[i].name, b.field[j].name) == 0)
                memcpy((char *)to_args + a.field[i].at, (const char *)from_args + b.field[j].at, 8);
}

void fields_dense(enum op op, void *args) {
    struct fields list;
    fields_of(op, &list);
    const int64_t W = field_size(op, args, "W"), C = field_size(op, args, "C"),
                  H = field_size(op, args, "H");
    const int64_t D = field_size(op, args, "D"), G = field_size(op, args, "G"),
                  M = field_size(op, args, "M");
    const int64_t n = field_size(op, args, "N"), K = field_size(op, args, "K");
    const bool ta = field_size(op, args, "ta"), tb = field_size(op, args, "tb");
    const struct {
        const char *name;
        int64_t width;
    } dense[] = {{"ld", W},      {"ldx", C ? C : W},  {"ldy", W},
                 {"ldz", W},     {"lddt", H},         {"ldq", H * D},
                 {"ldk", G * D}, {"ldv", G * D},      {"ldp", field_size(op, args, "P") * G * D},
                 {"ldc", n},     {"lda", ta ? M : K}, {"ldb", tb ? K : n}};
    for (int i = 0; i < list.n; i++)
        for (size_t j = 0; j < sizeof dense / sizeof *dense; j++)
            if (strcmp(list.field[i].name, dense[j].name) == 0)
                memcpy((char *)args + list.field[i].at, &dense[j].width, 8);
}

struct value *values_find(struct values *all, const char *name) {
    for (int i = 0; i < all->n; i++)
        if (strcmp(all->value[i].name, name) == 0) return &all->value[i];
    return NULL;
}

struct value *values_append(struct values *all, const char *name, int64_t n) {
    if (all->n == MOST_VALUES) die("harness: more than %d values", MOST_VALUES);
    struct value *v = &all->value[all->n++];
    *v = (struct value){.name = name, .n = n};
    return v;
}

void values_free(struct values *all) {
    for (int i = 0; i < all->n; i++) {
        free(all->value[i].x);
        free(all->value[i].i);
        free(all->value[i].written);
    }
    all->n = 0;
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

uint64_t random_seed(const char *name) {
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 1099511628211u;
    return h;
}

double random_real(uint64_t seed, int64_t i) {
    return (double)(int64_t)(mix(seed ^ mix((uint64_t)i)) >> 40) / (1 << 23) - 1;
}

double *random_reals(int64_t n, uint64_t seed) {
    double *x = die_alloc((uint64_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = random_real(seed, i);
    return x;
}

int64_t random_below(uint64_t seed, int64_t i, int64_t n) {
    return n > 0 ? (int64_t)(mix(seed ^ mix((uint64_t)i)) % (uint64_t)n) : 0;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Documents: every row begins within one (start fewer than `reach` before the row) or with one, and
 * others follow, of about `length` tokens. */
static void make_starts(int64_t *start, int64_t n, int64_t L, int64_t reach, int64_t length,
                        uint64_t seed) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t place = i % most(L, 1);
        if (place == 0) start[i] = -random_below(seed, i, reach);
        else start[i] = random_below(seed, i, length) == 0 ? place : start[i - 1];
    }
}

/* Runs of padding (-1), of documents of a table of G, and of others, which are found once. */
static void make_documents(int64_t *document, int64_t n, int64_t G, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t kind = random_below(seed, i, G + 4) - 1;
        if (i && random_below(seed + 1, i, 3)) document[i] = document[i - 1];
        else document[i] = kind < G ? kind : G + i;
    }
}

static void make_permutation(int64_t *order, int64_t n, uint64_t seed, bool inverse) {
    int64_t *p = die_alloc((uint64_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t j = random_below(seed, i, i + 1), other = p[i];
        p[i] = p[j];
        p[j] = other;
    }
    for (int64_t i = 0; i < n; i++) order[inverse ? p[i] : i] = inverse ? i : p[i];
    free(p);
}

/* E shares of n rows, some of them empty. */
static void make_offsets(int64_t *offset, int64_t E, int64_t n, uint64_t seed) {
    offset[0] = 0;
    for (int64_t e = 1; e < E; e++) {
        const int64_t left = n - offset[e - 1];
        offset[e] = offset[e - 1] +
                    (e % 3 == 0 ? 0 : random_below(seed, e, least(left, 3 * n / E + 1) + 1));
    }
    offset[E] = n;
}

static void make_integers(struct value *v, enum op op, const void *args) {
    const uint64_t seed = 77;
    const int64_t first = field_size(op, args, "first"), V = field_size(op, args, "V");
    const int64_t E = field_size(op, args, "E");
    v->i = die_alloc((uint64_t)v->n * sizeof *v->i);
    const int64_t L = field_size(op, args, "L");
    const bool attends = op == OP_attention || op == OP_attention_adjoint;
    const int64_t past = attends ? field_size(op, args, "P") + field_size(op, args, "away") : 0;
    if (strcmp(v->name, "start") == 0)
        make_starts(v->i, v->n, L, most(5, past + 3), attends && L + past > 60 ? 50 : 4, seed);
    else if (strcmp(v->name, "document") == 0)
        make_documents(v->i, v->n, field_size(op, args, "G"), seed);
    else if (strcmp(v->name, "order") == 0) make_permutation(v->i, v->n, seed, false);
    else if (strcmp(v->name, "position") == 0) make_permutation(v->i, v->n, seed, true);
    else if (strcmp(v->name, "offset") == 0) {
        make_offsets(v->i, E, field_size(op, args, "S"), seed);
    } else {
        for (int64_t i = 0; i < v->n; i++) {
            if (strcmp(v->name, "id") == 0) v->i[i] = first - 1 + random_below(seed, i, V + 2);
            else if (strcmp(v->name, "target") == 0)
                v->i[i] = random_below(seed, i, V + 3) - 1 + (i % 3 ? first : 0);
            else if (op == OP_sort_experts) v->i[i] = random_below(seed, i, E + 1);
            else if (strcmp(v->name, "count") == 0) v->i[i] = random_below(seed, i, 9);
            else if (strcmp(v->name, "index") == 0)
                v->i[i] = (random_below(seed, i / field_size(op, args, "K"), E) + i) % E;
            else v->i[i] = random_below(seed, i, 1000);
        }
    }
}

void operand_make(struct values *all, enum op op, const void *args, const struct operand_row *r,
                  int64_t n) {
    if (values_find(all, r->name)) return;
    struct value *v = values_append(all, r->name, n);
    if (r->type == OPERAND_I32 || r->type == OPERAND_I64) {
        make_integers(v, op, args);
        return;
    }
    v->x = random_reals(n, random_seed(r->name));
    const bool positive = (op == OP_gate_norm && strcmp(r->name, "s") == 0) ||
                          (op == OP_adamw && strcmp(r->name, "v") == 0);
    const bool without_words =
        op == OP_word_loss && field_size(op, args, "R") > 1 && strcmp(r->name, "lse") == 0;
    for (int64_t i = 0; i < n; i++) {
        if (positive) v->x[i] = fabs(v->x[i]) * 4 + 0.25;
        if (strcmp(r->name, "dt") == 0) v->x[i] *= 8;
        if (strcmp(r->name, "logits") == 0) v->x[i] *= 2;
        if (without_words && i % 7 == 3) v->x[i] = -INFINITY;
    }
}
