#include "parallel/schedule_bytes.h"

/* How the action changes what its rank holds. */
static int64_t change(const struct schedule_sizes *z, const struct action *a, int stage,
                      int stages) {
    int64_t came = stage > 0 ? z->stream : 0, goes = stage < stages - 1 ? z->stream : 0;
    int64_t own = schedule_change(z, a->kind, stage);
    switch (a->kind) {
    case ACTION_FORWARD: return own + goes - came;
    case ACTION_BACKWARD:
    case ACTION_BACKWARD_INPUT: return own + came - goes;
    case ACTION_RECEIVE_ACTIVATION:
    case ACTION_RECEIVE_GRADIENT: return z->stream;
    case ACTION_WAIT_SEND_ACTIVATION:
    case ACTION_WAIT_SEND_GRADIENT: return -z->stream;
    default: return own;
    }
}

static int64_t of_rank(const struct schedule *s, const struct schedule_sizes *z, int rank) {
    const struct action_list *l = &s->rank[rank];
    int64_t held = 0, most = 0;
    for (int i = 0; i < l->n; i++) {
        const struct action *a = &l->action[i];
        int stage = schedule_stage(&s->shape, rank, a->chunk);
        if (action_computes(a->kind)) {
            int64_t rise = schedule_rise(z, a->kind, stage);
            if (held + rise > most) most = held + rise;
        }
        held += change(z, a, stage, schedule_stages(&s->shape));
        if (held > most) most = held;
    }
    return most;
}

int64_t schedule_bytes(const struct schedule *s, const struct schedule_sizes *z, int64_t *most) {
    int64_t all = 0;
    for (int r = 0; r < s->shape.ranks; r++) {
        int64_t own = of_rank(s, z, r);
        if (most) most[r] = own;
        if (own > all) all = own;
    }
    return all;
}
