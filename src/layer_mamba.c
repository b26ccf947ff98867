/* mamba: the Mamba-2 block, one 'M' of the pattern.
 *
 *   z | x | B | C | dt = in_proj(norm(x));  x, B, C = silu(conv(x | B | C));  y = scan(x, B, C,
 * dt); out_proj(w * g / rms(g)) with g = y silu(z), the norm over each group's channels
 *
 * Heads are split over the tensor ranks, B and C by groups; where the ranks outnumber the groups,
 * neighbours hold the same B and C, and the norm of a group is finished by a sum over them. */
#include "kernels/die.h"
#include "kernels/scan_recent.h"
#include "parallel/context_heads.h"
#include "parallel/context_mamba.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"
#include "src/layer.h"

enum { NORM, IN, IN_BIAS, CONV, CONV_BIAS, DT_BIAS, A_LOG, D, GATE_NORM, OUT, OUT_BIAS };
#define IN_SEGMENTS                                                                                \
    {                                                                                              \
        {INNER, MAMBA_HEADS}, {INNER, MAMBA_HEADS}, {GROUP_STATE, GROUPS}, {GROUP_STATE, GROUPS},  \
        {                                                                                          \
            MAMBA_HEADS, MAMBA_HEADS                                                               \
        }                                                                                          \
    }
#define CONV_SEGMENTS                                                                              \
    {                                                                                              \
        {INNER, MAMBA_HEADS}, {GROUP_STATE, GROUPS}, {                                             \
            GROUP_STATE, GROUPS                                                                    \
        }                                                                                          \
    }
/* clang-format off */
static const struct param_row rows[] = {
    /* name                   shape                 split      segments                       begins          may be                    when             block  meaning */
    {"norm.weight",           {HIDDEN},             WHOLE_ROW, {{0}},                         INIT_ONE,       0,                        ALWAYS,          NULL, "scale before the block"},
    {"mixer.in_proj.weight",  {MAMBA_IN, HIDDEN},   ROWS,      IN_SEGMENTS,                   INIT_NORMAL,    DECAY|QUANT|ADAPT|STORED, ALWAYS,          NULL, "to gate z, x, B, C and time steps"},
    {"mixer.in_proj.bias",    {MAMBA_IN},           ROWS,      IN_SEGMENTS,                   INIT_ZERO,      0,                        WITH_MAMBA_BIAS, NULL, "bias of in_proj"},
    {"mixer.conv1d.weight",   {MAMBA_CONV, ONE, KERNEL}, ROWS, CONV_SEGMENTS,                 INIT_CONV,      0,                        ALWAYS,          NULL, "taps of each channel"},
    {"mixer.conv1d.bias",     {MAMBA_CONV},         ROWS,      CONV_SEGMENTS,                 INIT_CONV_BIAS, 0,                        WITH_CONV_BIAS,  NULL, "bias of the convolution"},
    {"mixer.dt_bias",         {MAMBA_HEADS},        ROWS,      {{MAMBA_HEADS, MAMBA_HEADS}},  INIT_DT_BIAS,   0,                        ALWAYS,          NULL, "a head's time step before softplus"},
    {"mixer.A_log",           {MAMBA_HEADS},        ROWS,      {{MAMBA_HEADS, MAMBA_HEADS}},  INIT_A_LOG,     0,                        ALWAYS,          NULL, "log of a head's decay rate"},
    {"mixer.D",               {MAMBA_HEADS},        ROWS,      {{MAMBA_HEADS, MAMBA_HEADS}},  INIT_ONE,       0,                        ALWAYS,          NULL, "a head's straight path"},
    {"mixer.norm.weight",     {INNER},              ROWS,      {{INNER, MAMBA_HEADS}},        INIT_ONE,       0,                        ALWAYS,          NULL, "scale of the gated norm"},
    {"mixer.out_proj.weight", {HIDDEN, INNER},      COLUMNS,   {{INNER, MAMBA_HEADS}},        INIT_MAMBA_OUT, DECAY|QUANT|ADAPT|STORED, ALWAYS,          NULL, "returns to the stream"},
    {"mixer.out_proj.bias",   {HIDDEN},             WHOLE_ROW, {{0}},                         INIT_ZERO,      0,                        WITH_MAMBA_BIAS, NULL, "bias of out_proj"},
};
/* clang-format on */

