#include "tests/tokenizing.h"

#include <stdio.h>

#include "kernels/mistakes.h"

static uint64_t state = 1;

uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state * 0x2545F4914F6CDD1Du >> 32) % below);
}

struct tokenizer *opened(const char *path) {
    struct mistakes m = {0};
    struct tokenizer *t = tokenizer_open(path, &m);
    mistakes_print(&m, stderr);
    mistakes_free(&m);
    return t;
}
