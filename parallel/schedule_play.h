/* schedule_play: plays the lists of all ranks against each other, without doing anything.
 *
 * Each rank goes through its list until it stands at a wait whose message has not been started
 * at both ends: the strictest reading of a send, which moves nothing before its receive is there
 * (MPI's rendezvous, NCCL). Starts never block. What a rank sees depends on its list alone and
 * not on who is faster, so one run of this is the proof for all: if it comes through, no timing
 * can make the lists wait for each other for ever. The checker and the timer are visitors of it. */
#ifndef PARALLEL_SCHEDULE_PLAY_H
#define PARALLEL_SCHEDULE_PLAY_H

#include <stdbool.h>

#include "parallel/schedule.h"

/* Called for every action once, in an order in which the ranks could have acted. `message` numbers
 * the message of a start or wait, the same at both ends: those from rank a to rank b have
 * consecutive numbers in the order of their sends; -1 for computing. */
typedef void schedule_visit(void *ctx, int rank, int index, int message);

/* Returns whether all lists came to their end. If not, at[ranks] says where each rank stands. The
 * lists must be sound by themselves (peers and slots that exist; schedule_check sees to it). */
bool schedule_play(const struct schedule *s, schedule_visit *visit, void *ctx, int *at);

/* The two ends of a message: the actions that start it. rank -1: there is none. */
struct message_end {
    int rank, index;
};

/* Returns how many messages there are, numbered as above, and sets their ends if the tables are not
 * NULL. */
int schedule_messages(const struct schedule *s, struct message_end *sends,
                      struct message_end *receives);

#endif
