#include "io/tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

#include "io/unicode.h"
#include "kernels/die.h"

/* Children are a list of siblings; few words share a beginning and then part. */
struct word_node {
    int child, sibling; /* 0: none */
    int word;           /* number + 1, 0: no word ends here */
    uint8_t byte;
};

static int node_make(struct words *w, uint8_t byte) {
    if (w->n_nodes == w->room) {
        w->room = w->room ? 2 * w->room : 64;
        w->nodes = die_realloc(w->nodes, (size_t)w->room * sizeof *w->nodes);
    }
    w->nodes[w->n_nodes] = (struct word_node){.byte = byte};
    return w->n_nodes++;
}

static int node_child(const struct words *w, int node, uint8_t byte) {
    int c = w->nodes[node].child;
    while (c && w->nodes[c].byte != byte) c = w->nodes[c].sibling;
    return c;
}

bool words_add(struct words *w, const char *word, size_t n, struct added a) {
    if (!n) return false;
    if (!w->n_nodes) node_make(w, 0);
    int node = 0;
    for (size_t i = 0; i < n; i++) {
        int c = node_child(w, node, (uint8_t)word[i]);
        if (!c) {
            c = node_make(w, (uint8_t)word[i]);
            w->nodes[c].sibling = w->nodes[node].child;
            w->nodes[node].child = c;
        }
        node = c;
    }
    if (w->nodes[node].word) return false;
    w->added = die_realloc(w->added, (size_t)(w->n_added + 1) * sizeof *w->added);
    w->added[w->n_added++] = a;
    w->nodes[node].word = w->n_added;
    for (int second = 0; second < 256; second++) {
        unsigned bit = (uint8_t)word[0] | (unsigned)(n > 1 ? (uint8_t)word[1] : second) << 8;
        w->pair[bit >> 3] |= (uint8_t)(1 << (bit & 7));
    }
    return true;
}

void words_free(struct words *w) {
    free(w->nodes);
    free(w->added);
    *w = (struct words){0};
}

void words_begin(struct words_pass *p, const struct words *w, const char *text, size_t n) {
    *p = (struct words_pass){.words = w, .text = (const uint8_t *)text, .n = n};
}

/* The number of the longest word at this place, or -1. */
static int longest(const struct words_pass *p, size_t at, size_t *end) {
    const struct words *w = p->words;
    int found = -1;
    for (int node = 0; at < p->n;) {
        node = node_child(w, node, p->text[at++]);
        if (!node) break;
        if (!w->nodes[node].word) continue;
        found = w->nodes[node].word - 1;
        *end = at;
    }
    return found;
}

static size_t before(const uint8_t *s, size_t at) {
    do at--;
    while ((s[at] & 0xC0) == 0x80);
    return at;
}

static bool alone(const struct words_pass *p, size_t start, size_t end) {
    int bytes;
    if (start > 0 && unicode_word(utf8_at(p->text + before(p->text, start), &bytes))) return false;
    return end == p->n || !unicode_word(utf8_at(p->text + end, &bytes));
}

/* The next word that counts; its place in *start, *end. */
static bool next_match(struct words_pass *p, size_t *start, size_t *end, int32_t *id) {
    const uint8_t *pair = p->words->pair;
    while (p->at < p->n) {
        unsigned bit = p->text[p->at] | (unsigned)(p->at + 1 < p->n ? p->text[p->at + 1] : 0) << 8;
        size_t s = p->at, e;
        int number;
        if ((!(pair[bit >> 3] >> (bit & 7) & 1) && p->at + 1 < p->n) ||
            (number = longest(p, s, &e)) < 0) {
            p->at++;
            continue;
        }
        p->at = e;
        const struct added *a = &p->words->added[number];
        if (a->single_word && !alone(p, s, e)) continue;
        int bytes;
        while (a->lstrip && s > p->done &&
               unicode_space(utf8_at(p->text + before(p->text, s), &bytes)))
            s = before(p->text, s);
        /* A match before may have swallowed the space up to here, or even beyond. */
        if (a->lstrip && s < p->done) s = p->done;
        while (a->rstrip && e < p->n && unicode_space(utf8_at(p->text + e, &bytes)))
            e += (size_t)bytes;
        *start = s;
        *end = e;
        *id = a->id;
        return true;
    }
    return false;
}

bool words_next(struct words_pass *p, size_t *start, size_t *end, int32_t *id) {
    if (p->waiting) {
        p->waiting = false;
        *start = p->done;
        *end = p->done = p->end;
        *id = p->id;
        return true;
    }
    size_t s, e;
    if (p->words->n_nodes && next_match(p, &s, &e, id)) {
        if (p->done >= s) {
            *start = s;
            *end = p->done = e;
            return true;
        }
        *start = p->done;
        *end = p->done = s;
        p->end = e;
        p->id = *id;
        p->waiting = true;
        *id = -1;
        return true;
    }
    p->at = p->n;
    if (p->done >= p->n) return false;
    *start = p->done;
    *end = p->done = p->n;
    *id = -1;
    return true;
}