enum { CONV_STATE, SCAN_STATE, SCAN_TOKENS };

/* x, B, C and the time steps of this rank, as context ranks share them out. */
static struct scan_shape parts(const struct layer *l, struct heads_segment part[4]) {
    const struct deck_model *c = &l->config->keys;
    int64_t first, groups;
    int share;
    part_heads(c->n_groups, l->mesh->tensor, l->tensor_rank, &first, &groups, &share);
    const struct scan_shape s = {l->p[A_LOG]->rows, c->mamba_head_dim, groups,
                                 c->ssm_state_size, c->chunk_size,     l->config->dt_min,
                                 l->config->dt_max};
    const int64_t state = s.groups * s.state;
    part[0] = (struct heads_segment){s.heads * s.head_dim, s.heads};
    part[1] = part[2] = (struct heads_segment){state, s.groups};
    part[3] = (struct heads_segment){s.heads, s.heads};
    return s;
}

/* Those of them that one rank along context meets. */
static struct scan_shape some_heads(const struct scan_shape *s, int context,
                                    const struct heads_segment part[4]) {
    struct scan_shape some = *s;
    some.heads = heads_width(context, 1, &part[3]);
    some.groups = heads_width(context, 1, &part[1]) / s->state;
    return some;
}

/* Numbers of a sequence's columns that the convolution looks back on, of the scan's state, and of
 * the tokens since it was written; none grows with the tokens. */
static void state_widths(const struct layer *l, const struct parallel *p, int64_t n[LAYER_STATES]) {
    struct heads_segment part[4];
    struct scan_shape s = parts(l, part);
    int64_t channels = l->p[CONV]->rows;
    if (p->mamba_heads) {
        channels = heads_width(p->shape.context, 3, part);
        s = some_heads(&s, p->shape.context, part);
    }
    n[CONV_STATE] = (l->p[CONV]->width - 1) * channels;
    n[SCAN_STATE] = s.heads * s.head_dim * s.state;
    n[SCAN_TOKENS] = scan_remembers(&s);
}

/* Of so many sequences, those whose states are here: all of some
 * heads, or those dealt to this rank. */
static int64_t state_rows(const struct parallel *p, int64_t sequences) {
    const int context = p->shape.context, me = p->at.context;
    if (p->mamba_heads) return sequences;
    return context_dealt(context, me + 1, sequences) - context_dealt(context, me, sequences);
}

static void state_size(const struct layer *l, const struct parallel *p, int64_t sequences,
                       int64_t capacity, int64_t n[LAYER_STATES]) {
    (void)capacity;
    state_widths(l, p, n);
    for (int i = 0; i < LAYER_STATES; i++) n[i] *= state_rows(p, sequences);
}

/* State i of the batch's sequences, of which there are so many on all ranks along context, as a
 * tensor beside x; NULL where nothing is remembered. */
static struct tensor *state_of(struct tape *t, const struct layer *l, int i, int64_t sequences,
                               const struct tensor *x) {
    int64_t n[LAYER_STATES];
    if (!l->pass->state) return NULL;
    state_widths(l, t->parallel, n);
    return tensor_over(t, "state", l->pass->state[l->number].p[i],
                       i == CONV_STATE ? t->stored : t->real, state_rows(t->parallel, sequences),
                       n[i], &x->layout);
}

/* What context ranks carry from call to call is nothing before the first. */
static struct tensor *carried_of(struct tape *t, const struct layer *l, int i, int64_t sequences,
                                 const struct tensor *x) {
    struct tensor *s = state_of(t, l, i, sequences, x);
    if (s && !l->pass->past && tensor_elements(s))
        DEVICE_RUN(t->device, fill, s->dtype, .x = s->data, .T = s->rows, .W = s->width,
                   .ld = s->width, .value = 0);
    return s;
}

