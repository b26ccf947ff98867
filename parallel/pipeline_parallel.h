/* pipeline_parallel: the messages between the stages of a pipeline.
 *
 * A rank talks to the ranks of the same data, context and tensor coordinates that hold the stages
 * before and behind its own; between two such ranks there are two groups of two, one for each
 * direction, on which the k-th message sent is the k-th received, activations and gradients
 * together (parallel/schedule.h). Where the first and the last stage hold the same tensor on two
 * ranks, those two are a group, in the order of stages, over which its gradient is summed. */
#ifndef PARALLEL_PIPELINE_PARALLEL_H
#define PARALLEL_PIPELINE_PARALLEL_H

#include "parallel/groups.h"
#include "parallel/schedule.h"

enum { MOST_NEIGHBOURS = 2 };

struct neighbour {
    int at;                /* its pipeline coordinate */
    struct group *to, *of; /* this rank sends on one and receives on the other */
};

struct neighbours {
    int n;
    struct neighbour neighbour[MOST_NEIGHBOURS];
    struct group *ends; /* first and last stage, on the ranks that hold them; else NULL */
};

/* Collective over the ranks of the pipeline. ends: whether that group is needed. */
void neighbours_init(struct neighbours *n, const struct parallel *p, const struct schedule_shape *s,
                     bool ends);
void neighbours_free(struct neighbours *n);

/* Starts a message to, or from, the rank at pipeline coordinate `at`. buf: readable by the host. */
void neighbours_send(struct neighbours *n, int at, void *buf, size_t bytes, struct request *r);
void neighbours_receive(struct neighbours *n, int at, void *buf, size_t bytes, struct request *r);

/* What was sent on each of the groups: parallel_traffic, continued. Returns how many of at most
 * `most` were filled. */
int neighbours_traffic(const struct neighbours *n, struct traffic *t, int most);

#endif
