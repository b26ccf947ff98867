/* sample: the next token, chosen from its logits.
 *
 *   p_i = exp(logit_i / temperature) / sum
 *
 * Of these the top_k largest stay, and of those the fewest whose sum reaches top_p; the token is
 * where a uniform number falls among them, in the order of their ids.
 *
 * temperature 0 takes the largest logit, the lowest id among equals. The uniform number is f(seed,
 * prompt's number, token's number): neither the batch nor the mesh has a say. (Logits of other
 * meshes agree to rounding, and so do the chances.) */
#ifndef SRC_SAMPLE_H
#define SRC_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/dtype.h"

struct sampler {
    double temperature, top_p; /* top_p 1: all */
    int64_t top_k;             /* 0: all */
    int64_t vocabulary;
    double *logit;  /* [vocabulary] */
    double *weight; /* [vocabulary] exp((logit - largest) / temperature) */
    int32_t *heap;  /* [vocabulary] */
    bool *kept;     /* [vocabulary] */
};

void sampler_init(struct sampler *s, int64_t vocabulary, double temperature, int64_t top_k,
                  double top_p);
void sampler_free(struct sampler *s);

/* The token that u, uniform in (0, 1), falls on; -1 if a logit is not a number or none is finite.
 * d: of the logits, F32 or F64. */
int32_t sampler_choose(struct sampler *s, const void *logits, enum dtype d, double u);

/* That number, for token `number` (from 0) of prompt `prompt`. */
double sampler_uniform(uint64_t seed, int64_t prompt, int64_t number);

#endif
