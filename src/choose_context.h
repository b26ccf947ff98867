/* choose_context: which way layers go across the context ranks.
 *
 * The deck may say; auto takes the way that sends fewer bytes forward
 * and back. A ring sends the keys and values of a rank context - 1 times, and once more with the
 * sums of their gradients; an exchange sends queries, keys, values and results once to whoever has
 * the heads. So few key heads speak for the ring, many ranks for the exchange. In generation, heads
 * are taken only where no two ranks would remember the same keys. A function of the deck alone, the
 * same on every rank. */
#ifndef SRC_CHOOSE_CONTEXT_H
#define SRC_CHOOSE_CONTEXT_H

#include <stdbool.h>

struct deck;
struct parallel;

/* Whether the heads of attention ('*') or Mamba ('M') layers can be dealt out to the context ranks.
 * */
bool context_has_heads(const struct deck *d, char kind);

/* Bytes that a rank sends for a sequence in an attention or a Mamba layer, forward and back, one
 * way or the other: for choosing; what is sent is counted where it is sent. */
double context_attention_sent(const struct deck *d, bool heads);
double context_mamba_sent(const struct deck *d, bool heads);

/* Decides for both kinds. */
void context_choose(const struct deck *d, struct parallel *p);

#endif
