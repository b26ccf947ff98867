/* model: a pattern of letters made into layers, and the pass through them.
 *
 *   x = embedding(ids);  x = x + layer(x) for each letter;  loss = head(norm_f(x))
 *
 * Building a model makes its tables of parameters (src/params.h) for one rank of a mesh; that needs
 * neither memory nor other ranks, so counts and plans build models too. A pass runs on a tape and
 * ends in losses or in logits; in a pipeline each stage (src/staging.h) does its part of it. */
#ifndef SRC_MODEL_H
#define SRC_MODEL_H

#include "src/layer.h"
#include "src/staging.h"

struct model {
    const struct config *config;
    struct params params;
    struct layer *layer;
    struct param *embeddings, *norm_f, *words; /* words: the head; the embeddings where tied */
    int64_t first_word;                        /* of this rank's words */
    bool recompute;                            /* whole layers */
    unsigned again;                            /* single ops: tape.again */
    void (*after_layer)(
        void *watcher, int layer,
        const struct tensor *x); /* told of the stream, -1: the embedding; or NULL */
    void *watcher;
};

/* The model as rank `rank` of the mesh holds it; no memory is taken. stages: which layers that are;
 * NULL: all of them. */
void model_init(struct model *m, const struct config *c, const struct mesh_shape *shape, int rank,
                const struct staging *stages, bool recompute);
void model_free(struct model *m);

/* Takes memory: values, gradients (NULL: nothing is trained), masters (params_allocate; NULL: none)
 * and, for experts, their loads. */
void model_allocate(struct model *m, struct device *d, struct arena *values, struct arena *grads,
                    struct arena *masters, enum dtype stored);

/* A micro-batch on the device: ids, start, target [tokens] integers; weight [tokens] reals, the
 * factor of each token's loss. whole_start: of all tokens of its sequences, or NULL. */
struct micro_batch {
    int64_t rows, length;
    bool dealt; /* along context, as in struct batch */
    int64_t all_rows;
    void *ids, *start, *target, *weight, *whole_start;
};

/* Losses of every token, [1, tokens], times its weight. pass: kept by the caller until the tape is
 * cleared. Collective over the tensor group. */
struct tensor *model_losses(struct model *m, struct tape *t, const struct micro_batch *b,
                            struct pass *pass);

/* One stage's part: from x, the stream before its first layer (NULL in a stage that embeds), to the
 * stream after its last, or to losses or logits in the stage of the head. x is dropped unless it is
 * what is returned. */
enum model_end { END_LOSSES, END_LOGITS };
struct tensor *model_stage(struct model *m, struct tape *t, const struct stage *s,
                           const struct micro_batch *b, struct pass *pass, struct tensor *x,
                           enum model_end end);

/* Tells layers of the micro-batch: t->pass, and the pass's batches. */
void model_batch(struct tape *t, const struct micro_batch *b, struct pass *pass);

/* How the stream between layers is spread over the ranks. */
struct layout model_stream(const struct tape *t);

/* This rank's columns of the logits in real numbers, [tokens, words here], or [rows, words here]
 * with pass->ends_only. Collective likewise. */
struct tensor *model_logits(struct model *m, struct tape *t, const struct micro_batch *b,
                            struct pass *pass);

/* Visits the tables of rows, layers in order and the top's around them: used by the manual's table
 * and by tests. */
extern const struct param_row model_rows[];
extern const int model_n_rows;

#endif
