#include "src/params.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

int64_t dim_size(const struct config *c, enum dim d) {
    const struct deck_model *k = &c->keys;
    switch (d) {
    case NONE: return 0;
    case ONE: return 1;
    case HIDDEN: return k->hidden_size;
    case TWICE_HIDDEN: return 2 * k->hidden_size;
    case VOCAB: return k->vocab_size;
    case FFN: return k->intermediate_size;
    case HEADS: return k->num_attention_heads;
    case KV_HEADS: return k->num_key_value_heads;
    case QUERIES: return k->num_attention_heads * k->head_dim;
    case KEYS: return k->num_key_value_heads * k->head_dim;
    case MAMBA_HEADS: return k->mamba_num_heads;
    case GROUPS: return k->n_groups;
    case INNER: return k->mamba_num_heads * k->mamba_head_dim;
    case GROUP_STATE: return k->n_groups * k->ssm_state_size;
    case MAMBA_IN:
        return 2 * dim_size(c, INNER) + 2 * dim_size(c, GROUP_STATE) + k->mamba_num_heads;
    case MAMBA_CONV: return dim_size(c, INNER) + 2 * dim_size(c, GROUP_STATE);
    case KERNEL: return k->conv_kernel;
    case EXPERTS: return k->n_routed_experts;
    case EXPERT_FFN: return k->moe_intermediate_size;
    case SHARED_FFN: return k->moe_shared_expert_intermediate_size;
    case LATENT: return k->moe_latent_size ? k->moe_latent_size : k->hidden_size;
    }
    bug("unknown dimension %d", d);
}

bool params_has(const struct config *c, const struct param_row *row) {
    const struct deck_model *k = &c->keys;
    switch (row->when) {
    case ALWAYS: return true;
    case WITH_MLP_BIAS: return k->mlp_bias;
    case WITH_MAMBA_BIAS: return k->use_bias;
    case WITH_CONV_BIAS: return k->use_conv_bias;
    case WITH_ATTENTION_BIAS: return k->attention_bias;
    case WITH_LATENT: return k->moe_latent_size > 0;
    case WITH_LATENT_BIAS: return k->moe_latent_size > 0 && k->mlp_bias;
    case UNTIED: return !k->tie_word_embeddings;
    }
    bug("unknown condition of row %s", row->name);
}

void params_init(struct params *s, const struct config *c, const struct mesh_shape *shape,
                 int rank) {
    memset(s, 0, sizeof *s);
    s->config = c;
    s->shape = *shape;
    s->at = mesh_coords(shape, rank);
}

void params_free(struct params *s) {
    for (int i = 0; i < s->n_tensors; i++) free(s->tensor[i].name);
    for (int i = 0; i < s->n_blocks; i++) free((char *)s->block[i].p.name);
    free(s->tensor);
    free(s->block);
    memset(s, 0, sizeof *s);
}

/* ---- how a row is cut ---- */

static bool is_family(const struct param_row *row) {
    return strstr(row->name, "%e") != NULL;
}

/* Numbers that stand together along the split dimension: here, and in the whole tensor. */
struct span {
    int64_t global, local, n;
    int share, share_rank; /* neighbours that hold the same, and this rank's number among them */
};

static int row_spans(const struct params *s, const struct param_row *row, struct span *out) {
    int ranks = is_family(row) ? s->shape.expert_tensor : s->shape.tensor;
    int at = is_family(row) ? s->at.expert_tensor : s->at.tensor, n = 0;
    int64_t global = 0, local = 0;
    if (row->split == WHOLE_ROW) {
        out[0] = (struct span){0, 0, dim_size(s->config, row->shape[0]), 1, 0};
        return 1;
    }
    for (const struct row_segment *g = row->segment;
         g < row->segment + MAX_SEGMENTS && g->width != NONE; g++) {
        int64_t width = dim_size(s->config, g->width), first, held;
        struct span *p = &out[n++];
        p->share = 1;
        if (g->units != NONE) {
            int64_t units = dim_size(s->config, g->units), unit = width / units;
            if (part_heads(units, ranks, at, &first, &held, &p->share))
                bug("row %s cannot be split over %d ranks", row->name, ranks);
            first *= unit;
            held *= unit;
        } else {
            first = part_begin(width, ranks, at, 1);
            held = part_begin(width, ranks, at + 1, 1) - first;
        }
        p->share_rank = at % p->share;
        p->global = global + first;
        p->local = local;
        p->n = held;
        global += width;
        local += held;
    }
    return n;
}

static int64_t spans_width(int n, const struct span *spans) {
    return spans[n - 1].local + spans[n - 1].n;
}

/* A stored tensor as a matrix: its first dimension by all the others. */
static void matrix_of(const struct config *c, const struct param_row *row, int64_t *rows,
                      int64_t *columns) {
    *rows = dim_size(c, row->shape[0]);
    *columns = 1;
    for (int i = 1; i < 3 && row->shape[i] != NONE; i++) *columns *= dim_size(c, row->shape[i]);
}

