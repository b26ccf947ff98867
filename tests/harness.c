#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/table.h"
#include "kernels/die.h"
#include "kernels/exact.h"
#include "tests/operands.h"

enum { GUARD = 64, ARGS_BYTES = 512 };
static const double step = 1e-5; /* of central differences */
/* A fast version may round factors to BF16 where the definition rounds results: a few units in the
 * last place of 2^-8. */
static const double bf16_tolerance = 1.2e-2;

struct how {
    enum dtype real; /* of stored numbers; F32 or F64: of all */
    int level;       /* of the processor, from the best one down */
    bool plain;
    int threads;
    bool add;            /* set x_add of all ADD operands; what is there before is random */
    const char *without; /* this ADD operand is NULL */
    const char *absent;  /* as in struct op_case */
};

static bool listed(const char *names, const char *name) {
    const size_t length = strlen(name);
    for (const char *p = names; p && (p = strstr(p, name)); p += length)
        if ((p == names || p[-1] == ' ') && (p[length] == ' ' || p[length] == '\0')) return true;
    return false;
}

/* One operand in device memory. */
struct placed {
    unsigned char *at; /* device address; NULL: absent */
    size_t bytes;
    unsigned char *before; /* what it held */
};

/* The format of an operand's numbers. */
static enum dtype format_of(enum operand_type type, enum dtype stored) {
    return type == OPERAND_STORED ? stored : dtype_real(stored);
}

static bool holds_reals(enum operand_type type) {
    return type == OPERAND_STORED || type == OPERAND_REAL;
}

static void store(unsigned char *to, const struct value *v, enum operand_type type,
                  enum dtype real) {
    for (int64_t i = 0; i < v->n; i++) {
        if (type == OPERAND_I32) ((int32_t *)(void *)to)[i] = (int32_t)v->i[i];
        else if (type == OPERAND_I64) ((int64_t *)(void *)to)[i] = v->i[i];
        else
            dtype_convert(to + (size_t)i * operand_size(type, real), format_of(type, real),
                          &v->x[i], F64, 1);
    }
}

/* Fills what an operand holds before the call. An output holds NaN with a mark, or numbers. */
static void content(unsigned char *to, const struct operand_row *r, int64_t n, struct values *in,
                    const struct how *how, bool marked) {
    const bool read = r->kind == OPERAND_IN || r->kind == OPERAND_INOUT;
    const size_t bytes = (size_t)n * operand_size(r->type, how->real);
    if (r->type == OPERAND_EXACT) {
        memset(to, 0, bytes);
    } else if (read) {
        store(to, values_find(in, r->name), r->type, how->real);
    } else if (r->kind == OPERAND_ADD && how->add) {
        struct value base = {.n = n, .x = random_reals(n, random_seed(r->name) + 5)};
        store(to, &base, r->type, how->real);
        free(base.x);
    } else if (marked) {
        memset(to, 0xff, bytes); /* NaN in every real format */
    } else {
        memset(to, 0x41, bytes);
    }
}

static int complain(const struct op_case *c, const char *fmt, const char *a, const char *b) {
    printf("FAIL %s (line %d): ", op_row(c->op)->name, c->line);
    printf(fmt, a, b);
    printf("\n");
    return 1;
}

/* The guards and everything that is only read must be as before. */
static int check_untouched(const struct op_case *c, const struct op_row *row,
                           const struct placed *placed, const struct device *d) {
    int wrong = 0;
    for (int i = 0; i < row->n_operands; i++) {
        const struct placed *p = &placed[i];
        if (!p->at) continue;
        const unsigned char *host = device_host(d, p->at);
        for (int j = 0; j < GUARD; j++)
            if (host[-1 - j] != 0xa5 || host[p->bytes + (size_t)j] != 0xa5)
                return complain(c, "%s: bytes around %s were written", row->name,
                                row->operands[i].name);
        if (row->operands[i].kind == OPERAND_IN && memcmp(host, p->before, p->bytes) != 0)
            wrong += complain(c, "%s: its input %s was written", row->name, row->operands[i].name);
    }
    return wrong;
}

/* Runs `op` once with `in`. after[i]: malloc'd copies of what its operands hold then (NULL where
 * absent). */
