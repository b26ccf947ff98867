#include "io/token_source.h"

#include <stddef.h>

#include "kernels/die.h"

static int64_t encode(const void *own, const char *text, int64_t n, int32_t **ids, int64_t *room) {
    (void)own;
    if (*room < n) *ids = die_realloc(*ids, (unsigned long)(*room = n) * sizeof **ids);
    for (int64_t i = 0; i < n; i++) (*ids)[i] = (unsigned char)text[i];
    return n;
}

const struct token_source token_source_bytes = {"bytes", 0x6279746573, 257, 256, NULL, encode};
