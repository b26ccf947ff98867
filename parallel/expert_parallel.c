#include "parallel/expert_parallel.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_segment.h"
#include "parallel/groups.h"

/* Between dispatch and return. Rows are in three orders: as they left (`sent` of `slots`, by
 * expert), as they come (`rows`, by expert-tensor rank, then by expert rank, then by expert), and
 * by expert. */
struct journey {
    struct group *experts, *parts; /* of the expert and the expert-tensor axis */
    bool home;                     /* nothing moves: rows stay as they are */
    int64_t slots, rows, width;
    enum dtype dtype;
    int64_t *send, *come;            /* [experts] bytes to each and from each */
    int64_t *gather;                 /* [parts] elements that each of these got */
    int64_t before;                  /* elements of those before this rank's */
    struct layout from, at;          /* of rows where they left, and at the experts */
    struct tensor *order, *position; /* between as they come and by expert; NULL: the same */
    struct tensor *offset;
    struct tensor *sent, *flying, *arriving; /* x; in flight; at the experts */
    struct tensor *result, *returning;       /* the experts'; at home again */
    /* under way: */
    struct request request;
    void *all; /* rows as they come */
    struct piece *piece;
};

bool experts_at_home(const struct parallel *p) {
    return p->shape.expert == 1 && p->shape.expert_tensor == p->shape.tensor;
}

struct token_range own_tokens(const struct mesh_shape *s, const struct mesh_coords *at,
                              const struct travel *v, bool split) {
    const int context = v->dealt ? 1 : s->context, c = v->dealt ? 0 : at->context;
    int64_t pieces = context > 1 ? 2 : 1, piece = v->length / pieces;
    return (struct token_range){
        .first = split ? part_begin(v->tokens, s->tensor, at->tensor, 1) : 0,
        .length = v->length,
        .piece = piece,
        .begin = {c * piece, (2 * context - 1 - c) * piece},
    };
}

void even_choices(const struct travel *v, const struct token_range *r, int64_t tokens, int64_t from,
                  int64_t n, int64_t *choices) {
    for (int64_t e = 0; e < n; e++) choices[e] = 0;
    for (int64_t t = r->first, end; t < r->first + tokens; t = end) { /* in turn, piece by piece */
        int64_t at = t % r->length, second = at >= r->piece,
                place = second ? r->begin[1] + at - r->piece : r->begin[0] + at;
        end = t - at + (second ? r->length : r->piece);
        if (end > r->first + tokens) end = r->first + tokens;
        int64_t a = place * v->chosen, b = a + (end - t) * v->chosen;
        for (int64_t e = 0; e < n; e++) /* numbers in [a, b) that leave from + e */
            choices[e] += (b + v->experts - 1 - from - e) / v->experts -
                          (a + v->experts - 1 - from - e) / v->experts;
    }
}

/* Choices of the experts before e, of a rank. The ranks round at different places: floor(x + r/n)
 * over all r of n adds up to floor(n x). */
static int64_t choices_before(int64_t load, int64_t all, int64_t choices, int rank, int ranks) {
    const __int128 n = (__int128)load * choices * ranks + (__int128)all * rank;
    return (int64_t)(n / ((__int128)all * ranks));
}

void loaded_choices(const struct travel *v, int rank, int ranks, int64_t choices, int64_t from,
                    int64_t n, int64_t *of_each) {
    int64_t load = 0, before;
    for (int64_t e = 0; e < from; e++) load += v->load[e];
    before = choices_before(load, v->load_of, choices, rank, ranks);
    for (int64_t e = 0; e < n; e++) {
        load += v->load[from + e];
        int64_t after = choices_before(load, v->load_of, choices, rank, ranks);
        of_each[e] = after - before;
        before = after;
    }
}

/* ---- who sends how much ---- */

