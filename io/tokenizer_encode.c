#include "io/tokenizer_encode.h"

#include <stdlib.h>

#include "kernels/die.h"

static void word_now(void *to, const char *word, size_t n) {
    struct encoder *e = to;
    bpe_word(&e->t->bpe, e->bpe, word, n, e->to);
}

struct encoder *encoder_make(const struct tokenizer *t) {
    struct encoder *e = die_alloc(sizeof *e);
    e->t = t;
    if (t->built_in) return e;
    e->matcher = matcher_make();
    e->normalise.matcher = e->split.matcher = e->matcher;
    e->bpe = bpe_scratch_make();
    e->split.word = word_now;
    e->split.to = e;
    return e;
}

void encoder_free(struct encoder *e) {
    if (!e) return;
    matcher_free(e->matcher);
    normalise_scratch_free(&e->normalise);
    split_scratch_free(&e->split);
    bpe_scratch_free(e->bpe);
    utf8_text_free(&e->repaired);
    free(e);
}

const char *encoder_why(const struct encoder *e) {
    return e->why ? e->why : "";
}

static bool piece_done(struct encoder *e, struct piece p) {
    return e->helpers ? helpers_piece(e, p) : split(&e->t->splitter, &e->split, p);
}

static void id_done(struct encoder *e, int32_t id) {
    if (e->helpers) helpers_id(e, id);
    else ids_add(e->to, id);
}

/* A stretch between the added tokens that are looked for first. */
static bool stretch(struct encoder *e, const char *at, size_t n, size_t first) {
    const struct tokenizer *t = e->t;
    struct piece p = {at, n, first};
    struct words_pass pass;
    size_t start, end;
    int32_t id;
    if (!normalise(&t->normaliser, &e->normalise, &p)) return false;
    words_begin(&pass, &t->after, p.at, p.n);
    while (words_next(&pass, &start, &end, &id)) {
        size_t begin = p.first > start ? p.first - start : 0;
        struct piece inner = {p.at + start, end - start, begin < end - start ? begin : end - start};
        if (id != NO_ID) id_done(e, id);
        else if (!piece_done(e, inner)) return false;
    }
    return true;
}

int encoder_run(struct encoder *e, const char *text, size_t n, bool add_special, struct ids *to) {
    const struct tokenizer *t = e->t;
    struct words_pass pass;
    size_t start, end;
    int32_t id;
    bool good = true;
    e->to = to;
    e->why = NULL;
    if (!utf8_text_repair(text, n, &e->repaired)) {
        text = e->repaired.at;
        n = e->repaired.n;
    }
    if (add_special) ids_add_all(to, &t->ahead);
    words_begin(&pass, &t->before, text, n);
    while (good && words_next(&pass, &start, &end, &id)) {
        if (id != NO_ID) id_done(e, id);
        else
            good = stretch(e, text + start, end - start,
                           start == 0 ? (size_t)utf8_length((uint8_t)text[0]) : 0);
    }
    if (good) return 0;
    e->why = "a pattern of the tokenizer takes too many steps on this text";
    return -1;
}

int tokenizer_encode(struct encoder *e, const char *text, size_t n, bool add_special,
                     struct ids *to) {
    if (e->t->built_in) {
        ids_reserve(to, (int64_t)n);
        for (size_t i = 0; i < n; i++) to->at[to->n++] = (uint8_t)text[i];
        return 0;
    }
    if (encoder_run(e, text, n, add_special, to) != 0) return -1;
    if (add_special) ids_add_all(to, &e->t->behind);
    return 0;
}
