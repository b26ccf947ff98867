/* tokenizer_strings: strings with a number each, found by hashing.
 *
 * The bytes of all lie one after the other; a table of places, at most half full, leads from hash
 * to string. */
#ifndef IO_TOKENIZER_STRINGS_H
#define IO_TOKENIZER_STRINGS_H

#include "io/unicode.h"

enum { NO_ID = -1 };

struct strings {
    struct utf8_text bytes;
    struct {
        uint64_t at;
        uint32_t n;
        int32_t id;
    } * entry;
    uint32_t n, room, *slots, mask; /* slots: entry + 1 */
};
bool strings_add(struct strings *s, const char *at, size_t n,
                 int32_t id); /* false: is there already */
int32_t strings_find(const struct strings *s, const char *at, size_t n); /* NO_ID: is not */
void strings_free(struct strings *s);

static inline uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}
uint64_t hash_bytes(const char *at, size_t n);

#endif
