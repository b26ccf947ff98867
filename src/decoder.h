/* decoder: rows of tokens that are continued, one token a row and call, without computing what came
 * before again.
 *
 * Rows that begin a batch are made equally long by padding on the left. A run of padding is a
 * document of its own, and no document sees another: so nothing below knows of padding. What layers
 * remember (src/layer.h: a convolution's last columns, a scan's state and the tokens since it was
 * written, keys and values) is right after the last token of every row, lies aligned, and stays
 * where it is: memory is taken once, in the engine's arena of states. What Mamba layers have seen
 * costs a call nothing, but for the few tokens since their states were written; writing them, once
 * in SCAN_RECENT tokens, comes round for all rows together.
 *
 * In a pipeline the rows pass through the stages one after the other; while a later stage has one
 * part of a prompt, an earlier one has the next. Every call gives the logits of what follows, all
 * words, alike on all ranks of the context, tensor and pipeline axes.
 *
 * Where sequences lie on several ranks, prompts are read in pieces as in training, which padding
 * makes equally long too, so that a prompt of one token is as good as any; rank 0 has their ends.
 * Then rows are dealt out (parallel/context_parallel.h says who remembers what).
 *
 * Where experts lie on the ranks of several data coordinates, their exchanges need all of these,
 * though their rows begin and end at different times. So all make the same calls (`together`):
 * reading prompts, those with shorter ones begin by calls without tokens (a layer computes nothing
 * and takes part in every exchange); and who has no row left makes such calls until all are
 * through. */
#ifndef SRC_DECODER_H
#define SRC_DECODER_H

#include "src/engine.h"

/* What the ranks of a data coordinate begin with. */
struct decoder_rows {
    int64_t rows, longest;
};

struct decoder {
    struct engine *engine;
    struct layer_state *state;   /* by layer */
    int64_t most_rows, capacity; /* what there is memory for; places of a row */
    int64_t rows, past;          /* of this batch; places in each row that were computed */
    int64_t chunk;               /* places of a row that are computed at once */
    int64_t read;                /* places of each row that its prompt takes, padding included */
    int64_t *padding;            /* of each row */
    struct decoder_rows *all;    /* [data], of this batch */
    void *logits;                /* [rows, vocabulary], real numbers of the engine */
    /* Logits on their way: this rank's words, those of all tensor ranks one after the other, this
     * rank's rows. Where a group has one rank there is no such way: words are own, own is
     * logits. */
    void *words, *parts, *own;
};

/* Takes the memory for batches of up to `rows` rows, which begin with up to `longest` tokens and
 * get up to `more`. */
void decoder_init(struct decoder *d, struct engine *e, int64_t rows, int64_t longest, int64_t more,
                  int64_t chunk);
void decoder_free(struct decoder *d);

/* Forgets everything and begins `rows` rows, row i with n[i] >= 1 tokens ids[i]. all: what every
 * data coordinate begins with now, or NULL where there is one. Collective over the ranks of a data
 * coordinate; over all where they make the same calls, and then rows may be 0. */
void decoder_begin(struct decoder *d, int64_t rows, int32_t *const *ids, const int64_t *n,
                   const struct decoder_rows *all);

/* One more token for each row. Collective likewise. */
void decoder_next(struct decoder *d, const int32_t *ids);

/* Takes part in others' next token. */
void decoder_idle(struct decoder *d);

#endif
