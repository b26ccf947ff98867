/* transport: what stands behind comm.h; for the files of comm_*.c alone.
 *
 * Every operation is made of messages between two members of a group, laid out in rounds
 * (comm_steps.c): all messages of a round are posted, and when they have arrived and gone the next
 * round is posted, by whoever happens to wait for anything. So an operation is the same algorithm
 * on every transport; a transport only says how one message travels, and `dry`, whose messages do
 * not, counts the same bytes to the last one.
 *
 * Messages of an operation carry a tag made of the group's number and the operation's number in the
 * group; both are known to all members without asking, and operations may therefore be waited for
 * in any order. There are no communicators to make: a group costs one small agreement. */
#ifndef PARALLEL_TRANSPORT_H
#define PARALLEL_TRANSPORT_H

#include "parallel/comm.h"

/* Operations of one group that have a tag of their own at a time. */
enum { TRANSPORT_SLOTS = 128 };

/* Messages under way: one array that grows to what the largest round needs and is kept. */
struct messages {
    int n, room;
    void *handles; /* the transport's own */
};

struct transport {
    const char *name;
    bool moves; /* whether data moves at all; false: buffers are not touched, they may be NULL */
    /* Posts one message to or from a member, by its number in the group. bytes may be 0 and beyond
     * INT_MAX. */
    void (*send)(struct group *g, int member, int tag, const void *buf, size_t bytes,
                 struct messages *ms);
    void (*receive)(struct group *g, int member, int tag, void *buf, size_t bytes,
                    struct messages *ms);
    /* One look: true when all of ms has arrived and gone; ms is empty then. */
    bool (*finished)(struct group *g, struct messages *ms);
    void (*forget)(struct messages *ms); /* frees the array */
    void (*end)(struct comm *c);
};

extern const struct transport transport_self, transport_mpi, transport_dry;

/* How the program was launched: processes the launcher says there are (1: none or a single one; 0:
 * more may be, MPI must be asked), this process's number among them, and the launcher's name for
 * messages. */
struct launch {
    int size, rank;
    const char *by;
};
void launch_find(struct launch *l);

/* comm_mpi.c: MPI_Init, world, host. -1 after telling m. */
int comm_init_mpi(struct comm *c, const struct launch *l, struct mistakes *m);
_Noreturn void comm_abort_mpi(int code); /* MPI_Abort where MPI runs, else _exit */

/* comm.c: a world of this size behind this transport, by every transport's init. */
void comm_open_world(struct comm *c, const struct transport *t, int size, int rank,
                     int64_t largest_tag);

/* The same for a process that is alone. */
void comm_init_self(struct comm *c);

/* comm_steps.c: operations on groups of more than one. `spare` operations are kept for the next
 * start. */
struct step_op;
void steps_gather(struct group *g, const void *send, void *recv, const int64_t *counts, size_t size,
                  struct request *r);
void steps_sum(struct group *g, void *buf, int64_t n, enum dtype d, void *scratch,
               struct request *r);
size_t steps_sum_scratch(const struct group *g, int64_t n, enum dtype d);
void steps_sum_scatter(struct group *g, const void *send, void *recv, const int64_t *counts,
                       enum dtype d, void *scratch, struct request *r);
size_t steps_sum_scatter_scratch(const struct group *g, const int64_t *counts, enum dtype d);
void steps_exchange(struct group *g, const void *send, const int64_t *send_bytes, void *recv,
                    const int64_t *recv_bytes, struct request *r);
void steps_max(struct group *g, int64_t value, bool carries, struct request *r);
int64_t steps_wait_max(struct request *r); /* waits, and gives the largest value */
void steps_broadcast(struct group *g, void *buf, size_t bytes, int root, struct request *r);
void steps_pass(struct group *g, void *buf, size_t bytes, struct request *r);
void steps_progress(struct comm *c);
void steps_wait(struct request *r);
void steps_end(struct comm *c); /* frees the spare ones */

/* Tests lower these: the bytes of one MPI message, the bytes of a vector summed in one slice, and
 * the bytes up to which a gather goes by doubling rounds. All ranks alike. */
extern size_t transport_message_limit, transport_slice_bytes, transport_small_bytes;

#endif