/* What a rank of the stage sends to experts from .. from+n-1, on a dry device. */
static void planned_choices(const struct parallel *p, const struct travel *own, int rank,
                            int64_t from, int64_t n, int64_t *choices) {
    struct mesh_coords at = mesh_coords(&p->shape, rank);
    struct travel v = *own;
    if (own->of) {
        const struct token_share *its = &own->of[at.data * p->shape.context + at.context];
        v.tokens = its->tokens;
        v.length = its->length;
    }
    struct token_range r = own_tokens(&p->shape, &at, &v, true);
    int64_t tokens = part_begin(v.tokens, p->shape.tensor, at.tensor + 1, 1) - r.first;
    const int ranks = mesh_stage_ranks(&p->shape), here = rank % ranks;
    if (v.known)
        for (int64_t e = 0; e < n; e++) choices[e] = v.known[here * v.experts + from + e];
    else if (v.load) loaded_choices(&v, here, ranks, tokens * v.chosen, from, n, choices);
    else even_choices(&v, &r, tokens, from, n, choices);
}

static int32_t *read_ints(struct tape *t, const struct tensor *x) {
    int32_t *v = die_alloc((size_t)tensor_elements(x) * sizeof *v);
    device_read(t->device, v, x->data, (size_t)tensor_elements(x) * sizeof *v);
    return v;
}

/* Choices of each expert by this rank's tokens. */
static int64_t *own_choices(struct tape *t, const struct travel *v, struct tensor *offset) {
    int64_t *n = die_alloc((size_t)v->experts * sizeof *n);
    if (t->device->dry) {
        planned_choices(t->parallel, v, t->parallel->comm->rank, 0, v->experts, n);
        return n;
    }
    int32_t *at = read_ints(t, offset);
    for (int64_t e = 0; e < v->experts; e++) {
        n[e] = at[e + 1] - at[e];
        if (v->note) v->note[e] = (int32_t)n[e];
    }
    free(at);
    return n;
}

/* Exchanges numbers: rows for this rank's experts (a column each) from every rank of the expert
 * group, for every rank of the expert-tensor group. */
static void exchange_numbers(const struct journey *j, const int64_t *own, int64_t held,
                             int32_t *numbers) {
    int e = j->experts->size, parts = j->parts->size;
    int64_t *bytes = die_alloc((size_t)e * sizeof *bytes),
            *each = die_alloc((size_t)parts * sizeof *each);
    int32_t *send = die_alloc((size_t)(e * held) * sizeof *send),
            *mine = numbers + j->parts->rank * e * held;
    struct request r;
    for (int i = 0; i < e; i++) bytes[i] = held * (int64_t)sizeof *send;
    for (int i = 0; i < parts; i++) each[i] = e * held;
    for (int64_t i = 0; i < e * held; i++) send[i] = (int32_t)own[i];
    comm_exchange_start(j->experts, send, bytes, mine, bytes, &r);
    comm_wait(&r);
    comm_gather_start(j->parts, mine, numbers, each, sizeof *numbers, &r);
    comm_wait(&r);
    free(send);
    free(each);
    free(bytes);
}

/* Those numbers: [expert-tensor ranks * expert ranks, experts held]. A replay has them already. */
static struct tensor *numbers_of_rows(struct tape *t, const struct journey *j,
                                      const struct travel *v, const int64_t *own, int64_t *n) {
    const struct parallel *p = t->parallel;
    int64_t held = v->experts / j->experts->size;
    int senders = j->experts->size * j->parts->size;
    struct tensor *kept = tape_kept(t);
    int32_t *numbers =
        kept ? read_ints(t, kept) : die_alloc((size_t)(senders * held) * sizeof *numbers);
    if (!kept) {
        exchange_numbers(j, own, held, numbers);
        kept = tensor_new_ints(t, "rows of experts", senders, held, &j->at);
        device_write(t->device, kept->data, numbers, (size_t)(senders * held) * sizeof *numbers);
        tape_keep(t, kept);
    }
    for (int64_t i = 0; i < senders * held; i++) n[i] = numbers[i];
    for (int i = 0; t->device->dry && i < senders; i++) {
        int rank = mesh_rank_expert(&p->shape, p->at.pipeline, p->at.expert_data,
                                    i % j->experts->size, i / j->experts->size);
        planned_choices(p, v, rank, j->experts->rank * held, held, n + i * held);
    }
    free(numbers);
    return kept;
}

/* ---- orders ---- */

static struct tensor *ints_from(struct tape *t, const char *label, const int32_t *v, int64_t n,
                                const struct layout *l) {
    struct tensor *x = tensor_new_ints(t, label, n, 1, l);
    device_write(t->device, x->data, v, (size_t)n * sizeof *v);
    return x;
}