/* w g / rms(g), g = y silu(z); a group shared with neighbours is finished by a sum over them. */
static struct tensor *norm_gated(struct tape *t, struct layer *l, struct tensor *y,
                                 struct tensor *z, int64_t groups, int share) {
    const struct deck_model *c = &l->config->keys;
    struct param *w = l->p[GATE_NORM];
    if (share == 1) return gated_norm(t, y, z, w, groups, c->layer_norm_epsilon);
    struct tensor *squares = share_sum(t, gate_squares(t, y, z, groups, share), share);
    return gate_norm(t, y, z, squares, w, dim_size(l->config, INNER) / c->n_groups,
                     c->layer_norm_epsilon);
}

/* Sequences of the batch, on all ranks along context. */
static int64_t sequences_of(const struct tape *t, const struct batch *b) {
    return b->dealt ? b->all_rows : b->rows / context_held(t->parallel->shape.context);
}

/* Convolution and scan of x | B | C and dt of this rank's tokens, [tokens, heads * head_dim]: of
 * pieces with what lies before them elsewhere. */
static struct tensor *recur_in_pieces(struct tape *t, struct layer *l, const struct scan_shape *s,
                                      struct tensor *xbc, struct tensor *dt) {
    const struct batch *b = &l->pass->batch;
    const int64_t n = sequences_of(t, b);
    struct tensor *columns =
        context_halo(t, b, xbc, l->p[CONV]->width - 1, carried_of(t, l, CONV_STATE, n, xbc));
    struct tensor *u = conv(t, b, xbc, l->p[CONV], l->p[CONV_BIAS], columns, NULL);
    struct tensor *y = context_scan(t, b, s, u, dt, l->p[A_LOG], l->p[D], l->p[DT_BIAS],
                                    carried_of(t, l, SCAN_STATE, n, dt));
    tensor_drop(t, u);
    tensor_drop(t, columns);
    return y;
}

/* The scan of whole sequences. In generation their states wait for several tokens, since writing
 * them would take most of the time of one. */
static struct tensor *scan_whole(struct tape *t, struct layer *l, const struct batch *b,
                                 const struct scan_shape *s, struct tensor *u, struct tensor *dt,
                                 struct tensor *a, struct tensor *d, struct tensor *bias,
                                 int64_t sequences) {
    const struct pass *p = l->pass;
    struct tensor *states = state_of(t, l, SCAN_STATE, sequences, dt);
    if (!states || p->generated < 0)
        return scan(t, b, s, u, dt, a, d, bias, p->past ? states : NULL, states ? &states : NULL);
    return scan_next(t, b, s, u, dt, a, d, bias, states, state_of(t, l, SCAN_TOKENS, sequences, dt),
                     p->generated % SCAN_RECENT);
}

/* The same of whole sequences. */
static struct tensor *recur(struct tape *t, struct layer *l, const struct scan_shape *s,
                            struct tensor *xbc, struct tensor *dt) {
    const struct batch *b = &l->pass->batch;
    if (t->parallel->shape.context > 1 && !b->dealt) return recur_in_pieces(t, l, s, xbc, dt);
    const bool begun = l->pass->past > 0;
    const int64_t n = sequences_of(t, b);
    struct tensor *columns = state_of(t, l, CONV_STATE, n, xbc);
    struct tensor *u = conv(t, b, xbc, l->p[CONV], l->p[CONV_BIAS], begun ? columns : NULL,
                            columns ? &columns : NULL);
    struct tensor *a = tape_use_real(t, l->p[A_LOG], u), *d = tape_use_real(t, l->p[D], u),
                  *bias = tape_use_real(t, l->p[DT_BIAS], u);
    struct tensor *y = scan_whole(t, l, b, s, u, dt, a, d, bias, n);
    tensor_drop(t, u);
    return y;
}