static int run_once(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                    const struct how *how, bool marked, unsigned char *after[MOST_OPERANDS]) {
    const struct op_row *row = op_row(op);
    struct device d;
    struct placed placed[MOST_OPERANDS] = {{0}};
    int64_t counts[MOST_OPERANDS];
    _Alignas(16) unsigned char args[ARGS_BYTES];
    memcpy(args, sizes, row->args_size);
    row->counts(args, counts);
    device_cpu(&d, how->threads, true);
    d.plain = how->plain;
    d.level -= how->level;
    size_t total = GUARD;
    for (int i = 0; i < row->n_operands; i++)
        total +=
            ((size_t)counts[i] * operand_size(row->operands[i].type, how->real) + 63) / 64 * 64 +
            2 * GUARD;
    unsigned char *region = device_reserve(&d, total), *next = region + GUARD;
    memset(device_host(&d, region), 0xa5, total);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        struct placed *p = &placed[i];
        const bool out =
            (how->without && strcmp(how->without, r->name) == 0) || listed(how->absent, r->name);
        const int add = how->add;
        if (!out) {
            p->at = next;
            p->bytes = (size_t)counts[i] * operand_size(r->type, how->real);
            p->before = die_alloc(p->bytes);
            content(p->before, r, counts[i], in, how, marked);
            device_write(&d, p->at, p->before, p->bytes);
            next += (p->bytes + 63) / 64 * 64 + 2 * GUARD;
        }
        memcpy(args + r->at, &p->at, sizeof p->at);
        if (r->kind == OPERAND_ADD) memcpy(args + r->add_at, &add, sizeof add);
    }
    device_run(&d, op, how->real, args);
    const int wrong = check_untouched(c, row, placed, &d);
    for (int i = 0; i < row->n_operands; i++) {
        after[i] = placed[i].at ? die_alloc(placed[i].bytes) : NULL;
        if (after[i]) device_read(&d, after[i], placed[i].at, placed[i].bytes);
        free(placed[i].before);
    }
    device_release(&d, region, total);
    return wrong;
}

static double load(const unsigned char *p, int64_t i, enum dtype real) {
    double x;
    dtype_convert(&x, F64, p + (size_t)i * dtype_size(real), real, 1);
    return x;
}

/* Takes an output over into `out`; where two runs with other contents before agree, it was written.
 */
static int collect(const struct op_case *c, const struct op_row *row, int i, int64_t n,
                   int64_t dense, const unsigned char *a, const unsigned char *b, enum dtype real,
                   struct values *out) {
    const struct operand_row *r = &row->operands[i];
    struct value *v = values_append(out, r->name, n);
    const size_t width = operand_size(r->type, real);
    int64_t written = 0;
    v->written = die_alloc((uint64_t)n);
    if (holds_reals(r->type)) v->x = die_alloc((uint64_t)n * sizeof *v->x);
    else v->i = die_alloc((uint64_t)n * sizeof *v->i);
    for (int64_t j = 0; j < n; j++) {
        const unsigned char *x = a + (size_t)j * width, *y = b + (size_t)j * width;
        v->written[j] = memcmp(x, y, width) == 0;
        written += v->written[j];
        if (!v->written[j]) {
            for (size_t k = 0; k < width; k++)
                if (x[k] != 0xff || y[k] != 0x41)
                    return complain(c, "%s: output %s depends on what lay there", row->name,
                                    r->name);
        } else if (holds_reals(r->type)) {
            v->x[j] = load(a, j, format_of(r->type, real));
        } else if (r->type == OPERAND_EXACT) {
            v->i[j] = (int64_t)(1e6 * exact_value((const struct exact *)(const void *)x));
        } else {
            v->i[j] = r->type == OPERAND_I32 ? ((const int32_t *)(const void *)a)[j]
                                             : ((const int64_t *)(const void *)a)[j];
        }
    }
    if (written == dense) return 0;
    printf("%lld of %lld elements\n", (long long)written, (long long)dense);
    return complain(c, "%s: output %s is not written everywhere, or in its gaps", row->name,
                    r->name);
}

/* Runs `op` twice, with NaN and with numbers in its outputs, and gives its outputs. */
static int execute(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                   const struct how *how, struct values *out) {
    const struct op_row *row = op_row(op);
    unsigned char *a[MOST_OPERANDS], *b[MOST_OPERANDS];
    int64_t counts[MOST_OPERANDS], dense[MOST_OPERANDS];
    _Alignas(16) unsigned char tight[ARGS_BYTES];
    memcpy(tight, sizes, row->args_size);
    fields_dense(op, tight);
    row->counts(sizes, counts);
    row->counts(tight, dense);
    int wrong =
        run_once(c, op, sizes, in, how, true, a) + run_once(c, op, sizes, in, how, false, b);
    for (int i = 0; i < row->n_operands; i++) {
        const enum operand_kind kind = row->operands[i].kind;
        /* In a view that is added to, the gaps too are equal in both runs. */
        const bool all = kind == OPERAND_INOUT || (kind == OPERAND_ADD && how->add);
        if (a[i] && kind != OPERAND_IN && kind != OPERAND_TMP)
            wrong += collect(c, row, i, counts[i], all ? counts[i] : dense[i], a[i], b[i],
                             how->real, out);
        free(a[i]);
        free(b[i]);
    }
    return wrong;
}

