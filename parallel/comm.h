/* comm: the transport, and the named groups that everything collective is called on.
 *
 * Three transports behind one table: `self` (one process, no MPI_Init), `mpi` (any MPI-3) and `dry`
 * (a rank of a mesh that is not there: nothing moves, bytes are counted). Every operation is a
 * start and a wait; waiting tests and yields where a host runs more ranks than it has cores (a
 * spinning MPI would cost whole scheduler slices). Sums are ours and ordered: the pieces are
 * exchanged and added in rank order, so the result depends on the group's size and not on the MPI,
 * its algorithm or who came first.
 *
 * All memory given here is readable by the host (kernels/device.h: device_host); on dry it may be
 * NULL. A count has no upper limit: transfers beyond what an int can say are cut. Errors of the
 * network are not returned: the run dies, naming rank, group and peer.
 *
 * The members of a group start their operations on it in the same order; they may wait for them in
 * any order, and whoever waits for one moves all of them on. Buffers belong to the operation until
 * then; arrays of counts may be forgotten at once. No communicators are made: a group is a number
 * in the tags of messages. */
#ifndef PARALLEL_COMM_H
#define PARALLEL_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

struct mistakes;
struct exact;
struct transport;
struct step_op;
struct timer;

struct comm {
    const struct transport *transport;
    int size, rank;               /* of the world */
    int host_ranks, host_cores;   /* ranks on this host, and cores it may use */
    int64_t host;                 /* a number that the ranks of one host have in common */
    bool yield;                   /* give the core away while waiting */
    bool owns_mpi;                /* MPI_Init was ours */
    struct group *world;          /* for agreement and files, never for tensors */
    int64_t bytes_sent;           /* all groups together */
    struct step_op *under_way;    /* operations started */
    struct step_op *spare;        /* and used ones, kept for the next start */
    int groups_made, groups_most; /* the last group number given out, the largest there can be */
    struct timer *timer;          /* told of every wait; borrowed, NULL: nobody counts */
};

struct group {
    struct comm *comm;
    char name[32];
    int size, rank;            /* rank: this process's number in the group */
    int *members;              /* world ranks, by number in the group */
    int id;                    /* its number; no member has another group of this number */
    int operations;            /* started so far */
    int under_way;             /* operations not yet waited for */
    int64_t bytes_sent, calls; /* traffic of this rank on this group, by the algorithm's volume */
};

struct request { /* one operation under way; owned by the caller, filled by *_start */
    struct group *group;
    void *state; /* NULL: nothing left to wait for */
};

/* Finds out how the program was launched (PMI, PMIx, Open MPI and Slurm leave traces in the
 * environment) and takes `self` for one process, else MPI. Returns -1 after telling `m` if the
 * world that MPI reports is not the one the launcher counted (a binary of one MPI under another's
 * mpirun): c->rank is then the launcher's number of this process, so that one of them can speak,
 * and only comm_end may follow. A launched process dies with its launcher from here on (Linux), and
 * die() ends all ranks (die_set_rank, die_set_hooks without last words). Collective over all
 * processes. */
int comm_init(struct comm *c, struct mistakes *m);

/* Rank `rank` of `size` that are not there. */
void comm_init_dry(struct comm *c, int size, int rank);

/* Ends MPI if it was ours. Collective. All groups must have been freed. */
void comm_end(struct comm *c);

/* Ends all ranks at once with this code; for kernels/die.h. */
_Noreturn void comm_abort(int code);

/* A group of world ranks in the given order; this rank is among them. Collective over the members,
 * which must make their common groups in the same order; costs one small agreement. The name
 * appears in messages and traffic tables. */
struct group *group_new(struct comm *c, const char *name, int size, const int *members);
void group_free(struct group *g);

/* If set, told of every wait that may take long: the group before it, NULL after it (last words,
 * timers). */
extern void (*comm_on_wait)(const struct group *g);

/* If set, told of every such wait when it is over, with what comm_clock said before it. */
extern void (*comm_on_waited)(const struct group *g, int64_t from);
extern int64_t (*comm_clock)(void);

/* Waits for a started operation. A request may be waited for once. */
void comm_wait(struct request *r);

/* All-gather: every rank gives counts[rank] elements of `size` bytes, recv gets them in group
 * order. send may be its own place in recv, and else does not overlap it. */
void comm_gather_start(struct group *g, const void *send, void *recv, const int64_t *counts,
                       size_t size, struct request *r);

/* All-reduce in place: buf[n] becomes the sum over the group, added in group order, on every rank
 * alike. d is F32, F64, BF16 (added in
 * float, rounded once), I32 or I64. scratch has comm_sum_scratch(g, n, d) bytes, which differ from
 * rank to rank and stay below 8 MiB (small sums: what all members hold), and is free again after
 * the wait. */
void comm_sum_start(struct group *g, void *buf, int64_t n, enum dtype d, void *scratch,
                    struct request *r);
size_t comm_sum_scratch(const struct group *g, int64_t n, enum dtype d);

/* Reduce-scatter: send holds sum(counts) elements, recv gets this rank's counts[rank] of the sum
 * over the group, added in group order: the same bits comm_sum gives. recv may be this rank's own
 * part of send, and else does not overlap it. scratch: comm_sum_scatter_scratch bytes, at most 8
 * MiB. */
void comm_sum_scatter_start(struct group *g, const void *send, void *recv, const int64_t *counts,
                            enum dtype d, void *scratch, struct request *r);
size_t comm_sum_scatter_scratch(const struct group *g, const int64_t *counts, enum dtype d);

/* All-to-all of bytes: send holds send_bytes[0], send_bytes[1], ... one after the other, recv gets
 * recv_bytes[0], ... likewise. Both sides must agree on the counts; the buffers do not overlap. */
void comm_exchange_start(struct group *g, const void *send, const int64_t *send_bytes, void *recv,
                         const int64_t *recv_bytes, struct request *r);

/* One message: from member 0 of a group of two to member 1. Both start it; their k-th ones meet. */
void comm_pass_start(struct group *g, void *buf, size_t bytes, struct request *r);

/* Moves everything that was started on, without waiting: an MPI may do so inside its calls alone,
 * and a message would else stand still while its ranks compute. */
void comm_progress(struct comm *c);

/* Small agreements; these return when done. */
void comm_barrier(struct group *g);
int64_t comm_max(struct group *g, int64_t value);   /* largest value over the group */
int64_t comm_total(struct group *g, int64_t value); /* sum over the group */
void comm_broadcast(struct group *g, void *buf, size_t bytes, int root);

/* The group's sum of exact accumulators (kernels/exact.h), on every rank alike: which rank added
 * what leaves no trace. */
void comm_sum_exact(struct group *g, struct exact *sum);

#endif
