#include "src/documents.h"

#include <stdbool.h>

#include "parallel/context_parallel.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"

/* Parts along tensor of the tokens that a context rank routes. */
static int parts_of(const struct parallel *p) {
    return p->sequence || !experts_at_home(p) ? p->shape.tensor : 1;
}

int64_t documents_borders(const struct parallel *p, int64_t sequences) {
    const int context = p->shape.context;
    return sequences * (context_pieces(context) - 1) + (int64_t)context * (parts_of(p) - 1);
}

/* The border before token t of sequence `row`, or -1: first all between pieces, then those between
 * the parts of each context rank's tokens. */
static int64_t border_at(const struct parallel *p, int64_t rows, int64_t row, int64_t n,
                         int64_t t) {
    const int64_t context = p->shape.context, pieces = context_pieces((int)context),
                  held = context_held((int)context), length = n / pieces, piece = t / length;
    if (t == 0) return -1;
    if (t % length == 0) return row * (pieces - 1) + piece - 1;
    const int parts = parts_of(p);
    const bool late = piece >= context;
    const int64_t rank = late ? 2 * context - 1 - piece : piece, tokens = rows * held * length,
                  at = (row * held + late) * length + t % length;
    /* The part of token `at` begins there: the last part that begins at or before it. */
    const int64_t part = tokens ? ((at + 1) * parts - 1) / tokens : 0;
    if (part == 0 || part_begin(tokens, parts, (int)part, 1) != at) return -1;
    return rows * (pieces - 1) + rank * (parts - 1) + part - 1;
}

void documents_number(const struct parallel *p, int64_t rows, int64_t row, int64_t n,
                      const int32_t *start, const double *weight, int32_t *document) {
    const int64_t borders = documents_borders(p, rows);
    for (int64_t from = 0, end; from < n; from = end) {
        bool counts = false;
        int64_t number = -1;
        for (end = from; end < n && start[end] == start[from]; end++) {
            counts |= weight[end] > 0;
            if (end > from && number < 0 && borders) number = border_at(p, rows, row, n, end);
        }
        if (number < 0) number = borders + row * n + from;
        for (int64_t t = from; t < end; t++) document[t] = counts ? (int32_t)number : -1;
    }
}
