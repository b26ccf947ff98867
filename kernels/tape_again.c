#include "kernels/tape_again.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_values.h"

enum { ARGS = 512, OPERANDS = 16 };

struct run {
    enum op op;
    enum dtype stored;
    _Alignas(8) char args[ARGS];
    struct tensor *of[OPERANDS]; /* whose data each operand is; NULL: no tensor's */
};

static const char *const names[] = {
#define X(name) #name,
    TAPE_AGAIN(X)
#undef X
};

const char *tape_again_name(int i) {
    return names[i];
}

unsigned tape_again_bit(const char *name) {
    for (int i = 0; i < N_AGAIN; i++)
        if (!strcmp(name, names[i])) return 1u << i;
    return 0;
}

void tape_run(struct tape *t, enum op op, enum dtype stored, const void *args) {
    if (t->again && t->learning) {
        const struct op_row *row = op_row(op);
        if (t->n_runs == t->max_runs) {
            t->max_runs = t->max_runs ? 2 * t->max_runs : 64;
            t->run = die_realloc(t->run, (unsigned long)t->max_runs * sizeof *t->run);
        }
        struct run *r = &t->run[t->n_runs];
        if (row->args_size > ARGS || row->n_operands > OPERANDS) bug("%s is too wide", row->name);
        memset(r, 0, sizeof *r);
        r->op = op;
        r->stored = stored;
        memcpy(r->args, args, row->args_size);
        t->ran = true;
    }
    device_run(t->device, op, stored, args);
}

/* ---- written down ---- */

static void *pointer_of(const char *args, const struct operand_row *o) {
    void *p;
    memcpy(&p, args + o->at, sizeof p);
    return p;
}

static bool is_read(const struct operand_row *o) {
    return o->kind == OPERAND_IN;
}

static bool is_made(const struct operand_row *o) {
    return o->kind == OPERAND_OUT || o->kind == OPERAND_ADD;
}

static struct tensor *find(struct tensor *const *x, int n, const void *data, int *at) {
    for (int i = 0; i < n; i++)
        if (x[i] && x[i]->data == data) {
            *at = i;
            return x[i];
        }
    return NULL;
}

void tape_again_note(struct tape *t, struct note *n) {
    bool ran = t->ran;
    t->ran = false;
    if (!ran || !n || !(n->op->again & t->again)) return;
    struct run *r = &t->run[t->n_runs++];
    const struct op_row *row = op_row(r->op);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *o = &row->operands[i];
        const void *p = pointer_of(r->args, o);
        int at;
        if (!p || o->kind == OPERAND_TMP) continue;
        struct tensor *x = is_made(o) ? find(n->out, n->n_out, p, &at) : NULL;
        if (!x && (x = find(n->in, n->n_in, p, &at)) && is_read(o)) note_hold(n, at);
        op_require(x, row->name, n->out[0], "has an operand that its note does not know");
        r->of[i] = x;
        if (is_made(o)) x->run = t->n_runs;
    }
}

bool tape_again_can(const struct tensor *x) {
    while (!x->run && (x->of || x->same)) x = x->of ? x->of : x->same;
    return x->run > 0;
}

/* ---- run again ---- */

/* What shares x's numbers and will be read has them again too. */
static void share(struct tape *t, struct tensor *x) {
    for (int i = 0; i < t->n_tensors; i++) {
        struct tensor *y = t->tensor[i];
        if ((y->of != x && y->same != x) || y->data || y->run) continue;
        bool asked = y->holds > 0;
        y->buffer = x->buffer;
        y->buffer->refs++;
        y->data = (char *)x->data + (y->of ? y->of_column * (int64_t)dtype_size(x->dtype) : 0);
        share(t, y);
        if (!asked) tensor_forget(y);
    }
}

static void make(struct tape *t, struct tensor *x) {
    while (!x->run && (x->of || x->same)) x = x->of ? x->of : x->same;
    if (!x->run) bug("tensor '%s' cannot be made again", x->label);
    const struct run r =
        t->run[x->run - 1]; /* a copy: the array stays, but for the reader's ease */
    const struct op_row *row = op_row(r.op);
    char args[ARGS];
    int64_t counts[OPERANDS];
    struct piece *scratch[OPERANDS] = {0};
    bool made[OPERANDS] = {0};
    memcpy(args, r.args, sizeof args);
    row->counts(args, counts);
    for (int i = 0; i < row->n_operands; i++)
        if (r.of[i] && is_read(&row->operands[i]) && !r.of[i]->data) make(t, r.of[i]);
    for (int i = 0; i < row->n_operands; i++) {
        const struct operand_row *o = &row->operands[i];
        struct tensor *y = r.of[i];
        void *p = pointer_of(args, o);
        if (y && is_made(o) && !y->data) {
            y->buffer =
                buffer_new(t->arena, (size_t)(y->rows * y->width) * dtype_size(y->dtype), y->label);
            y->data = y->buffer->p;
            made[i] = true;
        }
        if (y) p = y->data;
        else if (p && o->kind == OPERAND_TMP)
            p = scratch_take(t, (size_t)counts[i] * operand_size(o->type, r.stored), &scratch[i]);
        memcpy(args + o->at, &p, sizeof p);
    }
    device_run(t->device, r.op, r.stored, args);
    for (int i = row->n_operands - 1; i >= 0; i--) {
        if (scratch[i]) scratch_give(t, scratch[i]);
        if (!made[i]) continue;
        share(t, r.of[i]);
        if (!r.of[i]->holds) tensor_forget(r.of[i]); /* only shared, or nobody asks */
    }
}

void tape_again_read(struct tape *t, struct note *n) {
    if (!t->n_runs) return;
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i] && n->op->reads_in >> i & 1 && !n->in[i]->data && tape_again_can(n->in[i]))
            make(t, n->in[i]);
    for (int i = 0; i < n->n_out; i++)
        if (n->out[i] && n->op->reads_out >> i & 1 && !n->out[i]->data && tape_again_can(n->out[i]))
            make(t, n->out[i]);
}
