/* layer: what a kind of layer is, and how to add one.
 *
 * A layer kind is one file: a table of parameter rows, and a forward function that computes y from
 * the stream x, where the model then adds y to x. Backward, sharding, initial values, optimiser,
 * checkpoints, counts and plans follow from these two. To add a kind:
 *
 *     src/layer_<kind>.c      the table and the functions, ending in a struct layer_kind with the
 *                             letter
 *     src/layer.c             its name in the list
 *     src/pattern.c           the letter, and the words that config.json has for it; src/config.h
 *                             and deck.def list the letters too
 *     src/deck.def            keys for sizes it needs (they are config.json's)
 *     src/config.c            which kinds read them, their rules, and the estimate of the model's
 *                             size
 *     src/params.{h,c}        names for sizes, conditions and first values that no other kind has;
 *                             params_shares, if tensor ranks share some of its heads
 *     src/deck_rules.c        what must divide by the tensor ranks, if it splits heads
 *     src/weights.c           weights_settle, if it has biases that a folder's tensors decide about
 *     kernels/ops.def         an operation that no device has yet, and kernels/ops.h what calls it
 *
 * A kind with more than LAYER_ROWS rows raises that, and more than COUNTED_KINDS kinds
 * (src/staging_count.h) that. Everything else walks the rows.
 *
 * A forward function takes x in the stream's state (whole, or split by tokens), enters the parallel
 * part (tensor_enter), leaves it once at its end (tensor_leave), and adds biases of its last
 * product after that. It drops large tensors that it will not read again (tensor_drop). */
#ifndef SRC_LAYER_H
#define SRC_LAYER_H

#include "kernels/ops.h"
#include "parallel/context_cache.h"
#include "src/params.h"

struct token_share;

enum { LAYER_ROWS = 20, LAYER_STATES = 3 };

/* What a layer remembers of the tokens before a call: device arrays, read and brought up to date by
 * its forward function. */
struct layer_state {
    void *p[LAYER_STATES];
};

/* How tokens find experts, beyond what the model says; zeros: by the router alone. */
enum balance_of { OF_DOCUMENTS, OF_MICRO_BATCH, OF_STEP };
struct expert_rules {
    bool evenly; /* in turn, whatever the router says */
    double
        capacity; /* tokens that an expert takes of a sequence, as a multiple of an even share; 0:
                         all that come */
    enum balance_of of; /* whose loads the losses make even */
    struct balancing balancing;
};

/* One pass over a micro-batch: what layers need besides x. */
struct pass {
    struct batch batch;
    struct batch whole; /* the sequences whole, where layers meet some heads of them */
    struct expert_rules experts;
    int number;         /* of the micro-batch in its step */
    bool count_experts; /* add each expert's tokens to the layer's load */
    void *document;     /* device integers, a token each: src/documents.h; NULL: all are one */
    bool ends_only;     /* logits of each sequence's last token here only */
    /* Of each layer; NULL: every row begins here and nothing is remembered. */
    struct layer_state *state;
    int64_t past, capacity; /* tokens of a row that the states have seen; that they have room for */
    int64_t generated; /* of `past`, one a call behind a prompt; -1: this call reads a prompt */
    struct context_cache cache; /* where keys are shared out; k and v are each layer's state */
    const struct token_share *shares; /* struct travel: of */
};

struct layer {
    const struct layer_kind *kind;
    const struct config *config;
    const struct mesh_shape *mesh;
    int tensor_rank;
    int number;
    struct param *p[LAYER_ROWS]; /* by row of the kind's table; NULL where the model has none */
    const struct pass *pass;     /* of the forward or replay that is running */
    void *load; /* experts: tokens of each since the last step, int64 on the device */
    int32_t
        *choices; /* experts: of this rank's tokens in each micro-batch, [micro-batches][experts],
                         for a record; or NULL */
    const int64_t *expected; /* experts: loads that a plan takes them to have; or NULL: even ones */
    int64_t expected_of;     /* choices that these loads are of; what is missing is dropped */
    const int32_t
        *known; /* instead: choices, [micro-batches][ranks of the stage][experts]; or NULL */
    void *seen; /* likewise, and all tokens, as summed over ranks for losses of a step; or NULL */
};

struct layer_kind {
    char letter;
    const char *name; /* for the log */
    /* The sizes of such a layer in a few words, "36 wide"; malloc'd. */
    char *(*describe)(const struct deck_model *keys);
    const struct param_row *rows;
    int n_rows;
    struct tensor *(*forward)(struct tape *t, struct layer *l, struct tensor *x);
    /* The numbers that each state of so many sequences takes on this rank, with room for `capacity`
     * tokens of each. NULL: it remembers nothing. */
    void (*state_size)(const struct layer *l, const struct parallel *p, int64_t sequences,
                       int64_t capacity, int64_t n[LAYER_STATES]);
    unsigned real_states; /* bit i: state i is of real numbers, not stored ones */
};

/* The kind of a letter, or NULL. */
const struct layer_kind *layer_kind(char letter);

/* i-th of all kinds; NULL past the end. */
const struct layer_kind *layer_kind_at(int i);

/* What a layer adds to x. With a bias that comes after the last exchange: add_after(t, y, bias)
 * leaves y alone if bias is NULL. */
struct tensor *add_after(struct tape *t, struct tensor *y, struct param *bias);

#endif