/* |a - b| at most `tolerance` times the largest entry. */
static int compare(const struct op_case *c, const struct values *a, struct values *b,
                   double tolerance, const char *what) {
    for (int i = 0; i < a->n; i++) {
        const struct value *x = &a->value[i], *y = values_find(b, x->name);
        double largest = 0, worst = 0;
        for (int64_t j = 0; j < x->n; j++) {
            if (x->i) {
                if (x->i[j] != y->i[j])
                    return complain(c, "%s: integers of %s differ", what, x->name);
            } else if (x->written[j]) {
                const double d = x->x[j] == y->x[j] ? 0 : fabs(x->x[j] - y->x[j]);
                if (isfinite(x->x[j])) largest = fmax(largest, fabs(x->x[j]));
                worst = isnan(d) ? INFINITY : fmax(worst, d);
            }
        }
        if (!(worst <= tolerance * largest + 1e-30)) {
            printf("%s: %.3g of the largest entry, %.3g allowed\n", x->name, worst / largest,
                   tolerance);
            return complain(c, "%s: %s", what, x->name);
        }
    }
    return 0;
}

static int same_bits(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                     struct how how) {
    const int threads[] = {1, 2, 3, 5};
    const struct op_row *row = op_row(op);
    int64_t counts[MOST_OPERANDS];
    unsigned char *first[MOST_OPERANDS], *next[MOST_OPERANDS];
    row->counts(sizes, counts);
    int wrong = 0;
    for (int k = 0; k < 4; k++) {
        how.threads = threads[k];
        wrong += run_once(c, op, sizes, in, &how, true, k == 0 ? first : next);
        for (int i = 0; k > 0 && i < row->n_operands; i++) {
            if (!first[i]) continue;
            const struct operand_row *r = &row->operands[i];
            if (r->type == OPERAND_EXACT) {
                exact_normalise((struct exact *)(void *)first[i]);
                exact_normalise((struct exact *)(void *)next[i]);
            }
            if (r->kind != OPERAND_TMP &&
                memcmp(first[i], next[i], (size_t)counts[i] * operand_size(r->type, how.real)) != 0)
                wrong += complain(c, "%s: %s depends on the number of threads", row->name, r->name);
            free(next[i]);
        }
    }
    for (int i = 0; i < row->n_operands; i++) free(first[i]);
    return wrong;
}

/* x_add must add to what is there, and an ADD operand that is not wanted must not change the
 * others. */
static int check_add(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                     struct values *plain) {
    const struct op_row *row = op_row(op);
    struct how how = {.real = F64, .threads = 2, .absent = c->absent, .add = true};
    struct values sum = {0};
    int wrong = execute(c, op, sizes, in, &how, &sum);
    for (int i = 0; i < row->n_operands; i++) {
        if (row->operands[i].kind != OPERAND_ADD) continue;
        struct value *v = values_find(plain, row->operands[i].name),
                     *s = values_find(&sum, row->operands[i].name);
        if (!v) continue;
        double *base = random_reals(v->n, random_seed(v->name) + 5);
        for (int64_t j = 0; j < v->n; j++)
            if (!(fabs(s->x[j] - base[j] - (v->written[j] ? v->x[j] : 0)) <=
                  1e-9 * (1 + fabs(s->x[j]))) &&
                isfinite(v->x[j])) {
                wrong += complain(c, "%s: %s_add does not add", row->name, v->name);
                break;
            }
        free(base);
        struct how less = {.real = F64, .threads = 2, .absent = c->absent, .without = v->name};
        struct values others = {0};
        wrong += execute(c, op, sizes, in, &less, &others);
        wrong += compare(c, &others, plain, 0, "an operand left out changes another");
        values_free(&others);
    }
    values_free(&sum);
    return wrong;
}

static bool has_fast(enum op op, enum dtype stored) {
    return cpu_fast_kernel(cpu_best_level(), stored, op) != NULL;
}

