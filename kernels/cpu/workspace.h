/* workspace: memory that a thread of the cpu room keeps between calls, for what kernels copy into a
 * better order. It is outside the arenas. Our own products need 1.2 MiB a thread whatever the
 * model; attention needs less up to heads of 512; what oneDNN asks for depends on the tile, a few
 * MiB at most. */
#ifndef KERNELS_CPU_WORKSPACE_H
#define KERNELS_CPU_WORKSPACE_H

#include <stddef.h>

/* At least `bytes`, on a cache line, with anything in it; this thread's until its next call. */
void *cpu_workspace(size_t bytes);

#endif
