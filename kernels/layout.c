#include "kernels/layout.h"

#include <string.h>

#include "kernels/die.h"

void op_require(bool cond, const char *op, const struct tensor *x, const char *what) {
    if (cond) return;
    char states[128] = "";
    for (int i = 0; x && i < N_AXES; i++) {
        strncat(states, i ? ", " : "", sizeof states - strlen(states) - 1);
        strncat(states, axis_name(x->layout.factoring, i), sizeof states - strlen(states) - 1);
        strncat(states, " ", sizeof states - strlen(states) - 1);
        strncat(states, state_name(x->layout.state[i]), sizeof states - strlen(states) - 1);
    }
    if (x)
        bug("op %s, tensor '%s' [%ld, %ld] (%s): %s", op, x->label, (long)x->rows, (long)x->width,
            states, what);
    bug("op %s: %s", op, what);
}

struct layout layout_join(const char *op, int n, struct tensor *const *in) {
    for (int i = 0; i < n; i++) {
        if (!in[i]) continue;
        op_require(!in[i]->missing, op, in[i], "was left out of a replay but is read");
        op_require(in[i]->data, op, in[i], "was dropped but is read");
    }
    return layout_join_unread(op, n, in);
}

struct layout layout_join_unread(const char *op, int n, struct tensor *const *in) {
    struct layout l = in[0]->layout;
    for (int a = 0; a < N_AXES; a++) {
        bool whole = false, entered = false, split = false;
        int by = -1;
        for (int i = 0; i < n; i++) {
            const struct tensor *x = in[i];
            if (!x) continue;
            op_require(x->layout.factoring == l.factoring, op, x,
                       "belongs to the other factoring of the ranks");
            op_require(x->layout.state[a] != PARTIAL, op, x,
                       "is partial, and the op is not linear in it");
            whole |= x->layout.state[a] == WHOLE;
            entered |= x->layout.state[a] == ENTERED;
            if (x->layout.state[a] != SPLIT) continue;
            int b = x->param ? BY_COLUMNS : x->layout.by[a]; /* rows of a weight are features */
            op_require(by < 0 || by == b, op, x, "is split another way than the tensors beside it");
            if (by < 0 && b == BY_COLUMNS && !x->param) {
                l.n_segments = x->layout.n_segments;
                for (int s = 0; s < l.n_segments; s++) l.segment[s] = x->layout.segment[s];
            }
            by = b;
            split = true;
        }
        op_require(!whole || !(entered || split), op, in[0],
                   "whole and entered or split tensors meet");
        for (int i = 0; by == BY_COLUMNS && i < n; i++)
            op_require(!in[i] || !in[i]->param || in[i]->layout.state[a] == SPLIT, op, in[i],
                       "is not split as the features beside it are");
        l.state[a] = whole ? WHOLE : split ? SPLIT : ENTERED;
        l.by[a] = by < 0 ? BY_ROWS : by;
    }
    return l;
}
