/* recorded: what a run's tokens chose, kept in its folder and given to plans.
 *
 * Which experts tokens choose is not known before a run, and plans suppose that all get as many. A
 * run leaves what they got in its newest step in routing.json, by layer and expert, over all ranks;
 * with plan.routing a plan takes every rank's tokens to choose in these proportions. Memory, work
 * and messages follow, on any mesh.
 *
 * With log.routing the file also has the choices of each rank's tokens in each micro-batch, dropped
 * ones left out. A plan of the same batch on as many data, context and tensor ranks, with as many
 * choices a token and as much room, takes just these, and is of that step to the byte, wherever it
 * puts layers and experts: so a run whose experts are all at home tells what other meshes of
 * experts would cost. */
#ifndef SRC_RECORDED_H
#define SRC_RECORDED_H

#include "src/loads.h"

struct config;
struct deck;
struct engine;
struct mesh_shape;
struct mistakes;
struct output;

struct recorded {
    int64_t step;
    struct loads loads; /* every layer got some */
    int32_t *choices;   /* [layers][micro-batches][ranks of a stage][experts]; or NULL */
};

/* Gives layers with experts room to note their choices in, if the deck asks for it. */
void recorded_begin(struct engine *e);
void recorded_end(struct engine *e);

/* Writes routing.json; nothing if no layer has experts. Collective over the world. */
void recorded_write(const struct engine *e, const struct loads *s, int64_t step,
                    const struct output *o);

/* What plan.routing names, of a model like this one; its choices if a plan of this deck and mesh
 * takes them. -1 after telling m. */
int recorded_read(struct recorded *r, const struct deck *d, const struct config *c,
                  const struct mesh_shape *shape, struct mistakes *m);
void recorded_free(struct recorded *r);

#endif
