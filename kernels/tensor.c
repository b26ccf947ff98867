#include "kernels/tensor.h"

#include <string.h>

const char *state_name(enum state s) {
    static const char *const name[] = {"whole", "entered", "split", "partial"};
    return name[s];
}

const char *axis_name(enum factoring f, int axis) {
    static const char *const name[2][N_AXES] = {{"data", "context", "tensor"},
                                                {"expert-data", "expert", "expert-tensor"}};
    return name[f][axis];
}

bool layout_equal(const struct layout *a, const struct layout *b) {
    if (a->factoring != b->factoring) return false;
    for (int i = 0; i < N_AXES; i++) {
        if (a->state[i] != b->state[i]) return false;
        if (a->state[i] == SPLIT && a->by[i] != b->by[i]) return false;
    }
    bool by_columns = a->state[AXIS_TENSOR] == SPLIT && a->by[AXIS_TENSOR] == BY_COLUMNS;
    if (!by_columns) return true;
    if (a->n_segments != b->n_segments) return false;
    for (int i = 0; i < a->n_segments; i++)
        if (a->segment[i].width != b->segment[i].width ||
            a->segment[i].share != b->segment[i].share)
            return false;
    return true;
}