int params_shares(const struct config *c, int tensor, int *shares) {
    int64_t first, held;
    int n = 0, share;
    if (strchr(c->kinds, '*') &&
        !part_heads(c->keys.num_key_value_heads, tensor, 0, &first, &held, &share))
        shares[n++] = share;
    if (strchr(c->kinds, 'M') && !part_heads(c->keys.n_groups, tensor, 0, &first, &held, &share))
        shares[n++] = share;
    return n;
}

/* ---- the tables ---- */

static void *grow(void *p, int n, size_t size) {
    if (n & (n - 1)) return p; /* room is doubled at powers of two */
    return die_realloc(p, (n ? 2 * (size_t)n : 1) * size);
}

static struct param_tensor *add_tensor(struct params *s, const struct param_row *row,
                                       const char *prefix, int layer, int expert) {
    s->tensor = grow(s->tensor, s->n_tensors, sizeof *s->tensor);
    struct param_tensor *t = &s->tensor[s->n_tensors++];
    memset(t, 0, sizeof *t);
    const char *e = strstr(row->name, "%e");
    t->name = e ? die_format("%s%.*s%d%s", prefix, (int)(e - row->name), row->name, expert, e + 2)
                : die_format("%s%s", prefix, row->name);
    t->row = row;
    t->layer = layer;
    t->expert = expert;
    t->block = -1;
    t->elements = 1;
    t->stored = F32;
    for (; t->n_dims < 3 && row->shape[t->n_dims] != NONE; t->n_dims++) {
        t->dim[t->n_dims] = dim_size(s->config, row->shape[t->n_dims]);
        t->elements *= t->dim[t->n_dims];
    }
    return t;
}

static int family_size(const struct params *s, const struct param_row *row) {
    return is_family(row) ? (int)dim_size(s->config, EXPERTS) : 1;
}

void params_add_unused(struct params *s, const struct param_row *row, const char *prefix,
                       int layer) {
    if (!params_has(s->config, row)) return;
    for (int e = 0; e < family_size(s, row); e++)
        add_tensor(s, row, prefix, layer, is_family(row) ? e : -1);
}

static struct param_block *block_for(struct params *s, const struct param_row *row,
                                     const char *prefix, int layer, int64_t columns) {
    struct param_block *last = s->n_blocks ? &s->block[s->n_blocks - 1] : NULL;
    if (row->block && last && last->layer == layer && last->row->block &&
        !strcmp(last->row->block, row->block)) {
        if (last->p.width != columns) bug("rows of block %s differ in width", row->block);
        return last;
    }
    s->block = grow(s->block, s->n_blocks, sizeof *s->block);
    struct param_block *b = &s->block[s->n_blocks++];
    memset(b, 0, sizeof *b);
    b->p.name = die_format("%s%s", prefix, row->block ? row->block : row->name);
    b->p.width = columns;
    b->p.layout.factoring = is_family(row) ? EXPERT : DENSE;
    b->p.trained = !(row->may & BUFFER);
    b->row = row;
    b->layer = layer;
    b->decay = row->may & DECAY;
    b->rate = 1;
    if (is_family(row)) b->p.layout.state[AXIS_EXPERT] = SPLIT;
    return b;
}

int params_add(struct params *s, const struct param_row *row, const char *prefix, int layer) {
    if (!params_has(s->config, row)) return -1;
    struct span span[MAX_SEGMENTS];
    int n = row_spans(s, row, span);
    int64_t rows, columns;
    matrix_of(s->config, row, &rows, &columns);
    if (row->split == COLUMNS) columns = spans_width(n, span);
    else rows = spans_width(n, span);
    struct param_block *b = block_for(s, row, prefix, layer, columns);
    struct layout *l = &b->p.layout;
    if (row->split != WHOLE_ROW) {
        l->state[AXIS_TENSOR] = SPLIT;
        l->by[AXIS_TENSOR] = row->split == ROWS ? BY_ROWS : BY_COLUMNS;
        for (int i = 0; i < n; i++) {
            if (l->n_segments == MAX_SEGMENTS) bug("block %s has too many segments", b->p.name);
            l->segment[l->n_segments++] = (struct segment){span[i].n, span[i].share};
        }
    }
    int block = s->n_blocks - 1, family = family_size(s, row);
    int64_t held = 1, first = 0;
    if (is_family(row)) {
        int share;
        if (part_heads(family, s->shape.expert, s->at.expert, &first, &held, &share) || share > 1)
            bug("%d experts over %d ranks", family, s->shape.expert);
    }
    for (int e = 0; e < family; e++) {
        struct param_tensor *t = add_tensor(s, row, prefix, layer, is_family(row) ? e : -1);
        t->block = block;
        t->block_row =
            e >= first && e < first + held ? s->block[block].p.rows + (e - first) * rows : -1;
    }
    b = &s->block[block];
    b->p.rows += held * rows;
    b->elements = b->p.rows * b->p.width;
    return block;
}

/* ---- memory ---- */

/* Whether every tensor in the block is the same after rounding to `stored`. */
static bool saved_as(const struct params *s, int block, enum dtype stored) {
    for (int i = 0; i < s->n_tensors; i++)
        if (s->tensor[i].block == block && s->tensor[i].stored != stored) return false;
    return true;
}

