#include "io/tokenizer_bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_normalise.h"
#include "kernels/die.h"

const char *bpe_token(const struct bpe *b, int32_t id, size_t *n) {
    if (id < 0 || id >= b->n_ids || !b->entry_of[id]) return NULL;
    uint32_t i = b->entry_of[id] - 1;
    *n = b->tokens.entry[i].n;
    return b->tokens.bytes.at + b->tokens.entry[i].at;
}

/* ------------------------------------------------------------------------------------------ merges
 */
void bpe_merges_begin(struct bpe *b, size_t n) {
    uint32_t room = 1024;
    while (room < 2 * n) room *= 2;
    b->merges = die_alloc(room * sizeof *b->merges);
    memset(b->merges, 255, room * sizeof *b->merges);
    b->merge_mask = room - 1;
}

static inline uint32_t merge_slot(const struct bpe *b, uint64_t pair) {
    uint32_t slot = (uint32_t)(mix(pair) >> 24) & b->merge_mask;
    while (b->merges[slot].pair != pair && b->merges[slot].pair != UINT64_MAX)
        slot = (slot + 1) & b->merge_mask;
    return slot;
}

void bpe_merge_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    b->merges[merge_slot(b, pair)] = (struct merge){pair, rank, id};
}

/* The merge of two neighbours, or NULL. */
static inline const struct merge *merge_of(const struct bpe *b, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    const struct merge *m = &b->merges[merge_slot(b, pair)];
    return m->pair == pair ? m : NULL;
}

/* -------------------------------------------------------------------------------------- what is
 * derived */
static void joined_add(struct bpe *b, uint32_t left, uint32_t right) {
    uint64_t key = ((uint64_t)left << 32 | right) + 1, slot = mix(key) >> 20 & b->joined_mask;
    while (b->joined[slot] && b->joined[slot] != key) slot = (slot + 1) & b->joined_mask;
    b->joined[slot] = key;
    if (left < 128 && right < 128)
        b->joined_ascii[(left | right << 7) >> 3] |= (uint8_t)(1 << (left & 7));
}

static inline bool is_joined(const struct bpe *b, uint32_t left, uint32_t right) {
    if (left < 128 && right < 128)
        return b->joined_ascii[(left | right << 7) >> 3] >> (left & 7) & 1;
    uint64_t key = ((uint64_t)left << 32 | right) + 1, slot = mix(key) >> 20 & b->joined_mask;
    while (b->joined[slot] && b->joined[slot] != key) slot = (slot + 1) & b->joined_mask;
    return b->joined[slot] == key;
}

/* The characters, and in byte-level tokenizers the bytes, on both sides of every merge. */
static void find_joined(struct bpe *b) {
    b->joined_mask = 2 * (uint64_t)b->merge_mask + 1;
    b->joined = die_alloc((b->joined_mask + 1) * sizeof *b->joined);
    for (uint32_t i = 0; i <= b->merge_mask; i++) {
        if (b->merges[i].pair == UINT64_MAX) continue;
        size_t n_left = 0, n_right = 0;
        const char *left = bpe_token(b, (int32_t)(b->merges[i].pair >> 32), &n_left);
        const char *right = bpe_token(b, (int32_t)(b->merges[i].pair & UINT32_MAX), &n_right);
        if (!n_left || !n_right) {
            b->cuts = false;
            return;
        }
        size_t last = n_left - 1;
        while (last > 0 && (left[last] & 0xC0) == 0x80) last--;
        int bytes;
        uint32_t l = utf8_at((const uint8_t *)left + last, &bytes),
                 r = utf8_at((const uint8_t *)right, &bytes);
        joined_add(b, l, r);
        int lb = byte_of_character(l), rb = byte_of_character(r);
        if (lb >= 0 && rb >= 0) b->joined_bytes[(lb | rb << 8) >> 3] |= (uint8_t)(1 << (lb & 7));
    }
}

