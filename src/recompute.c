#include "src/recompute.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_again.h"
#include "src/deck.h"

bool recompute_layers(const struct deck *d) {
    return !strcmp(d->memory.recompute, "full");
}

static bool selective(const struct deck *d) {
    return !strcmp(d->memory.recompute, "selective");
}

unsigned recompute_ops(const struct deck *d) {
    unsigned ops = 0;
    if (!selective(d)) return 0;
    if (!d->memory.recompute_ops.n)
        return AGAIN(rms_norm) | AGAIN(relu2) | AGAIN(conv) | AGAIN(gate_norm) | AGAIN(gated_norm) |
               AGAIN(gather_rows) | AGAIN(widen);
    for (int i = 0; i < d->memory.recompute_ops.n; i++)
        ops |= tape_again_bit(d->memory.recompute_ops.v[i]);
    return ops;
}

void recompute_check(const struct deck *d, struct mistakes *m) {
    const struct deck_texts *ops = &d->memory.recompute_ops;
    if (deck_given(d, "memory.recompute_ops") && !selective(d))
        deck_mistake(d, m, "memory.recompute_ops",
                     "is given, but memory.recompute is %s; say memory.recompute: selective",
                     d->memory.recompute);
    char *legal = die_strdup(tape_again_name(0));
    for (int i = 1; i < N_AGAIN; i++) {
        char *more = die_format("%s, %s", legal, tape_again_name(i));
        free(legal);
        legal = more;
    }
    for (int i = 0; i < ops->n; i++)
        if (!tape_again_bit(ops->v[i]))
            deck_mistake(d, m, "memory.recompute_ops", "has '%.60s'; there are %s", ops->v[i],
                         legal);
    free(legal);
}