/* The fast versions of every level that this processor has, against `out`, and on any threads. */
static int check_levels(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                        struct values *out, enum dtype stored, double tolerance) {
    int wrong = 0;
    for (int level = 0; level <= cpu_best_level(); level++) {
        const int below = cpu_best_level() - level;
        if (level < cpu_best_level() &&
            cpu_fast_kernel(level, stored, op) == cpu_fast_kernel(level + 1, stored, op))
            continue; /* the same function */
        struct how how = {.real = stored, .level = below, .threads = 2, .absent = c->absent};
        struct values fast = {0};
        char what[96];
        snprintf(what, sizeof what, "the fast version in %s for %s differs", dtype_name(stored),
                 cpu_level_name(level));
        wrong += execute(c, op, sizes, in, &how, &fast);
        wrong += same_bits(c, op, sizes, in, how);
        wrong += compare(c, out, &fast, tolerance, what);
        how.add = true;
        struct values plain = {0}, sum = {0};
        wrong += execute(c, op, sizes, in, &how, &sum);
        how.plain = true;
        wrong += execute(c, op, sizes, in, &how, &plain);
        wrong += compare(c, &plain, &sum, tolerance, what);
        values_free(&plain);
        values_free(&sum);
        values_free(&fast);
    }
    return wrong;
}

/* Everything but differences, of one row. out: what the plain double version gives. */
static int check_row(const struct op_case *c, enum op op, const void *sizes, struct values *in,
                     struct values *out) {
    struct how how = {.real = F64, .threads = 2, .absent = c->absent};
    const double tolerance = op_row(op)->tolerance;
    struct values single = {0};
    int wrong = execute(c, op, sizes, in, &how, out);
    wrong += same_bits(c, op, sizes, in, how);
    wrong += check_add(c, op, sizes, in, out);
    wrong += check_levels(c, op, sizes, in, out, F32, tolerance);
    how.real = F32;
    how.plain = true;
    wrong += execute(c, op, sizes, in, &how, &single);
    if (c->large) wrong += same_bits(c, op, sizes, in, how);
    wrong += compare(c, out, &single, tolerance, "the plain float version differs from double");
    values_free(&single);
    if (has_fast(op, BF16)) {
        struct values low = {0};
        how.real = BF16;
        wrong += execute(c, op, sizes, in, &how, &low);
        wrong += check_levels(c, op, sizes, in, &low, BF16, bf16_tolerance);
        values_free(&low);
    }
    return wrong;
}

enum op adjoint_of(enum op op) {
    char name[64];
    if (op == OP_route) return N_OPS; /* gives indices; the adjoint is that of the weights */
    snprintf(name, sizeof name, "%s_adjoint", op_row(op)->name);
    for (int i = 0; i < N_OPS; i++)
        if (strcmp(op_row((enum op)i)->name, name) == 0) return (enum op)i;
    return N_OPS;
}

/* "dx" of "x"; of an output "o", "go" (do is a word of C). */
static bool is_gradient(const char *gradient, const char *of) {
    if (strcmp(gradient, "go") == 0) return strcmp(of, "o") == 0;
    return gradient[0] == 'd' && strcmp(gradient + 1, of) == 0;
}

/* Sum of all outputs whose gradient the adjoint takes, weighted by that gradient. An infinite
 * output stands for nothing to sum over, and does not change. */
static double objective(const struct op_case *c, struct values *in, struct values *weights) {
    struct how how = {.real = F64, .threads = 1, .absent = c->absent};
    const struct op_row *row = op_row(c->op);
    unsigned char *after[MOST_OPERANDS];
    int64_t counts[MOST_OPERANDS];
    double sum = 0;
    row->counts(c->args, counts);
    run_once(c, c->op, c->args, in, &how, true, after);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        for (int k = 0; after[i] && r->kind == OPERAND_OUT && k < weights->n; k++)
            if (is_gradient(weights->value[k].name, r->name))
                for (int64_t j = 0; j < counts[i]; j++)
                    if (!isinf(load(after[i], j, F64)))
                        sum += load(after[i], j, F64) * weights->value[k].x[j];
        free(after[i]);
    }
    return sum;
}

/* The derivative of the objective along `direction` of input x. */
static double difference(const struct op_case *c, struct values *in, struct values *weights,
                         struct value *x, const double *direction) {
    double *base = x->x, value[2];
    x->x = die_alloc((uint64_t)x->n * sizeof *x->x);
    for (int side = 0; side < 2; side++) {
        for (int64_t j = 0; j < x->n; j++) x->x[j] = base[j] + (side ? step : -step) * direction[j];
        value[side] = objective(c, in, weights);
    }
    free(x->x);
    x->x = base;
    return (value[1] - value[0]) / (2 * step);
}