/* The token of one character, with what goes around it. */
static int32_t symbol(const struct bpe *b, struct utf8_text *buffer, const char *at, size_t n,
                      bool continues, bool last) {
    buffer->n = 0;
    if (continues) utf8_text_add(buffer, b->prefix.at, b->prefix.n);
    utf8_text_add(buffer, at, n);
    if (last) utf8_text_add(buffer, b->suffix.at, b->suffix.n);
    return strings_find(&b->tokens, buffer->at, buffer->n);
}

static void find_raw(struct bpe *b, struct utf8_text *buffer) {
    for (uint32_t i = 0; i < b->tokens.n; i++) {
        const uint8_t *s = (const uint8_t *)b->tokens.bytes.at + b->tokens.entry[i].at;
        size_t n = b->tokens.entry[i].n, at = 0;
        buffer->n = 0;
        for (int bytes, byte; at < n && (byte = byte_of_character(utf8_at(s + at, &bytes))) >= 0;
             at += (size_t)bytes) {
            char c = (char)byte;
            utf8_text_add(buffer, &c, 1);
        }
        if (at == n) strings_add(&b->raw, buffer->at, buffer->n, b->tokens.entry[i].id);
    }
}

void bpe_finish(struct bpe *b) {
    struct utf8_text buffer = {0};
    char at[8];
    b->entry_of = die_alloc(((size_t)b->n_ids + 1) * sizeof *b->entry_of);
    b->character = die_alloc(CODE_POINTS * sizeof *b->character);
    for (uint32_t i = 0; i < b->tokens.n; i++) {
        const uint8_t *s = (const uint8_t *)b->tokens.bytes.at + b->tokens.entry[i].at;
        b->entry_of[b->tokens.entry[i].id] = i + 1;
        int bytes;
        if (b->tokens.entry[i].n && utf8_length(*s) == (int)b->tokens.entry[i].n)
            b->character[utf8_at(s, &bytes)] = b->tokens.entry[i].id + 1;
    }
    b->bytes_known = true;
    for (int i = 0; i < 256; i++) {
        size_t n = (size_t)utf8_put(byte_character((uint8_t)i), at);
        for (int k = 0; k < 4; k++) {
            b->byte_id[k][i] = symbol(b, &buffer, at, n, k & 1, k >> 1);
            if (b->byte_id[k][i] == NO_ID) b->bytes_known = false;
        }
        snprintf(at, sizeof at, "<0x%02X>", (unsigned)i);
        b->fallback[i] = strings_find(&b->tokens, at, 6);
    }
    b->cuts = !b->prefix.n && !b->suffix.n;
    if (b->cuts) find_joined(b);
    if (b->bytes && b->ignore_merges) find_raw(b, &buffer);
    utf8_text_free(&buffer);
}

void bpe_free(struct bpe *b) {
    strings_free(&b->tokens);
    strings_free(&b->raw);
    utf8_text_free(&b->prefix);
    utf8_text_free(&b->suffix);
    free(b->entry_of);
    free(b->merges);
    free(b->character);
    free(b->joined);
}

/* ------------------------------------------------------------------------------------- one word */
enum { SHORT = 15, SHORT_IDS = 11, LONG = 47, LONG_IDS = 19, LINEAR = 48 };
enum { SHORT_SETS = 1 << 15, LONG_SETS = 1 << 13 };

struct short_word { /* the bytes, zeros, and the length in the last byte */
    uint64_t low, high;
    int32_t n, ids[SHORT_IDS];
};
struct long_word {
    char bytes[48]; /* likewise */
    int32_t n, ids[LONG_IDS];
};

struct symbol {
    int32_t id, previous, next; /* next -1: the last; id NO_ID: merged away */
};
struct waiting {
    uint32_t rank;
    int32_t at, id;
};

struct bpe_scratch {
    struct short_word (*shorts)[2]; /* the more recent first */
    struct long_word (*longs)[2];
    struct symbol *symbols;
    size_t symbol_room;
    struct waiting *heap;
    size_t heap_n, heap_room;
    int32_t *first_ids;
    size_t n_first, first_room;
    struct utf8_text buffer, characters;
};

struct bpe_scratch *bpe_scratch_make(void) {
    struct bpe_scratch *w = die_alloc(sizeof *w);
    w->shorts = die_alloc(SHORT_SETS * sizeof *w->shorts);
    w->longs = die_alloc(LONG_SETS * sizeof *w->longs);
    return w;
}

