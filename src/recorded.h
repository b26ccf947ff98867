/* recorded: the loads of a run's experts, kept in its folder and given to plans.
 *
 * Which experts tokens choose is not known before a run, and plans suppose that all get as many. A
 * run leaves what they got in its newest step in routing.json, by layer and expert, over all ranks;
 * with plan.routing a plan takes every rank's tokens to choose in these proportions. Memory, work and
 * messages follow, on any mesh. */
#ifndef SRC_RECORDED_H
#define SRC_RECORDED_H

#include <stdint.h>

struct config;
struct deck;
struct loads;
struct mistakes;
struct output;

/* Writes routing.json; nothing if no layer has experts. */
void recorded_write(const struct loads *s, int64_t chosen, int64_t step, const struct output *o);

/* The loads that plan.routing names, of a model like this one; every layer got some. step: theirs, or
 * NULL. -1 after telling m. loads_free them. */
int recorded_read(struct loads *s, const struct deck *d, const struct config *c, int64_t *step,
                  struct mistakes *m);

#endif