/* n[sender][expert held] -> where each expert's rows begin, and the order from as they come to by
 * expert, which is the same where there is one expert, or one sender. */
static void make_orders(struct tape *t, struct journey *j, const int64_t *n, int senders,
                        int64_t held) {
    int32_t *offset = die_alloc((size_t)(held + 1) * sizeof *offset),
            *order = die_alloc((size_t)j->rows * sizeof *order + 1),
            *position = die_alloc((size_t)j->rows * sizeof *position + 1);
    int64_t *begin = die_alloc((size_t)(senders + 1) * sizeof *begin), slot = 0;
    for (int s = 0; s < senders; s++) {
        begin[s + 1] = begin[s];
        for (int64_t e = 0; e < held; e++) begin[s + 1] += n[s * held + e];
    }
    for (int64_t e = 0; e < held; e++) {
        for (int s = 0; s < senders; s++)
            for (int64_t i = 0; i < n[s * held + e]; i++, slot++) {
                order[slot] = (int32_t)begin[s];
                position[begin[s]++] = (int32_t)slot;
            }
        offset[e + 1] = (int32_t)slot;
    }
    j->offset = ints_from(t, "expert offset", offset, held + 1, &j->at);
    if (j->parts->size > 1 || (senders > 1 && held > 1)) {
        j->order = ints_from(t, "arrival order", order, j->rows, &j->at);
        j->position = ints_from(t, "arrival position", position, j->rows, &j->at);
    }
    free(begin);
    free(position);
    free(order);
    free(offset);
}

static int64_t sum_of(const int64_t *n, int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += n[i];
    return sum;
}

static void make_counts(struct tape *t, struct journey *j, const struct travel *v,
                        struct tensor *offset) {
    int e = j->experts->size, parts = j->parts->size, senders = e * parts;
    int64_t held = v->experts / e, row = j->width * (int64_t)dtype_size(j->dtype);
    int64_t *own = own_choices(t, v, offset), *n = die_alloc((size_t)(senders * held) * sizeof *n);
    struct tensor *numbers = numbers_of_rows(t, j, v, own, n);
    int64_t *sizes = tape_remember(t, (size_t)(2 * e + parts) * sizeof *sizes);
    const int64_t *mine = n + j->parts->rank * e * held;
    j->send = sizes;
    j->come = sizes + e;
    j->gather = sizes + 2 * e;
    for (int i = 0; i < e; i++) {
        j->send[i] = sum_of(own + i * held, held) * row;
        j->come[i] = sum_of(mine + i * held, held) * row;
    }
    for (int i = 0; i < parts; i++) {
        int64_t rows = sum_of(n + i * e * held, e * held);
        if (i < j->parts->rank) j->before += rows * j->width;
        j->gather[i] = rows * j->width;
        j->rows += rows;
    }
    if (sum_of(own, v->experts) > j->slots)
        bug("%ld rows for experts are %ld too many", (long)sum_of(own, v->experts),
            (long)(sum_of(own, v->experts) - j->slots));
    if (j->rows > INT32_MAX)
        die("%ld rows for one rank's experts are more than can be numbered; a smaller "
            "train.micro_batch, or more ranks, would do",
            (long)j->rows);
    make_orders(t, j, n, senders, held);
    tensor_drop(t, numbers);
    free(n);
    free(own);
}

/* ---- the two ways ---- */

static size_t bytes_of(const struct journey *j, int64_t elements) {
    return (size_t)elements * dtype_size(j->dtype);
}

static char *own_part(const struct journey *j) {
    return (char *)j->all + bytes_of(j, j->before);
}

/* Rows as they come: in memory of their own, unless that is the order by expert (`to`). */
static void take_all(struct tape *t, struct journey *j, void *to) {
    j->all = to;
    if (j->order)
        j->piece =
            arena_take(t->arena, bytes_of(j, j->rows * j->width), "rows on their way", &j->all);
}

static void give_all(struct tape *t, struct journey *j) {
    if (j->piece) arena_give(t->arena, j->piece);
    j->piece = NULL;
}

/* Rows from where they left to their experts. */
static void there_start(struct tape *t, struct journey *j, const void *from, void *to) {
    take_all(t, j, to);
    comm_exchange_start(j->experts, device_host(t->device, from), j->send,
                        device_host(t->device, own_part(j)), j->come, &j->request);
}

