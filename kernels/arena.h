/* arena: all tensor memory, in a few regions that are planned before a run and measured during it.
 *
 * An arena hands out pieces of one region of address space of a device. Best fit, lowest address,
 * neighbours merged when freed: the same calls give the same addresses on every device, so the peak
 * of a dry run is the peak of the real one to the byte. The peak is the highest end of any piece.
 * Pieces in use are not looked at when one is taken, however many a deep pipeline holds: the holes
 * between them are a list of their own.
 * Pieces are multiples of 64 bytes and carry a label, so that a leak or a broken guard has a name.
 *
 * On a debug device every piece is filled with NaN when taken and when given back, and followed by
 * guard bytes that are checked; the guards lie outside what is counted: real addresses are twice
 * the counted ones. */
#ifndef KERNELS_ARENA_H
#define KERNELS_ARENA_H

#include <stddef.h>

struct device;
struct piece;

struct arena {
    const char *name;
    struct device *device;
    char *base;             /* device address */
    size_t reserved;        /* bytes of address space */
    struct piece *first;    /* all pieces by address, free ones too */
    struct piece *last;     /* in use: behind it is the untouched part */
    struct piece **hole;    /* [holes] the free ones by size, equal ones by address */
    size_t holes, room;     /* room: of that list */
    struct piece *spare;    /* nodes for reuse */
    size_t top, peak;       /* end of the last piece; highest ever */
    size_t live, live_most; /* bytes in use; at most, since the owner last set that down */
};

/* Reserves address space (four times the machine's memory, less if the system refuses). Dies if
 * none is to be had. */
void arena_init(struct arena *a, const char *name, struct device *d);
void arena_free_all(struct arena *a);

/* A piece of `bytes` (0 is one of 64); *p gets its device address. label: a static string. */
struct piece *arena_take(struct arena *a, size_t bytes, const char *label, void **p);
void arena_give(struct arena *a, struct piece *piece);

/* A bug, naming the labels, if anything is in use. */
void arena_check_empty(const struct arena *a);

/* Bytes a piece of this size counts for. */
size_t arena_round(size_t bytes);

#endif
