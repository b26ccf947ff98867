/* decoder: rows of tokens that are continued, one token a row and call, without computing what came
 * before again.
 *
 * Rows that begin a batch are made equally long by padding on the left. A run of padding is a
 * document of its own, and no document sees another: so nothing below knows of padding. What layers
 * remember (src/layer.h: a convolution's last columns, a scan's state, keys and values) is right
 * after the last token of every row, lies aligned, and stays where it is: memory is taken once, in
 * the engine's arena of states, and a call's cost does not depend on what Mamba layers have seen.
 *
 * In a pipeline the rows pass through the stages one after the other; while a later stage has one part of
 * a prompt, an earlier one has the next. Every call gives the logits of what follows, all words, alike
 * on all ranks of the tensor and the pipeline axis. */
#ifndef SRC_DECODER_H
#define SRC_DECODER_H

#include "src/engine.h"

struct decoder {
    struct engine *engine;
    struct layer_state *state;   /* by layer */
    int64_t most_rows, capacity; /* what there is memory for */
    int64_t rows, past;          /* of this batch; places in each row that were computed */
    int64_t chunk;               /* places of a row that are computed at once */
    int64_t *padding;            /* of each row */
    int32_t *ids, *start;        /* of a call */
    void *words;                 /* this rank's logits, and everyone's, as they arrive */
    void *all;
    double *logits; /* [rows, vocabulary] */
};

/* Takes the memory for batches of up to `rows` rows of up to `capacity` tokens each, padding
 * included. */
void decoder_init(struct decoder *d, struct engine *e, int64_t rows, int64_t capacity,
                  int64_t chunk);
void decoder_free(struct decoder *d);

/* Forgets everything and begins `rows` rows, row i with n[i] >= 1 tokens ids[i]. Collective over
 * the tensor group and the pipeline. */
void decoder_begin(struct decoder *d, int64_t rows, int32_t *const *ids, const int64_t *n);

/* One more token for each row. Collective likewise. */
void decoder_next(struct decoder *d, const int32_t *ids);

#endif