void bpe_scratch_free(struct bpe_scratch *w) {
    if (!w) return;
    free(w->shorts);
    free(w->longs);
    free(w->symbols);
    free(w->heap);
    free(w->first_ids);
    utf8_text_free(&w->buffer);
    utf8_text_free(&w->characters);
    free(w);
}

static void first_add(struct bpe_scratch *w, int32_t id) {
    if (w->n_first == w->first_room) {
        w->first_room = w->first_room ? 2 * w->first_room : 256;
        w->first_ids = die_realloc(w->first_ids, w->first_room * sizeof *w->first_ids);
    }
    w->first_ids[w->n_first++] = id;
}

/* The tokens of characters, before any merge. An unknown one waits for what follows, as the package
 * has it. */
static void first_characters(const struct bpe *b, struct bpe_scratch *w, const uint8_t *s,
                             size_t n) {
    bool plain = !b->prefix.n && !b->suffix.n, unknown = false;
    w->n_first = 0;
    for (size_t at = 0; at < n;) {
        int bytes;
        uint32_t c = utf8_at(s + at, &bytes);
        bool last = at + (size_t)bytes == n;
        int32_t id = plain
                         ? b->character[c] - 1
                         : symbol(b, &w->buffer, (const char *)s + at, (size_t)bytes, at > 0, last);
        const uint8_t *shown = plain ? s + at : (const uint8_t *)w->buffer.at;
        size_t n_shown = plain ? (size_t)bytes : w->buffer.n;
        at += (size_t)bytes;
        if (id != NO_ID) {
            if (unknown) first_add(w, b->unk);
            unknown = false;
            first_add(w, id);
            continue;
        }
        bool fallback = b->byte_fallback;
        for (size_t i = 0; i < n_shown && fallback; i++) fallback = b->fallback[shown[i]] != NO_ID;
        if (fallback) {
            for (size_t i = 0; i < n_shown; i++) first_add(w, b->fallback[shown[i]]);
        } else if (b->unk != NO_ID) {
            if (unknown && !b->fuse_unk) first_add(w, b->unk);
            unknown = true;
        }
    }
    if (unknown) first_add(w, b->unk);
}

static void first_bytes(const struct bpe *b, struct bpe_scratch *w, const uint8_t *s, size_t n) {
    w->n_first = 0;
    if (!b->bytes_known) {
        w->characters.n = 0;
        add_byte_characters(&w->characters, (const char *)s, n);
        first_characters(b, w, (const uint8_t *)w->characters.at, w->characters.n);
        return;
    }
    for (size_t i = 0; i < n; i++) first_add(w, b->byte_id[(i > 0) | (i + 1 == n) << 1][s[i]]);
}

static size_t merge_linear(const struct bpe *b, int32_t *id, size_t n) {
    const struct merge *pair[LINEAR];
    for (size_t i = 0; i + 1 < n; i++) pair[i] = merge_of(b, id[i], id[i + 1]);
    while (n > 1) {
        uint32_t least = UINT32_MAX;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            if (pair[i] && pair[i]->rank < least) {
                least = pair[i]->rank;
                at = i;
            }
        if (least == UINT32_MAX) break;
        id[at] = pair[at]->id;
        n--;
        memmove(id + at + 1, id + at + 2, (n - at - 1) * sizeof *id);
        if (at + 1 < n) memmove(pair + at + 1, pair + at + 2, (n - at - 2) * sizeof *pair);
        if (at > 0) pair[at - 1] = merge_of(b, id[at - 1], id[at]);
        if (at + 1 < n) pair[at] = merge_of(b, id[at], id[at + 1]);
    }
    return n;
}

