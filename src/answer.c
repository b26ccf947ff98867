#include "src/answer.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "src/text.h"

void answer_init(struct answer *a, int64_t most) {
    memset(a, 0, sizeof *a);
    a->ids = die_alloc((unsigned long)most * sizeof *a->ids);
}

void answer_free(struct answer *a) {
    free(a->ids);
    free(a->bytes);
    memset(a, 0, sizeof *a);
}

const char *stop_name(enum stop s) {
    static const char *const names[] = {"going on", "eos", "text", "length", "not finite"};
    return names[s];
}

/* The earliest stop text that ends among the last `fresh` bytes cuts the answer off before it. */
static bool cut(struct answer *a, const struct ending *e, int64_t fresh) {
    int64_t at = a->n_bytes;
    for (int i = 0; i < e->n_texts; i++) {
        int64_t n = (int64_t)strlen(e->texts[i]), from = a->n_bytes - fresh - n + 1;
        for (int64_t j = from > 0 ? from : 0; j + n <= a->n_bytes && j < at; j++)
            if (!memcmp(a->bytes + j, e->texts[i], (size_t)n)) at = j;
    }
    bool found = at < a->n_bytes;
    a->n_bytes = at;
    return found;
}

void answer_add(struct answer *a, const struct ending *e, int32_t id) {
    if (a->stop) bug("an answer that has ended goes on");
    if (id < 0) {
        a->stop = STOP_NOT_FINITE;
        return;
    }
    a->ids[a->n_ids++] = id;
    if (text_ends(e->text, id)) {
        a->stop = STOP_END;
        return;
    }
    if (a->room - a->n_bytes < TEXT_TOKEN) a->bytes = die_realloc(a->bytes, (size_t)(a->room = 2 * a->room + 2 * TEXT_TOKEN));
    int64_t fresh = (int64_t)text_decode(e->text, id, a->bytes + a->n_bytes);
    a->n_bytes += fresh;
    if (cut(a, e, fresh)) a->stop = STOP_TEXT;
    else if (a->n_ids == e->most) a->stop = STOP_LENGTH;
}

size_t answer_show(struct answer *a, const struct ending *e, const char **from) {
    int64_t ready = a->n_bytes;
    for (int i = 0; i < e->n_texts && !a->stop; i++) {
        int64_t n = (int64_t)strlen(e->texts[i]), j = a->n_bytes - n + 1;
        for (j = j > 0 ? j : 0; j < ready; j++)
            if (!memcmp(a->bytes + j, e->texts[i], (size_t)(a->n_bytes - j))) ready = j;
    }
    if (!a->stop && ready) ready = (int64_t)utf8_complete(a->bytes, (size_t)ready);
    *from = a->bytes + a->shown;
    size_t n = ready > a->shown ? (size_t)(ready - a->shown) : 0;
    a->shown += (int64_t)n;
    return n;
}
