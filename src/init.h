/* init: the weights a model begins with.
 *
 * Every value is a function of the seed, the tensor's name and the place in the global tensor,
 * drawn by a counter-based generator: no state, no order, the same on every mesh. Recipes:
 * transformers' nemotron_h or Megatron's (model.initialization). */
#ifndef SRC_INIT_H
#define SRC_INIT_H

#include "src/params.h"

/* Writes the initial values of every block this rank holds. Nothing on a dry device. */
void init_parameters(struct params *s, struct device *d, enum dtype real, uint64_t seed);

/* Uniform in (0, 1) and standard normal, for number i of a stream. */
double random_uniform(uint64_t stream, uint64_t i);
double random_normal(uint64_t stream, uint64_t i);
/* The stream of a name under a seed. */
uint64_t random_stream(uint64_t seed, const char *name);

#endif
