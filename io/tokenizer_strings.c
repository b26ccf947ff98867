#include "io/tokenizer_strings.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

uint64_t hash_bytes(const char *at, size_t n) {
    uint64_t h = n * 0x9E3779B97F4A7C15u, word;
    for (; n >= 8; at += 8, n -= 8) {
        memcpy(&word, at, 8);
        h = mix(h ^ word);
    }
    word = 0;
    memcpy(&word, at, n);
    h = mix(h ^ word);
    return mix(h ^ h >> 32);
}

static uint32_t strings_slot(const struct strings *s, const char *at, size_t n) {
    uint32_t slot = (uint32_t)(hash_bytes(at, n) >> 32) & s->mask;
    for (; s->slots[slot]; slot = (slot + 1) & s->mask) {
        uint32_t i = s->slots[slot] - 1;
        if (s->entry[i].n == n && !memcmp(s->bytes.at + s->entry[i].at, at, n)) break;
    }
    return slot;
}

bool strings_add(struct strings *s, const char *at, size_t n, int32_t id) {
    if (!s->slots || 2 * (s->n + 1) > s->mask) {
        free(s->slots);
        s->mask = s->mask ? 2 * s->mask + 1 : 1023;
        s->slots = die_alloc(((size_t)s->mask + 1) * sizeof *s->slots);
        for (uint32_t i = 0; i < s->n; i++)
            s->slots[strings_slot(s, s->bytes.at + s->entry[i].at, s->entry[i].n)] = i + 1;
    }
    uint32_t slot = strings_slot(s, at, n);
    if (s->slots[slot]) return false;
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        s->entry = die_realloc(s->entry, s->room * sizeof *s->entry);
    }
    s->entry[s->n].at = s->bytes.n;
    s->entry[s->n].n = (uint32_t)n;
    s->entry[s->n].id = id;
    utf8_text_add(&s->bytes, at, n);
    utf8_text_reserve(&s->bytes, 1);
    s->slots[slot] = ++s->n;
    return true;
}

int32_t strings_find(const struct strings *s, const char *at, size_t n) {
    if (!s->slots) return NO_ID;
    uint32_t i = s->slots[strings_slot(s, at, n)];
    return i ? s->entry[i - 1].id : NO_ID;
}

void strings_free(struct strings *s) {
    utf8_text_free(&s->bytes);
    free(s->entry);
    free(s->slots);
    *s = (struct strings){0};
}