void params_allocate(struct params *s, struct arena *values, struct arena *grads,
                     struct arena *masters, enum dtype stored) {
    enum dtype real = dtype_real(stored);
    for (int i = 0; i < s->n_blocks; i++) {
        struct param_block *b = &s->block[i];
        size_t bytes = (size_t)b->elements * dtype_size(real);
        b->p.dtype = b->row->may & STORED ? stored : real;
        b->value_piece = arena_take(values, (size_t)b->elements * dtype_size(b->p.dtype), b->p.name,
                                    &b->p.value);
        if (!b->p.trained || !grads) b->p.trained = false;
        else b->grad_piece = arena_take(grads, bytes, b->p.name, &b->p.grad);
        if (masters && b->p.dtype != real && (b->p.trained || !saved_as(s, i, stored)))
            arena_take(masters, bytes, b->p.name, &b->master);
    }
}

void params_round(struct params *s, struct device *d, enum dtype stored) {
    for (int i = 0; i < s->n_blocks; i++) {
        struct param_block *b = &s->block[i];
        if (b->master)
            DEVICE_RUN(d, narrow, stored, .x = b->master, .y = b->p.value, .n = b->elements);
    }
}

void params_zero_gradients(struct params *s, struct device *d, enum dtype real) {
    bool cleared = s->cleared;
    s->cleared = false;
    for (int i = 0; !cleared && i < s->n_blocks; i++) {
        struct param_block *b = &s->block[i];
        if (b->p.trained)
            DEVICE_RUN(d, fill, real, .x = b->p.grad, .T = 1, .W = b->elements, .ld = b->elements,
                       .value = 0);
    }
}

/* ---- boxes ---- */

/* Whether this rank is the one that speaks for what it holds of a tensor (heads shared by
 * neighbours apart). */
static bool owns(const struct params *s, const struct param_tensor *t) {
    bool split = t->row->split != WHOLE_ROW;
    if (is_family(t->row)) return s->at.expert_data == 0 && (split || s->at.expert_tensor == 0);
    return s->at.data == 0 && s->at.context == 0 && (split || s->at.tensor == 0);
}

static int tensor_boxes(const struct params *s, int number, void *memory, enum dtype d,
                        bool owned_only, struct box *out) {
    const struct param_tensor *t = &s->tensor[number];
    const struct param_block *b = &s->block[t->block];
    if (t->block_row < 0 || (owned_only && !owns(s, t))) return 0;
    struct span span[MAX_SEGMENTS];
    int n = row_spans(s, t->row, span), made = 0;
    int64_t rows, columns;
    matrix_of(s->config, t->row, &rows, &columns);
    for (int i = 0; i < n; i++) {
        if (owned_only && span[i].share_rank) continue;
        struct box *x = &out[made];
        *x = (struct box){
            .tensor = number, .width = columns, .rows = rows, .columns = columns, .dtype = d};
        int64_t row = t->block_row, column = 0;
        if (t->row->split == COLUMNS) {
            x->column = span[i].global;
            x->columns = span[i].n;
            column = span[i].local;
        } else {
            x->row = span[i].global;
            x->rows = span[i].n;
            row += span[i].local;
        }
        if (!x->rows || !x->columns) continue;
        x->stride = b->p.width;
        x->memory = (char *)memory + (row * b->p.width + column) * dtype_size(d);
        made++;
    }
    return made;
}

static void *part_of(const struct param_block *b, enum part part) {
    switch (part) {
    case PART_VALUES: return b->master ? b->master : b->p.value;
    case PART_GRADIENTS: return b->p.trained ? b->p.grad : NULL;
    case PART_MOMENT_1: return b->m;
    case PART_MOMENT_2: return b->v;
    }
    return NULL;
}

struct box *params_boxes(const struct params *s, enum dtype real, enum part part, bool owned_only,
                         int *n) {
    struct box *boxes = die_alloc(((size_t)s->n_tensors * MAX_SEGMENTS + 1) * sizeof *boxes);
    *n = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_block *b = s->tensor[i].block < 0 ? NULL : &s->block[s->tensor[i].block];
        void *memory = b ? part_of(b, part) : NULL;
        enum dtype d = part == PART_VALUES && b && !b->master ? b->p.dtype : real;
        if (memory) *n += tensor_boxes(s, i, memory, d, owned_only, boxes + *n);
    }
    return boxes;
}

void boxes_to_host(const struct device *d, int n, struct box *boxes) {
    for (int i = 0; i < n; i++) boxes[i].memory = device_host(d, boxes[i].memory);
}

/* ---- counts ---- */

struct param_counts params_count(const struct params *s) {
    struct param_counts c = {.tensors = s->n_tensors};
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        c.all += t->elements;
        if (t->block < 0) c.mtp += t->elements;
        else if (t->layer < 0 && !strcmp(t->row->name, "backbone.embeddings.weight"))
            c.embedding += t->elements;
        else if (t->expert < s->config->keys.num_experts_per_tok) c.active += t->elements;
    }
    if (s->config->keys.tie_word_embeddings) c.active += c.embedding;
    return c;
}
