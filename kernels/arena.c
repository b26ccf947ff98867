#include "kernels/arena.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/device.h"
#include "kernels/die.h"

enum { GRAIN = 64, GUARD = 0xA5, FILL = 0xFF, GUARD_MOST = 4096 };

struct piece {
    size_t at, size, bytes; /* bytes: what was asked for; guards begin there */
    int used;
    const char *label;
    struct piece *next, *prev;
};

size_t arena_round(size_t bytes) {
    return bytes < GRAIN ? GRAIN : (bytes + GRAIN - 1) / GRAIN * GRAIN;
}

void arena_init(struct arena *a, const char *name, struct device *d) {
    memset(a, 0, sizeof *a);
    a->name = name;
    a->device = d;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = d->dry ? (size_t)1 << 50 : 4 * memory;
    while (!(a->base = device_reserve(d, bytes)) && bytes > ((size_t)1 << 28)) bytes /= 2;
    if (!a->base)
        die("no address space for the arena '%s'; is there a limit on virtual memory (ulimit -v)?",
            name);
    a->reserved = bytes;
}

void arena_free_all(struct arena *a) {
    for (struct piece *p = a->first, *next; p; p = next) next = p->next, free(p);
    for (struct piece *p = a->spare, *next; p; p = next) next = p->next, free(p);
    free(a->hole);
    if (a->base) device_release(a->device, a->base, a->reserved);
    memset(a, 0, sizeof *a);
}

static struct piece *node(struct arena *a) {
    struct piece *p = a->spare;
    if (p) a->spare = p->next;
    else p = die_alloc(sizeof *p);
    memset(p, 0, sizeof *p);
    return p;
}

/* Guards double every address, so that what is counted is the same with and without them. */
static size_t spread(const struct arena *a) {
    return a->device->debug && !a->device->dry ? 2 : 1;
}

static unsigned char *guards(const struct arena *a, const struct piece *p, size_t *n) {
    *n = 2 * p->size - p->bytes < GUARD_MOST ? 2 * p->size - p->bytes : GUARD_MOST;
    return (unsigned char *)device_host(a->device, a->base + 2 * p->at) + p->bytes;
}

static void poison(const struct arena *a, const struct piece *p, int guard) {
    if (spread(a) == 1) return;
    size_t n;
    unsigned char *g = guards(a, p, &n);
    memset(device_host(a->device, a->base + 2 * p->at), FILL, p->size);
    if (guard) memset(g, GUARD, n);
}

static void check_guards(const struct arena *a, const struct piece *p) {
    if (spread(a) == 1) return;
    size_t n;
    const unsigned char *g = guards(a, p, &n);
    for (size_t i = 0; i < n; i++)
        if (g[i] != GUARD)
            bug("arena %s: '%s' of %zu bytes was written %zu bytes past its end", a->name, p->label,
                p->size, i);
}

/* The number of holes before one of this size at `at`. */
static size_t holes_before(const struct arena *a, size_t size, size_t at) {
    size_t low = 0, high = a->holes;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const struct piece *p = a->hole[middle];
        if (p->size < size || (p->size == size && p->at < at)) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void hole_add(struct arena *a, struct piece *p) {
    const size_t i = holes_before(a, p->size, p->at);
    if (a->holes == a->room) {
        a->room = a->room ? 2 * a->room : 64;
        a->hole = die_realloc(a->hole, a->room * sizeof *a->hole);
    }
    memmove(a->hole + i + 1, a->hole + i, (a->holes++ - i) * sizeof *a->hole);
    a->hole[i] = p;
}

static void hole_remove(struct arena *a, const struct piece *p) {
    const size_t i = holes_before(a, p->size, p->at);
    memmove(a->hole + i, a->hole + i + 1, (--a->holes - i) * sizeof *a->hole);
}

/* A hole keeps `size`, and the rest is one of its own; it is never the last piece: see
 * arena_give. */
static void split(struct arena *a, struct piece *p, size_t size) {
    struct piece *rest = node(a);
    rest->at = p->at + size;
    rest->size = p->size - size;
    rest->prev = p;
    rest->next = p->next;
    rest->next->prev = rest;
    p->next = rest;
    p->size = size;
    hole_add(a, rest);
}

struct piece *arena_take(struct arena *a, size_t bytes, const char *label, void **address) {
    const size_t size = arena_round(bytes), i = holes_before(a, size, 0);
    struct piece *best = i < a->holes ? a->hole[i] : NULL;
    if (!best) {
        best = node(a);
        best->at = a->top;
        best->size = size;
        best->prev = a->last;
        if (a->last) a->last->next = best;
        else a->first = best;
        a->last = best;
        a->top += size;
        if (a->top * spread(a) > a->reserved)
            die("arena '%s' wants %zu bytes for '%s' beyond the %zu that could be reserved",
                a->name, size, label, a->reserved);
        if (a->top > a->peak) a->peak = a->top;
    } else {
        hole_remove(a, best);
        if (best->size > size) split(a, best, size);
    }
    best->used = 1;
    best->bytes = bytes;
    best->label = label;
    a->live += size;
    if (a->live > a->live_most) a->live_most = a->live;
    poison(a, best, 1);
    *address = a->base + best->at * spread(a);
    return best;
}

/* p, which is free, takes over the hole behind it. */
static void merge_with_next(struct arena *a, struct piece *p) {
    struct piece *n = p->next;
    p->size += n->size;
    p->next = n->next;
    if (p->next) p->next->prev = p;
    n->next = a->spare;
    a->spare = n;
}

void arena_give(struct arena *a, struct piece *p) {
    if (!p->used) bug("arena %s: a piece was given back twice ('%s')", a->name, p->label);
    check_guards(a, p);
    poison(a, p, 0);
    p->used = 0;
    a->live -= p->size;
    if (p->next && !p->next->used) {
        hole_remove(a, p->next);
        merge_with_next(a, p);
    }
    if (p->prev && !p->prev->used) {
        p = p->prev;
        hole_remove(a, p);
        merge_with_next(a, p);
    }
    if (p->next) {
        hole_add(a, p);
    } else { /* the free end goes back to the untouched part */
        a->top = p->at;
        a->last = p->prev;
        if (p->prev) p->prev->next = NULL;
        else a->first = NULL;
        p->next = a->spare;
        a->spare = p;
    }
}

void arena_check_empty(const struct arena *a) {
    for (const struct piece *p = a->first; p; p = p->next)
        if (p->used) bug("arena %s: '%s' (%zu bytes) is still in use", a->name, p->label, p->size);
}
