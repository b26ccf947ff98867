/* params: a parameter is a row, and everything that is done to parameters walks the rows.
 *
 * Each layer kind lists its tensors once: checkpoint name, global shape, how it is split over the
 * tensor ranks, how it begins, and what may be done to it. From the rows come two tables:
 *
 *   tensors   every tensor of the checkpoint, by name, with its global shape; the same on all ranks
 *   blocks    what a rank stores: one piece of memory that ops use, which may hold several rows
 *             (q, k and v as one product) or a whole family of them (the experts of a layer: %e in
 *             the name)
 *
 * Blocks of other pipeline stages are in the table too, so that all ranks agree on what is trained,
 * saved and how; but they are not `here` and have no memory.
 *
 * Between the two stand boxes: which rows and columns of which tensor lie where in a block. Initial
 * values, gradient sums, the optimiser, checkpoints, counts and plans walk these tables and know no
 * layer by name. An initial value is a function of seed, name and global place, so every mesh
 * starts from the same weights. */
#ifndef SRC_PARAMS_H
#define SRC_PARAMS_H

#include "io/checkpoint.h"
#include "kernels/tape.h"
#include "parallel/mesh.h"
#include "src/config.h"

/* Sizes of a model, by name, as the rows use them. */
enum dim {
    NONE,
    ONE,
    HIDDEN,
    TWICE_HIDDEN,
    VOCAB,
    FFN,
    HEADS,
    KV_HEADS,
    QUERIES,
    KEYS,
    MAMBA_HEADS,
    GROUPS,
    INNER,
    GROUP_STATE,
    MAMBA_IN,
    MAMBA_CONV,
    KERNEL,
    EXPERTS,
    EXPERT_FFN,
    SHARED_FFN,
    LATENT
};
int64_t dim_size(const struct config *c, enum dim d);

/* Rows with a condition exist only where the model has them. */
enum when {
    ALWAYS,
    WITH_MLP_BIAS,
    WITH_MAMBA_BIAS,
    WITH_CONV_BIAS,
    WITH_ATTENTION_BIAS,
    WITH_LATENT,
    WITH_LATENT_BIAS,
    UNTIED
};

enum split { WHOLE_ROW, ROWS, COLUMNS };
enum init {
    INIT_NORMAL,    /* N(0, initializer_range) */
    INIT_RESIDUAL,  /* the same; Megatron: divided by sqrt(layers) */
    INIT_MAMBA_OUT, /* huggingface: U(+-1/sqrt(inner)) / sqrt(layers), if rescale_prenorm_residual;
                       else as INIT_RESIDUAL */
    INIT_CONV,      /* huggingface: N(0, 0.02); Megatron: U(+-1/sqrt(K)) */
    INIT_CONV_BIAS, /* huggingface: 0; Megatron: U(+-1/sqrt(K)) */
    INIT_A_LOG,     /* huggingface: log(1..heads); Megatron: log U(1,16) */
    INIT_DT_BIAS,   /* softplus^-1 of a log-uniform time step */
    INIT_ONE,
    INIT_ZERO
};
enum may {
    DECAY = 1,
    QUANT = 2,
    ADAPT = 4,
    BUFFER = 8, /* not trained, always saved in fp32 */
    STORED = 16 /* a weight of products, held in the recipe's format of stored numbers; all others
                 * are real numbers */
};

/* One segment of the split dimension: its width, and the indivisible units it is cut by (NONE:
 * single numbers; a part may then be a number larger than its neighbour's). */
struct row_segment {
    enum dim width, units;
};

struct param_row {
    const char *name;  /* after backbone.layers.N. ; %e: the expert's number */
    enum dim shape[3]; /* as stored; the first is rows, the others are columns */
    enum split split;
    struct row_segment segment[MAX_SEGMENTS];
    enum init init;
    unsigned may;
    enum when when;
    const char *block; /* rows of a layer with the same block are stored as one; NULL: alone */
    const char *meaning;
};

