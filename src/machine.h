/* machine: the hosts a run is on: how much memory each has for us, and what every rank will need of
 * it.
 *
 * Before anything is allocated every rank plans itself (src/planning.h) and tells the others. If
 * the ranks of a host together need more than the host has, the run is refused, with the keys that
 * would make it fit; the same on all ranks. */
#ifndef SRC_MACHINE_H
#define SRC_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"
#include "parallel/mesh.h"
#include "src/planning.h"

struct comm;

/* One rank, as all others know it. */
struct rank_facts {
    char name[64];   /* of its host, without domain */
    int64_t host;    /* the same number on every rank of a host */
    int64_t memory;  /* bytes the host has for its ranks together */
    int64_t planned; /* 0: its plan failed, and it has told its own mistakes why */
    struct rank_plan plan;
    int64_t cores, sharing, host_cores; /* as struct comm has them */
    int64_t bound;                      /* whether OpenMP binds its threads */
    double flops; /* what it computes in a second at most, in the recipe's format */
    int64_t peak; /* what it has used at most, by machine_measure; 0 before */
};

struct machine {
    double started; /* seconds since 1970 */
    int ranks, hosts;
    int level; /* of the kernels that run (kernels/cpu/table.h) */
    struct rank_facts *rank; /* by rank */
    int *first;              /* the first rank of each host, in rank order */
    int fullest;             /* the host (0 ..) with least room left */
};

/* What this host's memory is, or what the control groups of this process leave of it. */
int64_t machine_memory(void);

/* What a rank of this host reaches at most, by the keys of section machine; where they are silent,
 * measured now on `threads` threads, of which the host's ranks have `wanted` together and `cores`
 * cores for them. Memory only if asked for: that takes a tenth of a second. */
struct speed machine_speed(const struct deck *d, int threads, int wanted, int cores, bool memory);

/* The format that the recipe's products are made in. */
enum dtype machine_format(const struct deck *d);

/* The share of all ranks' peak that a step of so many seconds used: the work of the model, without
 * what recomputing repeats, over what could have been done. */
double machine_share(const struct machine *h, double step_seconds);

/* Plans this rank and gathers all. -1 after telling m: a plan failed, or a host is too small.
 * Collective over the world. */
int machine_find(struct machine *h, struct comm *comm, const struct deck *d, struct config *c,
                 const struct mesh_shape *shape, struct mistakes *m);
void machine_free(struct machine *h);

/* Gathers the peaks of all ranks. Collective over the world. */
void machine_measure(struct machine *h, struct comm *comm, int64_t peak_bytes);

/* How many ranks host number i has, and bytes they need together. */
int machine_host_ranks(const struct machine *h, int i);
int64_t machine_host_bytes(const struct machine *h, int i);

#endif