static inline bool sooner(const struct waiting *a, const struct waiting *b) {
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void heap_push(struct bpe_scratch *w, const struct bpe *b, int32_t at, int32_t left,
                      int32_t right) {
    const struct merge *m = merge_of(b, left, right);
    if (!m) return;
    if (w->heap_n == w->heap_room) {
        w->heap_room = w->heap_room ? 2 * w->heap_room : 256;
        w->heap = die_realloc(w->heap, w->heap_room * sizeof *w->heap);
    }
    struct waiting x = {m->rank, at, m->id};
    size_t i = w->heap_n++;
    for (; i > 0 && sooner(&x, &w->heap[(i - 1) / 4]); i = (i - 1) / 4)
        w->heap[i] = w->heap[(i - 1) / 4];
    w->heap[i] = x;
}

static struct waiting heap_pop(struct bpe_scratch *w) {
    struct waiting top = w->heap[0], x = w->heap[--w->heap_n];
    size_t i = 0, n = w->heap_n;
    for (size_t child; (child = 4 * i + 1) < n;) {
        size_t best = child, end = child + 4 < n ? child + 4 : n;
        for (size_t c = child + 1; c < end; c++)
            if (sooner(&w->heap[c], &w->heap[best])) best = c;
        if (!sooner(&w->heap[best], &x)) break;
        w->heap[i] = w->heap[best];
        i = best;
    }
    w->heap[i] = x;
    return top;
}

static size_t merge_heap(const struct bpe *b, struct bpe_scratch *w, int32_t *id, size_t n) {
    if (n > INT32_MAX) die("a word of %zu characters; cut the text into documents", n);
    if (n > w->symbol_room) {
        w->symbol_room = n + n / 2;
        w->symbols = die_realloc(w->symbols, w->symbol_room * sizeof *w->symbols);
    }
    struct symbol *s = w->symbols;
    w->heap_n = 0;
    for (size_t i = 0; i < n; i++)
        s[i] = (struct symbol){id[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < n; i++) heap_push(w, b, (int32_t)i, id[i], id[i + 1]);
    while (w->heap_n) {
        struct waiting top = heap_pop(w);
        struct symbol *left = &s[top.at];
        if (left->id == NO_ID || left->next < 0) continue;
        struct symbol *right = &s[left->next];
        const struct merge *m = merge_of(b, left->id, right->id);
        if (!m || m->id != top.id) continue; /* one of them has changed since */
        left->id = top.id;
        left->next = right->next;
        right->id = NO_ID;
        if (left->next >= 0) s[left->next].previous = top.at;
        if (left->previous >= 0) heap_push(w, b, left->previous, s[left->previous].id, left->id);
        if (left->next >= 0) heap_push(w, b, top.at, left->id, s[left->next].id);
    }
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].id != NO_ID) id[m++] = s[i].id;
    return m;
}

/* The ids of a part of a word. */
static void part_ids(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
                     struct ids *to) {
    if (b->bytes) first_bytes(b, w, (const uint8_t *)word, n);
    else first_characters(b, w, (const uint8_t *)word, n);
    size_t m = w->n_first;
    if (m > 1)
        m = m <= LINEAR ? merge_linear(b, w->first_ids, m) : merge_heap(b, w, w->first_ids, m);
    ids_reserve(to, (int64_t)m);
    memcpy(to->at + to->n, w->first_ids, m * sizeof *w->first_ids);
    to->n += (int64_t)m;
}

/* The ids of a word that is in no cache. */
static void word_ids(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
                     struct ids *to) {
    int32_t whole = bpe_whole(b, word, n);
    if (whole != NO_ID) ids_add(to, whole);
    else part_ids(b, w, word, n, to);
}

int32_t bpe_whole(const struct bpe *b, const char *word, size_t n) {
    return b->ignore_merges ? strings_find(b->bytes ? &b->raw : &b->tokens, word, n) : NO_ID;
}

size_t bpe_cut(const struct bpe *b, const char *word, size_t n) {
    const uint8_t *s = (const uint8_t *)word;
    if (!b->cuts || (b->bytes && !b->bytes_known)) return n;
    if (b->bytes) {
        for (size_t i = 1; i < n; i++)
            if (!(b->joined_bytes[(s[i - 1] | s[i] << 8) >> 3] >> (s[i - 1] & 7) & 1)) return i;
        return n;
    }
    int bytes;
    uint32_t left = utf8_at(s, &bytes);
    for (size_t at = (size_t)bytes; at < n; at += (size_t)bytes) {
        uint32_t right = utf8_at(s + at, &bytes);
        /* Characters that are no token are done with their neighbours. */
        if (b->character[left] && b->character[right] && !is_joined(b, left, right)) return at;
        left = right;
    }
    return n;
}

