/* cores: the cores of its host that a process may use, and how its threads wait for each other.
 *
 * Launchers bind ranks to cores: each to its own (good), none to any (good while they do not
 * outnumber the cores), or by mistake several to the same, which nothing else would tell. A mask
 * has a bit a core, as the kernel counts them.
 *
 * Threads that have done their part of a loop spin until all have. OpenMP of gcc spins for
 * milliseconds, which is fine where every thread has a core: where another process takes a core for
 * a moment, its thread waits for that process and all others burn the time that would have helped
 * it, at every loop. It reads how long from the environment when it is loaded, so this program sets
 * it and starts itself anew, once. */
#ifndef PARALLEL_CORES_H
#define PARALLEL_CORES_H

#include <stdbool.h>

enum { CORES_WORDS = 128 }; /* 8192 cores */

struct cores {
    unsigned long word[CORES_WORDS];
};

/* Those that this process may use, whichever of them the calling thread is bound to. */
void cores_own(struct cores *c);

/* Whether OpenMP binds each thread to a part of them. */
bool cores_bound_by_openmp(void);

int cores_count(const struct cores *c);
bool cores_within(const struct cores *a, const struct cores *b); /* all of a are in b */
void cores_join(struct cores *a, const struct cores *b);         /* a = a and b together */
int cores_of_host(void); /* that run, whoever may use them */

/* Memory nodes of the host, and how many of them the cores lie on: 1
 * where it has no notion of them. */
int cores_nodes(const struct cores *c, int *of_host);

/* "0-3,8"; malloc'd. */
char *cores_text(const struct cores *c);

/* Lets threads wait briefly, then sleep, unless the person has said how (GOMP_SPINCOUNT,
 * OMP_WAIT_POLICY). Returns if there is nothing to be done, or it cannot be. Before anything
 * else. */
void cores_wait_briefly(char **argv);

#endif
