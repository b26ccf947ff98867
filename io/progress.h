/* progress: one line about something that takes longer than a second.
 *
 * Says how much of so many bytes is done, how fast, and how long it will still take. On a terminal
 * the line is written over; elsewhere a new one comes after 1, 10, and then every 30 seconds. What
 * is done within the first second is not mentioned. Written to standard error, so that the log
 * stays as it is. */
#ifndef IO_PROGRESS_H
#define IO_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *what; /* "tokenising"; borrowed */
    bool speaks;      /* this rank writes; the others only count */
    bool terminal, said;
    int64_t done, total; /* bytes */
    double began, next;  /* seconds: the start, and when to write again */
    int writing;         /* a thread is at it */
};

void progress_begin(struct progress *p, const char *what, int64_t total, bool speaks);
void progress_add(struct progress *p, int64_t bytes); /* by any thread */
void progress_end(struct progress *p);

#endif