static void long_word(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
                      struct ids *to) {
    struct long_word key = {0};
    memcpy(key.bytes, word, n);
    key.bytes[LONG] = (char)n;
    struct long_word *set = w->longs[hash_bytes(key.bytes, 48) >> 32 & (LONG_SETS - 1)];
    int hit = !memcmp(set[0].bytes, key.bytes, 48)   ? 0
              : !memcmp(set[1].bytes, key.bytes, 48) ? 1
                                                     : -1;
    if (hit < 0) {
        int64_t before = to->n;
        word_ids(b, w, word, n, to);
        if (to->n - before > LONG_IDS) return;
        key.n = (int32_t)(to->n - before);
        memcpy(key.ids, to->at + before, (size_t)key.n * sizeof *key.ids);
        set[1] = set[0];
        set[0] = key;
        return;
    }
    if (hit == 1) {
        key = set[1];
        set[1] = set[0];
        set[0] = key;
    }
    for (int i = 0; i < set[0].n; i++) ids_add(to, set[0].ids[i]);
}

static inline void load_key(struct short_word *key, const char *word, size_t n) {
    uint64_t low = 0, high = 0;
    if (n >= 8) {
        memcpy(&low, word, 8);
        uint64_t tail;
        memcpy(&tail, word + n - 8, 8); /* overlaps the first eight; what does is shifted out */
        high = n > 8 ? tail >> (8 * (16 - n)) : 0;
    } else if (n >= 4) {
        uint32_t a, z;
        memcpy(&a, word, 4);
        memcpy(&z, word + n - 4, 4);
        low = a | (uint64_t)z << (8 * (n - 4));
    } else if (n) {
        low = (uint64_t)(uint8_t)word[0] | (uint64_t)(uint8_t)word[n / 2] << (8 * (n / 2)) |
              (uint64_t)(uint8_t)word[n - 1] << (8 * (n - 1));
    }
    key->low = low;
    key->high = high | (uint64_t)n << 56;
}

static inline void short_word(const struct bpe *b, struct bpe_scratch *w, const char *word,
                              size_t n, struct ids *to) {
    struct short_word key;
    load_key(&key, word, n);
    struct short_word *set = w->shorts[mix(key.low ^ mix(key.high)) >> 32 & (SHORT_SETS - 1)];
    if (set[0].low != key.low || set[0].high != key.high) {
        if (set[1].low == key.low && set[1].high == key.high) {
            struct short_word other = set[1];
            set[1] = set[0];
            set[0] = other;
        } else {
            int64_t before = to->n;
            word_ids(b, w, word, n, to);
            if (to->n - before > SHORT_IDS) return;
            key.n = (int32_t)(to->n - before);
            memcpy(key.ids, to->at + before, (size_t)key.n * sizeof *key.ids);
            set[1] = set[0];
            set[0] = key;
            return;
        }
    }
    if (to->room - to->n < SHORT_IDS) ids_reserve(to, SHORT_IDS);
    memcpy(to->at + to->n, set[0].ids, sizeof set[0].ids);
    to->n += set[0].n;
}

void bpe_part(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
              struct ids *to) {
    for (size_t part; n; word += part, n -= part) {
        part = bpe_cut(b, word, n);
        /* The caches know words, which ignore_merges treats otherwise than parts. */
        if (part <= SHORT && !b->ignore_merges) short_word(b, w, word, part, to);
        else part_ids(b, w, word, part, to);
    }
}

void bpe_word(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
              struct ids *to) {
    if (n <= SHORT) short_word(b, w, word, n, to);
    else if (n <= LONG) long_word(b, w, word, n, to);
    else if (bpe_whole(b, word, n) != NO_ID) word_ids(b, w, word, n, to);
    else bpe_part(b, w, word, n, to);
}