static int check_difference(const struct op_case *c, struct values *in, struct values *weights,
                            struct value *x, const struct value *dx) {
    enum { DIRECTIONS = 3, ELEMENTS = 24 };
    double *direction = die_alloc((uint64_t)x->n * sizeof *direction), largest = 0;
    int wrong = 0;
    for (int64_t j = 0; j < x->n; j++) largest = fmax(largest, fabs(dx->x[j]));
    for (int k = 0; k < DIRECTIONS + ELEMENTS && x->n > 0; k++) {
        double expected = 0, scale = 0;
        for (int64_t j = 0; j < x->n; j++) {
            const bool one = k >= DIRECTIONS && j == random_below(random_seed(x->name), k, x->n);
            direction[j] =
                k < DIRECTIONS ? random_real(random_seed(x->name) + (uint64_t)k, j) : one;
            const double part = dx->written[j] ? dx->x[j] * direction[j] : 0;
            expected += part;
            scale += part * part;
        }
        const double found = difference(c, in, weights, x, direction);
        scale = fmax(sqrt(scale), largest);
        if (!(fabs(found - expected) <= 1e-6 * scale + 1e-8)) {
            printf("difference %.12g, adjoint %.12g, scale %.3g\n", found, expected, scale);
            wrong += complain(c, "%s is not the derivative by %s", dx->name, x->name);
            break;
        }
    }
    free(direction);
    return wrong;
}

/* Tries the adjoint of a case: as a row of its own, then against differences. */
static int check_adjoint(const struct op_case *c, enum op adjoint, struct values *in,
                         struct values *out) {
    const struct op_row *row = op_row(adjoint), *forward = op_row(c->op);
    _Alignas(16) unsigned char args[ARGS_BYTES] = {0};
    int64_t counts[MOST_OPERANDS];
    struct values given = {0}, gradients = {0}, weights = {0};
    fields_copy(adjoint, args, c->op, c->args);
    row->counts(args, counts);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        if (r->kind != OPERAND_IN || listed(c->absent, r->name)) continue;
        const struct value *from =
            values_find(in, r->name) ? values_find(in, r->name) : values_find(out, r->name);
        if (from) { /* borrowed: never freed through `given` */
            *values_append(&given, r->name, counts[i]) = *from;
            continue;
        }
        operand_make(&given, adjoint, args, r, counts[i]);
        for (int k = 0; k < forward->n_operands; k++)
            if (is_gradient(r->name, forward->operands[k].name))
                *values_append(&weights, r->name, counts[i]) = *values_find(&given, r->name);
    }
    int wrong = check_row(c, adjoint, args, &given, &gradients);
    for (int i = 0; !c->large && i < gradients.n; i++)
        for (int k = 0; k < in->n; k++)
            if (is_gradient(gradients.value[i].name, in->value[k].name))
                wrong += check_difference(c, in, &weights, &in->value[k], &gradients.value[i]);
    for (int i = 0; i < given.n; i++)
        if (!values_find(in, given.value[i].name) && !values_find(out, given.value[i].name)) {
            free(given.value[i].x);
            free(given.value[i].i);
        }
    values_free(&gradients);
    return wrong;
}

/* What a row reads. */
static void make_inputs(struct values *in, const struct op_case *c) {
    const struct op_row *row = op_row(c->op);
    int64_t counts[MOST_OPERANDS];
    row->counts(c->args, counts);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *r = &row->operands[i];
        const bool read = r->kind == OPERAND_IN || r->kind == OPERAND_INOUT;
        if (read && !listed(c->absent, r->name) && r->type != OPERAND_EXACT)
            operand_make(in, c->op, c->args, r, counts[i]);
    }
}

int try_threads(const struct op_case *c) {
    struct values in = {0};
    make_inputs(&in, c);
    const int wrong = same_bits(c, c->op, c->args, &in, (struct how){.real = F32});
    values_free(&in);
    return wrong;
}

int try_case(const struct op_case *c) {
    struct values in = {0}, out = {0};
    make_inputs(&in, c);
    int wrong = check_row(c, c->op, c->args, &in, &out);
    const enum op adjoint = adjoint_of(c->op);
    const bool kept = !listed(c->absent, "states"); /* what the adjoint needs */
    if (adjoint != N_OPS && kept) wrong += check_adjoint(c, adjoint, &in, &out);
    values_free(&in);
    values_free(&out);
    return wrong;
}
