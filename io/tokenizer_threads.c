#include <omp.h>
#include <stdlib.h>

#include "io/tokenizer_encode.h"
#include "io/tokenizer_known.h"
#include "kernels/die.h"

enum { PART_BYTES = 1 << 18, BATCH_BYTES = 1 << 23, RESULTS = 64, LONG_WORD = 4096 };

/* A word, or a part of one, or a token already found. */
struct item {
    size_t at, n;
    int32_t id; /* NO_ID: a word */
    bool part;
};

struct helpers {
    int n;
    struct encoder **encoders; /* one a thread */
    struct ids results[RESULTS];
    struct utf8_text bytes; /* of items */
    struct item *items;
    size_t n_items, item_room;
};

static void collect(struct encoder *e) {
    struct helpers *h = e->helpers;
    for (int r = 0; r < RESULTS; r++) {
        ids_add_all(e->to, &h->results[r]);
        h->results[r].n = 0;
    }
}

/* ------------------------------------------------------------------------------ a text divided at
 * safe places */
static size_t next_cut(struct piece p, size_t at) {
    while (at < p.n && !known_may_cut((const uint8_t *)p.at, at)) at++;
    return at < p.n ? at : p.n;
}

static bool piece_parts(struct encoder *e, struct piece p) {
    struct helpers *h = e->helpers;
    size_t begin[RESULTS + 1] = {0};
    bool good = true;
    while (begin[0] < p.n && good) {
        int n = 0;
        while (n < RESULTS && begin[n] < p.n) {
            begin[n + 1] = p.n - begin[n] < PART_BYTES ? p.n : next_cut(p, begin[n] + PART_BYTES);
            n++;
        }
#pragma omp parallel for schedule(dynamic, 1) num_threads(h->n)
        for (int r = 0; r < n; r++) {
            struct encoder *own = h->encoders[omp_get_thread_num()];
            own->to = &h->results[r];
            if (!split_part(&e->t->splitter, &own->split, p, begin[r], begin[r + 1])) {
#pragma omp atomic write
                good = false;
            }
        }
        collect(e);
        begin[0] = begin[n];
    }
    return good;
}

/* ------------------------------------------------------------------------------------ words handed
 * out */
static void items_do(struct encoder *e) {
    struct helpers *h = e->helpers;
    const struct bpe *b = &e->t->bpe;
    size_t begin[RESULTS + 1] = {0}, share = h->bytes.n / RESULTS + 1;
    for (int r = 0; r < RESULTS; r++) {
        size_t i = begin[r];
        while (i < h->n_items && h->items[i].at < share * (size_t)(r + 1)) i++;
        begin[r + 1] = r + 1 < RESULTS ? i : h->n_items;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(h->n)
    for (int r = 0; r < RESULTS; r++) {
        struct bpe_scratch *w = h->encoders[omp_get_thread_num()]->bpe;
        for (size_t i = begin[r]; i < begin[r + 1]; i++) {
            const struct item *k = &h->items[i];
            if (k->id != NO_ID) ids_add(&h->results[r], k->id);
            else if (k->part) bpe_part(b, w, h->bytes.at + k->at, k->n, &h->results[r]);
            else bpe_word(b, w, h->bytes.at + k->at, k->n, &h->results[r]);
        }
    }
    collect(e);
    h->n_items = 0;
    h->bytes.n = 0;
}

static void item_add(struct encoder *e, const char *at, size_t n, int32_t id, bool part) {
    struct helpers *h = e->helpers;
    if (h->n_items == h->item_room) {
        h->item_room = h->item_room ? 2 * h->item_room : 4096;
        h->items = die_realloc(h->items, h->item_room * sizeof *h->items);
    }
    h->items[h->n_items++] = (struct item){h->bytes.n, n, id, part};
    utf8_text_add(&h->bytes, at, n);
    if (h->bytes.n >= BATCH_BYTES) items_do(e);
}

static void word_later(void *to, const char *word, size_t n) {
    struct encoder *e = to;
    const struct bpe *b = &e->t->bpe;
    if (n <= LONG_WORD || bpe_whole(b, word, n) != NO_ID) {
        item_add(e, word, n, NO_ID, false);
        return;
    }
    for (size_t done = 0; done < n;) {
        size_t end = done;
        while (end < n && end - done < LONG_WORD) end += bpe_cut(b, word + end, n - end);
        item_add(e, word + done, end - done, NO_ID, true);
        done = end;
    }
}

bool helpers_piece(struct encoder *e, struct piece p) {
    const struct splitter *k = &e->t->splitter;
    return k->exact && p.n > PART_BYTES ? piece_parts(e, p) : split(k, &e->split, p);
}

void helpers_id(struct encoder *e, int32_t id) {
    if (e->t->splitter.exact) ids_add(e->to, id);
    else item_add(e, NULL, 0, id, false);
}

int tokenizer_encode_threads(const struct tokenizer *t, int threads, const char *text, size_t n,
                             bool add_special, struct ids *to) {
    struct encoder *e = encoder_make(t);
    struct helpers h = {.n = threads};
    int r;
    if (threads < 2 || t->built_in || n < PART_BYTES)
        r = tokenizer_encode(e, text, n, add_special, to);
    else {
        h.encoders = die_alloc((size_t)threads * sizeof *h.encoders);
        for (int i = 0; i < threads; i++) h.encoders[i] = encoder_make(t);
        e->helpers = &h;
        if (!t->splitter.exact) e->split.word = word_later;
        r = encoder_run(e, text, n, add_special, to);
        items_do(e);
        if (add_special && r == 0) ids_add_all(to, &t->behind);
    }
    for (int i = 0; h.encoders && i < threads; i++) encoder_free(h.encoders[i]);
    for (int i = 0; i < RESULTS; i++) ids_free(&h.results[i]);
    free(h.encoders);
    utf8_text_free(&h.bytes);
    free(h.items);
    encoder_free(e);
    return r;
}
