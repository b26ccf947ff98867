#include "kernels/cpu/workspace.h"

#include <stdlib.h>

#include "kernels/die.h"

static _Thread_local void *mine;
static _Thread_local size_t mine_bytes;

void *cpu_workspace(size_t bytes) {
    if (bytes > mine_bytes) {
        free(mine);
        mine_bytes = (bytes + 4095) / 4096 * 4096;
        mine = aligned_alloc(4096, mine_bytes);
        if (!mine) die("no memory for a thread's %zu bytes", mine_bytes);
    }
    return mine;
}
