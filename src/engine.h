/* engine: one rank's share of a run, made ready: device, arenas, mesh, model, weights, tape.
 *
 * Training, comparing, converting and planning all begin by making one of these from a checked
 * deck. On a dry device, over a transport that moves nothing, the same code is the plan. */
#ifndef SRC_ENGINE_H
#define SRC_ENGINE_H

#include "parallel/groups.h"
#include "src/host_batch.h"
#include "src/model.h"
#include "src/optimiser.h"
#include "src/pipeline.h"
#include "src/recorded.h"
#include "src/staging.h"
#include "src/weights.h"

struct engine {
    const struct deck *deck;
    struct config *config;
    struct comm *comm;
    struct mesh_shape shape;
    struct parallel parallel;
    struct device device;
    struct arena values, grads, moments, states, work, scratch; /* states: of a decoder */
    enum dtype stored, real;                                    /* kernels/tape.h */
    bool learns; /* has gradients; and moments if it will update */
    bool updates;
    struct model model;
    struct optimiser optimiser;
    struct staging stages;
    struct pipeline pipeline;
    struct tape tape; /* of generation, and for exchanges between steps */
    struct weights weights;
    bool has_weights;            /* weights is open: the model came from a folder */
    void *loss_sum;              /* struct exact on the device */
    struct recorded expected;    /* of experts, for plans: plan.routing */
    struct expert_rules experts; /* of passes with gradients; of others only whether evenly */
};

/* Settles the model from its folder, if it has one, so that what its tensors decide is decided;
 * before the mesh is checked. Every rank on its own. -1 after telling m. */
int engine_open(struct engine *e, const struct deck *deck, struct config *c, struct mistakes *m);

/* Weights from another folder instead, of the same model (a run's own checkpoint). -1 after telling
 * m. */
int engine_reopen(struct engine *e, const char *folder, struct mistakes *m);

/* Makes the rest. learns: gradients; updates: moments too. Collective over the world. -1 after
 * telling m. */
int engine_init(struct engine *e, struct comm *comm, const struct mesh_shape *shape, bool dry,
                bool learns, bool updates, struct mistakes *m);
void engine_free(struct engine *e);

/* Gradients of the mean loss over `count` counted targets of all ranks, from n micro-batches of
 * this rank; every rank gives at least one. Returns the mean loss. count_experts: their loads are
 * added up. Collective over the world. */
double engine_gradients(struct engine *e, int n, const struct host_batch *batches, int64_t count,
                        bool count_experts);

/* Of the last gradients: the mean over layers of their balance loss and of their z loss, without
 * coefficients; 0 where the deck has none. Collective over the world if it has. */
struct router_losses {
    double balance, z;
};
struct router_losses engine_router_losses(struct engine *e);

/* The loss without gradients: begin, add n micro-batches (every rank as many), and read the sum of
 * the losses of all counted targets of all ranks. Collective over the world. */
void engine_loss_begin(struct engine *e);
void engine_loss_add(struct engine *e, int n, const struct host_batch *batches);
double engine_loss_sum(struct engine *e);

/* Logits of n micro-batches, one after the other: this rank's columns, copied to host memory
 * [tokens, words here] of the engine's real dtype, on the ranks of the last stage
 * (engine_has_head). Collective over the ranks of the tensor and the pipeline axis. */
void engine_logits(struct engine *e, int n, const struct host_batch *batches, void *logits);
bool engine_has_head(const struct engine *e);

/* Saves the model as a folder. Collective over the world. */
void engine_save(struct engine *e, const char *folder, bool transformers_names);

/* Sum of the arenas' peaks, in bytes. */
int64_t engine_peak_bytes(const struct engine *e);

/* Threads for each rank: run.threads, OMP_NUM_THREADS, else this host's cores over its ranks; not
 * more than OMP_THREAD_LIMIT. What the environment says is checked before. */
void engine_check_threads(struct mistakes *m);
int engine_threads(const struct deck *d, int cores, int ranks_on_host);

/* Which of the cpu room's kernels run (kernels/cpu/table.h): run.vectors, or the best that the
 * processors of all ranks have. Collective over the world. What the deck asks for is checked
 * before. */
int engine_level(const struct deck *d, struct comm *c);
void engine_check_level(const struct deck *d, struct mistakes *m);

#endif
