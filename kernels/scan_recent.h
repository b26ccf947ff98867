/* scan_recent: what generation remembers beside a scan's state, so that the state need not be
 * written for every token (ops.def: scan_next).
 *
 * Each row of a batch has slots for R tokens, a head's and a group's side by side, and weights:
 *   in [H,R,P]      D_i x_i
 *   b [G,R,S]       b_i
 *   weight [H,R+1]  of the state, then of each token: the products of the decays since, or 0
 */
#ifndef KERNELS_SCAN_RECENT_H
#define KERNELS_SCAN_RECENT_H

#include <stdint.h>

/* Tokens between two writings of a state: with R of them a token's share is 1/R writing, and what
 * it reads of those remembered grows with R. At most so many. */
enum { SCAN_RECENT = 8, SCAN_RECENT_MOST = 64 };

struct scan_recent {
    int64_t in, b, weight; /* numbers of a head, of a group, of a head's weights */
    int64_t b_at, w_at;    /* where b and the weights begin in a row */
    int64_t all;           /* numbers of a row */
};

static inline struct scan_recent scan_recent(int64_t H, int64_t P, int64_t G, int64_t S,
                                             int64_t R) {
    struct scan_recent r = {.in = R * P, .b = R * S, .weight = R + 1};
    r.b_at = H * r.in;
    r.w_at = r.b_at + G * r.b;
    r.all = r.w_at + H * r.weight;
    return r;
}

#endif