static void there_wait(struct tape *t, struct journey *j, void *to) {
    comm_wait(&j->request);
    if (j->parts->size > 1) {
        struct request r;
        comm_gather_start(j->parts, device_host(t->device, own_part(j)),
                          device_host(t->device, j->all), j->gather, dtype_size(j->dtype), &r);
        comm_wait(&r);
    }
    if (j->order)
        DEVICE_RUN(t->device, gather_rows, j->dtype, .x = j->all, .order = j->order->data, .y = to,
                   .T = j->rows, .K = 1, .W = j->width);
    give_all(t, j);
}

/* And back, partial sums added up. Rows that nobody had got are not written. */
static void back_start(struct tape *t, struct journey *j, void *from, void *to) {
    take_all(t, j, from);
    if (j->order)
        DEVICE_RUN(t->device, gather_rows_adjoint, j->dtype, .dy = from,
                   .position = j->position->data, .dx = j->all, .T = j->rows, .K = 1,
                   .W = j->width);
    if (j->parts->size > 1) {
        struct piece *piece;
        struct request r;
        void *scratch =
            scratch_take(t, comm_sum_scatter_scratch(j->parts, j->gather, j->dtype), &piece);
        comm_sum_scatter_start(j->parts, device_host(t->device, j->all),
                               device_host(t->device, own_part(j)), j->gather, j->dtype,
                               device_host(t->device, scratch), &r);
        comm_wait(&r);
        scratch_give(t, piece);
    }
    comm_exchange_start(j->experts, device_host(t->device, own_part(j)), j->come,
                        device_host(t->device, to), j->send, &j->request);
}

static void back_wait(struct tape *t, struct journey *j) {
    comm_wait(&j->request);
    give_all(t, j);
}

/* ---- at home ---- */

static void home_adjoint(struct tape *t, struct note *n, unsigned mask) {
    tape_grad_pass(t, n, 0, 0, mask);
}
static const struct tape_op op_home = {"dispatch", home_adjoint, 0, 0, 0, 0};

/* The same rows on the other axes. */
static struct tensor *refactored(struct tape *t, struct tensor *x, const struct layout *l) {
    struct tensor *y = tensor_alias(t, x, l);
    y->same = x;
    tape_note(t, &op_home, 1, &x, 1, &y);
    return y;
}

/* ---- dispatch ---- */

/* in: x. out: in flight, whose gradient comes home; and what arrives, whose gradient leaves. */
static void dispatch_start_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct journey *j = (struct journey *)n->own;
    back_wait(t, j);
    tape_grad_pass(t, n, 0, 0, mask);
}
static const struct tape_op op_dispatch_start = {"dispatch", dispatch_start_adjoint, 0, 0, 0, 0};

/* in: those two, and the order. out: the rows by expert. */
static void dispatch_wait_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct journey *j = (struct journey *)n->own;
    if (!j->order) tape_grad_pass(t, n, 0, 1, mask); /* so that it stays while it travels */
    void *home = tape_grad_in(t, n, 0, mask, NULL);
    back_start(t, j, j->order ? tape_grad_out(n, 0) : n->in[1]->grad, home);
}
static const struct tape_op op_dispatch_wait = {
    "dispatch wait", dispatch_wait_adjoint, 0xc, 0, 0, 0};

