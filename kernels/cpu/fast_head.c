/* fast_head: head.c once more, over the fast matrix product. */
#include "kernels/cpu/head.c"
