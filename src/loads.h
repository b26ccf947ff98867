/* loads: how many tokens each expert of each layer got in a step, over all ranks, without padding.
 *
 * Layers count on the device while they run (struct layer: load); once a step the counts are summed
 * over the ranks, and clear. From the sums come the correction biases (moe.balance: bias), and what
 * metrics, log and report say of balance. */
#ifndef SRC_LOADS_H
#define SRC_LOADS_H

#include <stdint.h>

struct config;
struct engine;

struct loads {
    int layers;      /* with experts */
    int64_t experts; /* of each */
    int *layer;      /* [layers] their numbers */
    int64_t *n;      /* [layers][experts] */
};

/* Makes room: zeros. */
void loads_init(struct loads *s, const struct engine *e);
void loads_of_model(struct loads *s, const struct config *c);
void loads_free(struct loads *s);

/* The loads since the last call. Collective over the world, unless no layer has experts. */
void loads_take(struct loads *s, struct engine *e);

/* Largest load over mean load, of the i-th of those layers, and of the worst; 1 is even. */
double loads_imbalance(const struct loads *s, int i);
/* The same of groups of neighbours: of the ranks that share the experts out.
 * fullest: whose it is, or NULL. */
double loads_imbalance_of(const struct loads *s, int i, int groups, int *fullest);
double loads_worst(const struct loads *s);

/* Moves this rank's correction biases towards even load: bias += rate * sign(mean load - load). */
void loads_correct(const struct loads *s, struct engine *e, double rate);

#endif