struct journey *expert_dispatch_start(struct tape *t, struct tensor *x, struct tensor *offset,
                                      const struct travel *v) {
    const struct parallel *p = t->parallel;
    struct journey *j = tape_remember(t, sizeof *j);
    op_require(x->layout.factoring == DENSE, "dispatch", x, "is on the experts' axes already");
    op_require(x->data && !x->missing && x->stride == x->width, "dispatch", x,
               "is a view, was dropped, or left out of a replay");
    *j = (struct journey){.experts = p->axis[MESH_EXPERT],
                          .parts = p->axis[MESH_EXPERT_TENSOR],
                          .slots = x->rows,
                          .width = x->width,
                          .dtype = x->dtype,
                          .from = x->layout,
                          .at = x->layout,
                          .sent = x};
    j->at.factoring = EXPERT;
    j->home = experts_at_home(p);
    if (!j->home) {
        op_require(x->layout.state[AXIS_TENSOR] == SPLIT && x->layout.by[AXIS_TENSOR] == BY_ROWS,
                   "dispatch", x, "is not split by tokens");
        j->at.state[AXIS_EXPERT_TENSOR] = ENTERED;
    }
    /* One rank holds all experts whole: its own tokens find them here. */
    if (j->home || j->experts->size * j->parts->size == 1) {
        j->home = true;
        j->offset = offset;
        return j;
    }
    make_counts(t, j, v, offset);
    j->flying = tensor_over(t, "in flight", NULL, j->dtype, j->slots, j->width, &j->from);
    j->arriving = tensor_over(t, "arriving", NULL, j->dtype, j->rows, j->width, &j->at);
    struct tensor *y = tensor_new_of(t, j->dtype, "rows of experts", j->rows, j->width, &j->at);
    there_start(t, j, x->data, y->data);
    struct note *n =
        tape_note(t, &op_dispatch_start, 1, &x, 2, (struct tensor *[]){j->flying, j->arriving});
    if (n) n->own = j;
    j->result = y;
    return j;
}

struct tensor *expert_dispatch_wait(struct tape *t, struct journey *j, struct tensor **offset) {
    struct tensor *y = j->result;
    *offset = j->offset;
    if (j->home) {
        y = refactored(t, j->sent, &j->at);
    } else {
        there_wait(t, j, y->data);
        struct note *n =
            tape_note(t, &op_dispatch_wait, 4,
                      (struct tensor *[]){j->flying, j->arriving, j->order, j->position}, 1, &y);
        if (n) n->own = j;
    }
    tensor_drop(t, j->sent);
    return y;
}

/* ---- return ---- */

/* in: the experts' result. out: in flight, whose gradient leaves for the experts. */
static void return_start_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct journey *j = (struct journey *)n->own;
    (void)mask;
    there_wait(t, j, n->in[0]->grad);
}
static const struct tape_op op_return_start = {"return", return_start_adjoint, 0, 0, 0, 0};

/* in: what is in flight; the result, whose gradient arrives there;
 * the order. out: the rows at home. */
static void return_wait_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct journey *j = (struct journey *)n->own;
    int add;
    tape_grad_pass(t, n, 0, 0, mask); /* so that it stays while it travels */
    void *to = tape_grad_in(t, n, 1, mask, &add);
    op_require(!add, "return", n->in[1], "is used otherwise too");
    there_start(t, j, n->in[0]->grad, to);
}
static const struct tape_op op_return_wait = {"return wait", return_wait_adjoint, 0xc, 0, 0, 0};

void expert_return_start(struct tape *t, struct journey *j, struct tensor *y) {
    op_require(y->layout.factoring == EXPERT, "return", y, "is not on the experts' axes");
    op_require(y->data && !y->missing && y->stride == y->width, "return", y,
               "is a view, was dropped, or left out of a replay");
    j->result = y;
    if (j->home) return;
    op_require(y->layout.state[AXIS_EXPERT_TENSOR] == PARTIAL && y->rows == j->rows &&
                   y->width == j->width && y->dtype == j->dtype,
               "return", y, "is not partial, or not what was dispatched");
    j->returning =
        tensor_new_of(t, j->dtype, "rows back from experts", j->slots, j->width, &j->from);
    back_start(t, j, y->data, j->returning->data);
    struct note *n = tape_note(t, &op_return_start, 1, &y, 1, &j->returning);
    if (n) n->own = j;
}

struct tensor *expert_return_wait(struct tape *t, struct journey *j) {
    struct tensor *y = j->result, *back;
    if (j->home) {
        struct layout l = y->layout;
        l.factoring = DENSE;
        if (!experts_at_home(t->parallel))
            l.state[AXIS_TENSOR] = SPLIT, l.by[AXIS_TENSOR] = BY_ROWS;
        back = refactored(t, y, &l);
    } else {
        back_wait(t, j);
        back = tensor_alias(t, j->returning, &j->from);
        struct note *n =
            tape_note(t, &op_return_wait, 4,
                      (struct tensor *[]){j->returning, y, j->order, j->position}, 1, &back);
        if (n) n->own = j;
        tensor_drop(t, j->returning);
    }
    tensor_drop(t, y);
    return back;
}