/* A tensor of the checkpoint. */
struct param_tensor {
    char *name;
    const struct param_row *row;
    int layer, expert; /* -1: none */
    int n_dims;
    int64_t dim[3], elements;
    enum dtype stored; /* format in files */
    int block;         /* number of the block; -1: counted and kept, not used (MTP) */
    int64_t block_row; /* where its first row is, on this rank */
};

/* What this rank stores, or would. */
struct param_block {
    struct param p;
    const struct param_row *row; /* the first of its rows */
    int layer;
    bool here; /* on this rank's stages: has memory */
    int owner; /* pipeline coordinate of the ranks that speak for it */
    bool decay;
    double rate; /* factor on the learning rate */
    int64_t elements;
    struct piece *value_piece, *grad_piece;
    bool mastered; /* there is a master, here or where the block is */
    void *master;  /* the block in real numbers, of which p.value is the rounded copy; NULL where
                    * p.value is all there is */
    void *m, *v;   /* moments (src/optimiser.c) */
};

struct params {
    const struct config *config;
    struct mesh_shape shape;
    struct mesh_coords at;
    int n_tensors, n_blocks;
    struct param_tensor *tensor;
    struct param_block *block;
    bool cleared; /* the gradients are zeros: the last update left them so */
    bool here;    /* of blocks that are added from now on; see params_place */
    int owner;
};

/* Begins empty tables for one rank of a mesh. */
void params_init(struct params *s, const struct config *c, const struct mesh_shape *shape,
                 int rank);
void params_free(struct params *s);

/* Blocks added from now on are held by this rank, or by others; and whose they are. At first all
 * are here. */
void params_place(struct params *s, bool here, int owner);

/* Adds one row for a layer (layer -1: at the top; prefix "backbone.layers.3." or ""), or what of a
 * family lies here. Returns the block's number; rows with the same `block` must follow each other.
 * Rows whose condition does not hold give -1. */
int params_add(struct params *s, const struct param_row *row, const char *prefix, int layer);

/* Adds tensors that are only counted and kept. */
void params_add_unused(struct params *s, const struct param_row *row, const char *prefix,
                       int layer);

/* Whether the row exists in this model. */
bool params_has(const struct config *c, const struct param_row *row);

/* Sharing sizes (neighbours that hold the same block) the model needs on `tensor` ranks; returns
 * how many were put in shares[8]. */
int params_shares(const struct config *c, int tensor, int *shares);

/* Takes memory for all blocks: values, with `grads` the gradients of those that are trained, and
 * with `masters` a master in real numbers of blocks whose values are lower: an update smaller than
 * half a step of the low format would otherwise be lost. The master is the truth that files are
 * read into and written from. A frozen block whose files are in the low format needs none. Filling
 * it is the business of src/init.h or src/weights.h; then params_round. */
void params_allocate(struct params *s, struct arena *values, struct arena *grads,
                     struct arena *masters, enum dtype stored);
/* Brings the rounded copies up to date with their masters. */
void params_round(struct params *s, struct device *d, enum dtype stored);
/* Before gradients are added up; no pass over memory where the last update left them zero. */
void params_zero_gradients(struct params *s, struct device *d, enum dtype real);

/* What is held of a block: its values (the master's where there is one), and of trained ones the
 * gradient and the moments. */
enum part { PART_VALUES, PART_GRADIENTS, PART_MOMENT_1, PART_MOMENT_2 };

/* Boxes between tensors and blocks, with device addresses; malloc'd, *n gets how many. owned_only:
 * each number once over all ranks, for writing, norms and counts. Tensor numbers are those of
 * s->tensor. Every box is contiguous in memory. */
struct box *params_boxes(const struct params *s, enum dtype real, enum part part, bool owned_only,
                         int *n);

/* Replaces the device addresses by the host's view of them. */
void boxes_to_host(const struct device *d, int n, struct box *boxes);

/* Counts over all tensors: numbers, tensors, and numbers a token meets (top-k experts; without the
 * embedding table). */
struct param_counts {
    int64_t all, mtp, active, embedding;
    int tensors;
};
struct param_counts params_count(const struct params *s);

#endif
