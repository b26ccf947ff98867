/* scan_recent: what generation remembers beside a scan's state, so that the state need not be written
 * for every token (ops.def: scan_next).
 *
 * Each row of a batch has slots for R tokens, and weights:
 *   in [R,H,P]      D_i x_i
 *   b [R,G,S]       b_i
 *   weight [H,R+1]  of the state, then of each token: the products of the decays since, or 0 */
#ifndef KERNELS_SCAN_RECENT_H
#define KERNELS_SCAN_RECENT_H

#include <stdint.h>

/* Tokens between two writings of a state: with R of them a token's share is 1/R writing, and what it
 * reads of those remembered grows with R. At most so many. */
enum { SCAN_RECENT = 8, SCAN_RECENT_MOST = 64 };

struct scan_recent {
    int64_t in, b;       /* numbers of a slot */
    int64_t b_at, w_at;  /* where slots of b and weights begin in a row */
    int64_t weight, all; /* numbers of a head's weights, of a row */
};

static inline struct scan_recent scan_recent(int64_t H, int64_t P, int64_t G, int64_t S,
                                             int64_t R) {
    struct scan_recent r = {.in = H * P, .b = G * S, .weight = R + 1};
    r.b_at = R * r.in;
    r.w_at = r.b_at + R * r.b;
    r.all = r.w_at + H * r.weight;
    return r;
}

#endif
