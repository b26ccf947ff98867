#include "src/layer.h"

#include <stddef.h>

extern const struct layer_kind layer_mamba, layer_attention, layer_mlp, layer_experts;

static const struct layer_kind *const kinds[] = {&layer_mamba, &layer_attention, &layer_mlp,
                                                 &layer_experts};

const struct layer_kind *layer_kind_at(int i) {
    return i >= 0 && i < (int)(sizeof kinds / sizeof *kinds) ? kinds[i] : NULL;
}

const struct layer_kind *layer_kind(char letter) {
    for (int i = 0; layer_kind_at(i); i++)
        if (kinds[i]->letter == letter) return kinds[i];
    return NULL;
}

struct tensor *add_after(struct tape *t, struct tensor *y, struct param *bias) {
    return bias ? add_bias(t, y, bias) : y;
}