/* The same from x | B | C | dt, where the context ranks exchange tokens for heads: of all tokens
 * for some of the heads, and back. */
static struct tensor *recur_by_heads(struct tape *t, struct layer *l, const struct scan_shape *s,
                                     const struct heads_segment part[4], struct tensor *in) {
    const struct batch *b = &l->pass->batch, *whole = &l->pass->whole;
    const int context = t->parallel->shape.context;
    const bool begun = l->pass->past > 0;
    const struct scan_shape some = some_heads(s, context, part);
    struct tensor *all = context_to_heads(t, b, in, 4, part), *v[2], *w[5];
    tensor_columns(t, all, 2, (int64_t[]){heads_width(context, 3, part), some.heads}, v);
    static const int rows_of[] = {CONV, CONV_BIAS, A_LOG, D, DT_BIAS};
    for (int i = 0; i < 5; i++) {
        struct param *p = l->p[rows_of[i]];
        w[i] = !p      ? NULL
               : i < 2 ? context_heads_weight(t, p, v[0], 3, part)
                       : context_heads_weight(t, p, v[0], 1, part + 3);
    }
    struct tensor *columns = state_of(t, l, CONV_STATE, whole->rows, v[0]);
    struct tensor *u =
        conv_with(t, whole, v[0], w[0], w[1], begun ? columns : NULL, columns ? &columns : NULL);
    struct tensor *o = scan_whole(t, l, whole, &some, u, v[1], w[2], w[3], w[4], whole->rows);
    struct tensor *y = context_from_heads(t, b, o);
    struct tensor *const done[] = {u, o, v[0], v[1], all};
    for (int i = 0; i < 5; i++) tensor_drop(t, done[i]);
    for (int i = 0; i < 5; i++) tensor_drop(t, w[i]);
    return y;
}

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct deck_model *c = &l->config->keys;
    const struct batch *b = &l->pass->batch;
    int64_t heads = l->p[A_LOG]->rows, inner = l->p[GATE_NORM]->rows, channels = l->p[CONV]->rows,
            first, groups;
    int share;
    part_heads(c->n_groups, l->mesh->tensor, l->tensor_rank, &first, &groups, &share);
    struct tensor *h = rms_norm(t, x, l->p[NORM], c->layer_norm_epsilon), *v[3] = {0};
    h = tensor_enter(t, h, b->rows * b->length);
    struct tensor *in = add_after(t, linear(t, h, l->p[IN]), l->p[IN_BIAS]);
    tensor_drop(t, h);
    const bool exchanged = t->parallel->shape.context > 1 && t->parallel->mamba_heads;
    /* z, x | B | C, dt; the latter two together where they are exchanged */
    int64_t width[] = {inner, channels + exchanged * heads, heads};
    tensor_columns(t, in, exchanged ? 2 : 3, width, v);
    struct heads_segment part[4];
    const struct scan_shape shape = parts(l, part);
    struct tensor *y =
        exchanged ? recur_by_heads(t, l, &shape, part, v[1]) : recur(t, l, &shape, v[1], v[2]);
    struct tensor *g = norm_gated(t, l, y, v[0], groups, share);
    for (int i = 0; i < 3; i++) tensor_drop(t, v[i]);
    tensor_drop(t, in);
    tensor_drop(t, y);
    struct tensor *out = tensor_leave(t, linear(t, g, l->p[OUT]));
    return add_after(t, out, l->p[OUT_BIAS]);
}

static char *describe(const struct deck_model *k) {
    return die_format("%ld heads of %ld, state %ld", (long)k->mamba_num_heads,
                      (long)k->mamba_head_dim, (long)k->ssm_state_size);
}

const struct layer_kind layer_mamba = {.letter = 'M',
                                       .name = "mamba",
                                       .describe = describe,
                                       .rows = rows,
                                       .n_rows = sizeof rows / sizeof *rows,
                                       .forward = forward,
                                       .state_size = state_size,
                                       .real_states = 1u << SCAN_STATE | 1u << SCAN_TOKENS};
