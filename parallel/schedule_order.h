/* schedule_order: the published orders, forwards and backwards only.
 *
 * 1f1b (Narayanan et al. 2019, 2021): rank r of P does P-1-r forwards, then a forward and a
 * backward in turn, then what backwards are left. It holds P - r micro-batches.
 *
 * interleaved (Narayanan et al. 2021, arXiv:2104.04473): micro-batches go in groups of N through
 * chunk 0, then chunk 1, ...; backwards likewise from the last chunk. Rank r warms up with 2(P-1-r)
 * + (v-1)N forwards. Where a group is smaller than P that plan can wait for itself: the ranks at
 * both ends each want a backward that needs a forward of the other. When all ranks stand so, the
 * first one that can do its next forward does it ahead of the plan. Left-over micro-batches form a
 * smaller group at the end, or all groups take some more, which keeps the published idle share for
 * any number of micro-batches from P up and holds more; the builder takes the shorter schedule.
 *
 * zero-bubble (ZB-H1, Qi et al. 2023, arXiv:2401.10241): the order of 1f1b.
 *
 * zbv (ZB-V, the same paper, and Qi et al. 2024, arXiv:2405.15362): rank r does 2(P-r)-1 forwards
 * of chunk 0; r times a forward of each chunk; P-r times forward and backward of chunk 1; then
 * forward and backward of either chunk in turn; at the end backwards, 2r of both chunks in turn and
 * the rest of chunk 0. A step of fewer than 2P-1 micro-batches is that order with the missing ones
 * left out. */
#ifndef PARALLEL_SCHEDULE_ORDER_H
#define PARALLEL_SCHEDULE_ORDER_H

#include "parallel/schedule.h"

enum { ORDER_LAST_SMALLER, ORDER_ALL_LARGER, N_ORDERS };

/* How left-over micro-batches are grouped, 0 .. *this* - 1; 1 where there is no choice. */
int schedule_orders(const struct schedule_shape *shape, int group);

/* Fills empty lists: forward and backward, or backward-input where weight halves are to follow. */
void schedule_order(struct schedule *s, int group, int choice);

#endif
