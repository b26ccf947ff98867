#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "io/checkpoint.h"
#include "io/exchange.h"
#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"

enum { MOST_TOLD = 20 }; /* damaged blocks that one rank names */

/* The tensors that bytes begin..end of a file belong to, in a few words. */
static void tensors_in(const struct safetensors *s, int64_t begin, int64_t end, char *text,
                       size_t room) {
    int n = 0;
    size_t used = 0;
    char buf[SHOWN_BYTES];
    snprintf(text, room, "in its header");
    for (int i = 0; i < s->n; i++) {
        const struct stored_tensor *t = &s->tensor[i];
        if (t->begin >= end || t->begin + t->bytes <= begin || t->bytes == 0) continue;
        if (n++ < 3)
            used += (size_t)snprintf(text + used, room - used, "%s%s", n == 1 ? "in tensor " : ", ",
                                     shown(t->name, buf));
    }
    if (n > 3) snprintf(text + used, room - used, " and %d more", n - 3);
}

/* Reads block b of file f and, where its checksum is known, verifies it. -1 after telling m. */
static int block_read(const struct checkpoint *c, struct block b, int64_t have,
                      unsigned char *bytes, struct mistakes *m) {
    const struct safetensors *s = &c->file[b.file];
    const struct checksums *sums = &c->checksums[b.file];
    char text[4 * SHOWN_BYTES];
    if (file_read_at(s->fd, bytes, have, b.begin) != 0) {
        const char *why =
            errno == ENODATA ? "it became shorter while it was open" : strerror(errno);
        memset(bytes, 0, (size_t)have);
        mistake(m, s->path, 0, "bytes %lld to %lld cannot be read: %s", (long long)b.begin,
                (long long)b.end, why);
        return -1;
    }
    if (!sums->hash ||
        sums->hash[b.begin / sums->block_bytes] == XXH3_64bits(bytes, (size_t)(b.end - b.begin)))
        return 0;
    tensors_in(s, b.begin, b.end, text, sizeof text);
    mistake(m, s->path, 0,
            "bytes %lld to %lld, %s, do not have the checksum they were written with: the file is "
            "damaged. "
            "Copy it again; if it was changed on purpose, delete checksums.json",
            (long long)b.begin, (long long)b.end, text);
    return -1;
}

int checkpoint_copy(const struct checkpoint *c, const struct stored_tensor *t, int64_t first,
                    int64_t n, void *to, struct block_cache *cache, struct mistakes *m) {
    const struct safetensors *s = &c->file[t->file];
    const struct checksums *sums = &c->checksums[t->file];
    int64_t at = t->begin + first;
    unsigned char *out = to;
    if (!sums->hash) {
        if (file_read_at(s->fd, to, n, at) == 0) return 0;
        mistake(m, s->path, 0, "tensor %s cannot be read: %s", t->name, strerror(errno));
        return -1;
    }
    while (n > 0) {
        int64_t begin = at / sums->block_bytes * sums->block_bytes;
        struct block b = {t->file, begin, begin + sums->block_bytes};
        if (b.end > s->size) b.end = s->size;
        if (cache->of != s || cache->begin != begin) {
            cache->bytes = die_realloc(cache->bytes, (unsigned long)sums->block_bytes);
            cache->of = NULL;
            if (block_read(c, b, b.end - b.begin, cache->bytes, m) != 0) return -1;
            cache->of = s;
            cache->begin = begin;
        }
        int64_t take = b.end - at < n ? b.end - at : n;
        memcpy(out, cache->bytes + (at - begin), (size_t)take);
        out += take;
        at += take;
        n -= take;
    }
    return 0;
}

/* Every rank's mistakes become those of all, in the order of ranks. Returns how many there are. */
static int64_t mistakes_share(struct group *g, struct mistakes *mine, struct mistakes *m) {
    int64_t bytes = 0, total = 0;
    for (int i = 0; i < mine->n; i++) bytes += (int64_t)strlen(mine->text[i]) + 1;
    if (comm_max(g, bytes) == 0) return 0;
    int64_t *counts = die_alloc((unsigned long)g->size * sizeof *counts),
            *ones = die_alloc((unsigned long)g->size * sizeof *ones);
    for (int r = 0; r < g->size; r++) ones[r] = 1;
    struct request request;
    comm_gather_start(g, &bytes, counts, ones, sizeof bytes, &request);
    comm_wait(&request);
    for (int r = 0; r < g->size; r++) total += counts[r];
    char *text = die_alloc((unsigned long)bytes), *all = die_alloc((unsigned long)total);
    int64_t used = 0, n = 0;
    for (int i = 0; i < mine->n; i++) used += sprintf(text + used, "%s", mine->text[i]) + 1;
    comm_gather_start(g, text, all, counts, 1, &request);
    comm_wait(&request);
    for (const char *p = all; p < all + total; p += strlen(p) + 1, n++)
        mistake(m, NULL, 0, "%s", p);
    free(text);
    free(all);
    free(counts);
    free(ones);
    return n;
}

int checkpoint_read(const struct checkpoint *c, struct group *g, int n, const struct box *boxes,
                    struct mistakes *m) {
    struct cut cut;
    int64_t largest = 0;
    cut_init(&cut, c->n_files);
    for (int f = 0; f < c->n_files; f++) {
        bool known = c->checksums[f].hash != NULL;
        cut.size[f] = c->file[f].size;
        cut.block_bytes[f] = known ? c->checksums[f].block_bytes : checkpoint_block_bytes;
        if (cut.block_bytes[f] > largest) largest = cut.block_bytes[f];
    }
    cut_number(&cut);
    struct place *place = die_alloc((unsigned long)n * sizeof *place);
    for (int i = 0; i < n; i++) place[i] = place_of(&boxes[i], &c->tensor[boxes[i].tensor]);
    struct exchange e;
    exchange_init(&e, g, &cut, n, place);
    unsigned char *bytes = die_alloc((unsigned long)largest + MOST_BYTES);
    struct mistakes mine = {0}, more = {0};
    while (exchange_round(&e)) {
        struct block b = e.block[g->rank];
        int64_t have = 0;
        while (exchange_window(&e)) {
            if (have == 0 && exchange_asked(&e) > 0) {
                have = b.end - b.begin + MOST_BYTES;
                if (have > cut.size[b.file] - b.begin) have = cut.size[b.file] - b.begin;
                mistakes_free(&more);
                block_read(c, b, have, bytes, mine.n < MOST_TOLD ? &mine : &more);
            }
            exchange_pull(&e, bytes, have);
        }
    }
    exchange_free(&e);
    cut_free(&cut);
    free(bytes);
    int64_t wrong = mistakes_share(g, &mine, m);
    mistakes_free(&mine);
    mistakes_free(&more);
    return wrong ? -1 : 0;
}
