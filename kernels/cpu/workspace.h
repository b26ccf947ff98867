/* workspace: memory that a thread of the cpu room keeps between calls, for what kernels copy into a
 * better order. It is small (under 2 MiB a thread), of one size whatever the model, and outside the
 * arenas, as a library's own would be. */
#ifndef KERNELS_CPU_WORKSPACE_H
#define KERNELS_CPU_WORKSPACE_H

#include <stddef.h>

/* At least `bytes`, on a cache line, with anything in it; this thread's until its next call. */
void *cpu_workspace(size_t bytes);

#endif
