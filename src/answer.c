#include "src/answer.h"

#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"
#include "io/unicode.h"
#include "kernels/die.h"
#include "src/text.h"

/* Lets the detokenizer see the prompt. What it holds back of the prompt's own text will come with
 * the answer. */
static void see_prompt(struct answer *a, const struct tokenizer *t, const int32_t *ids, int64_t n) {
    struct utf8_text whole = {0};
    for (int64_t i = 0; i < n; i++) detokenizer_push(a->detokenizer, ids[i], a->fresh);
    tokenizer_decode(t, ids, n, true, &whole);
    if (whole.n > a->fresh->n) {
        a->prompt = die_alloc(sizeof *a->prompt);
        utf8_text_add(a->prompt, whole.at + a->fresh->n, whole.n - a->fresh->n);
    }
    a->fresh->n = 0;
    utf8_text_free(&whole);
}

void answer_init(struct answer *a, const struct ending *e, const int32_t *ids, int64_t n) {
    memset(a, 0, sizeof *a);
    a->ids = die_alloc((unsigned long)e->most * sizeof *a->ids);
    if (!e->text->tokenizer) return;
    a->fresh = die_alloc(sizeof *a->fresh);
    a->detokenizer = detokenizer_make(e->text->tokenizer, true);
    see_prompt(a, e->text->tokenizer, ids, n);
}

static void text_done(struct utf8_text **t) {
    if (*t) utf8_text_free(*t);
    free(*t);
    *t = NULL;
}

void answer_free(struct answer *a) {
    detokenizer_free(a->detokenizer);
    text_done(&a->fresh);
    text_done(&a->prompt);
    free(a->ids);
    free(a->bytes);
    memset(a, 0, sizeof *a);
}

const char *stop_name(enum ended s) {
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

/* Takes over the fresh text; returns its bytes. What it begins with is left out if that is the end
 * of the prompt, which differs only if the answer changed it: half a character that became whole.
 */
static int64_t take_fresh(struct answer *a, bool last) {
    struct utf8_text *f = a->fresh, *p = a->prompt;
    size_t skip = 0;
    if (p) {
        size_t n = f->n < p->n ? f->n : p->n;
        bool same = !n || !memcmp(f->at, p->at, n);
        if (same && n < p->n && !last) return 0;
        if (same) skip = n;
        text_done(&a->prompt);
    }
    int64_t n = (int64_t)(f->n - skip);
    if (a->room - a->n_bytes < n)
        a->bytes = die_realloc(a->bytes, (size_t)(a->room = 2 * a->room + n + 256));
    if (n) memcpy(a->bytes + a->n_bytes, f->at + skip, (size_t)n);
    a->n_bytes += n;
    f->n = 0;
    return n;
}

/* The text of one more token, and if it is the last of all that is held back. True: it completes a
 * stop text. */
static bool add_text(struct answer *a, const struct ending *e, int32_t id, bool last) {
    if (!a->detokenizer) return false;
    if (id >= 0) detokenizer_push(a->detokenizer, id, a->fresh);
    if (last) detokenizer_finish(a->detokenizer, a->fresh);
    return cut(a, e, take_fresh(a, last));
}

void answer_add(struct answer *a, const struct ending *e, int32_t id) {
    if (a->stop) bug("an answer that has ended goes on");
    if (id < 0) {
        a->stop = STOP_NOT_FINITE;
        add_text(a, e, -1, true);
        return;
    }
    a->ids[a->n_ids++] = id;
    bool ends = text_ends(e->text, id), last = ends || a->n_ids == e->most;
    if (add_text(a, e, ends ? -1 : id, last)) a->stop = STOP_TEXT;
    else if (ends) a->stop = STOP_END;
    else if (last) a->stop = STOP_LENGTH;
}

size_t answer_show(struct answer *a, const struct ending *e, const char **from) {
    int64_t ready = a->n_bytes;
    for (int i = 0; i < e->n_texts && !a->stop; i++) {
        int64_t n = (int64_t)strlen(e->texts[i]), j = a->n_bytes - n + 1;
        for (j = j > 0 ? j : 0; j < ready; j++)
            if (!memcmp(a->bytes + j, e->texts[i], (size_t)(a->n_bytes - j))) ready = j;
    }
    *from = a->bytes + a->shown;
    size_t n = ready > a->shown ? (size_t)(ready - a->shown) : 0;
    a->shown += (int64_t)n;
    return n;
}
