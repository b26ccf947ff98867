#include "io/corpora_piece.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "io/corpora_documents.h"
#include "io/corpora_files.h"
#include "io/files.h"
#include "io/progress.h"
#include "io/token_source.h"
#include "kernels/die.h"

/* The header: these, the facts, then two checksums. */
enum { H_MAGIC, H_KEY, H_WIDTH, H_FACTS };
enum { H_TOKENS = H_FACTS + PIECE_FACTS, H_SUM, H_WORDS, BLOCK = 1 << 16 };
_Static_assert(H_WORDS * 8 == PIECE_HEADER, "the header's size is told in corpora_piece.h");
static const int64_t MAGIC = 0x316b6f7472617473; /* "startok1" */

int64_t piece_bytes(const int64_t *facts, int width) {
    return PIECE_HEADER + (facts[PIECE_TRAIN] + facts[PIECE_HELD]) * width;
}

/* ---- checking ---- */

/* Would another threshold have put each document on the same side? */
static bool same_split(const int64_t *facts, uint64_t threshold) {
    bool none = facts[PIECE_HELD_DOCUMENTS] == 0;
    bool all = facts[PIECE_HELD_DOCUMENTS] == facts[PIECE_DOCUMENTS];
    return (uint64_t)facts[PIECE_THRESHOLD] == threshold ||
           (none && (uint64_t)facts[PIECE_LEAST] >= threshold) ||
           (all && (uint64_t)facts[PIECE_GREATEST] < threshold);
}

static bool is_whole(const struct piece_job *j, int fd, int64_t size, const int64_t *header) {
    const int64_t *facts = header + H_FACTS;
    if (header[H_MAGIC] != MAGIC || header[H_KEY] != (int64_t)j->key ||
        header[H_WIDTH] != j->width ||
        header[H_SUM] != (int64_t)XXH3_64bits(header, H_SUM * sizeof *header) ||
        size != piece_bytes(facts, j->width) || !same_split(facts, j->threshold))
        return false;
    XXH3_state_t *sum = XXH3_createState();
    unsigned char *block = die_alloc(BLOCK);
    XXH3_64bits_reset(sum);
    bool good = true;
    for (int64_t at = PIECE_HEADER; at < size && good; at += BLOCK) {
        int64_t n = size - at < BLOCK ? size - at : BLOCK;
        good = file_read_at(fd, block, n, at) == 0;
        XXH3_64bits_update(sum, block, (size_t)n);
    }
    good = good && (int64_t)XXH3_64bits_digest(sum) == header[H_TOKENS];
    XXH3_freeState(sum);
    free(block);
    return good;
}

bool piece_check(const struct piece_job *j, int64_t *facts) {
    int64_t header[H_WORDS], size;
    char why[WHY_BYTES];
    int fd = file_open(j->name, &size, why);
    if (fd < 0) return false;
    bool good = size >= PIECE_HEADER && file_read_at(fd, header, PIECE_HEADER, 0) == 0 &&
                is_whole(j, fd, size, header);
    close(fd);
    if (!good) return false;
    memcpy(facts, header + H_FACTS, PIECE_FACTS * sizeof *facts);
    for (int64_t i = 0; i < j->n; i++)
        progress_add(j->progress, (j->range[i].last - j->range[i].first) * j->progress_factor);
    return true;
}

/* ---- making ---- */

struct writer {
    const struct piece_job *job;
    int64_t *facts;
    char *part; /* the name until it is complete */
    int fd;
    int64_t at; /* bytes written */
    XXH3_state_t *sum;
    unsigned char *block; /* not yet written */
    int64_t n_block;
    unsigned char *held; /* tokens held out: they come after the others */
    int64_t n_held, room_held;
    int32_t *ids;
    int64_t room_ids, counted; /* counted: bytes told to progress */
};

static _Noreturn void cannot(const struct writer *w, const char *what) {
    int reason = errno;
    unlink(w->part);
    die("%s cannot be %s: %s; make room there, or name another folder with data.cache", w->part,
        what, strerror(reason));
}

static void put(struct writer *w, const void *from, int64_t n) {
    if (file_write_at(w->fd, from, n, w->at) != 0) cannot(w, "written");
    XXH3_64bits_update(w->sum, from, (size_t)n);
    w->at += n;
}

static void narrow(unsigned char *to, int width, const int32_t *ids, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = (uint32_t)ids[i];
        uint16_t half = (uint16_t)x;
        if (width == 2) memcpy(to + 2 * i, &half, 2);
        else memcpy(to + 4 * i, &x, 4);
    }
}

static void put_train(struct writer *w, const int32_t *ids, int64_t n) {
    int width = w->job->width;
    while (n > 0) {
        int64_t k = (BLOCK - w->n_block) / width;
        if (k > n) k = n;
        narrow(w->block + w->n_block, width, ids, k);
        w->n_block += k * width;
        if (w->n_block == BLOCK) put(w, w->block, w->n_block), w->n_block = 0;
        ids += k;
        n -= k;
    }
}

static void put_held(struct writer *w, const int32_t *ids, int64_t n) {
    int width = w->job->width;
    int64_t more = w->n_held + n * width;
    if (more > w->room_held)
        w->held = die_realloc(w->held, (unsigned long)(w->room_held = 2 * more));
    narrow(w->held + w->n_held, width, ids, n);
    w->n_held = more;
}

static void take(void *to, const char *text, int64_t n) {
    struct writer *w = to;
    const struct token_source *s = w->job->tokens;
    if (n == 0) return;
    uint64_t hash = document_hash(text, n);
    bool held = hash < w->job->threshold;
    int64_t k = s->encode(s->own, text, n, &w->ids, &w->room_ids);
    for (int64_t i = 0; i < k; i++)
        if (w->ids[i] < 0 || w->ids[i] >= s->vocabulary)
            bug("tokenizer %s gives id %ld of %ld", s->name, (long)w->ids[i], (long)s->vocabulary);
    (held ? put_held : put_train)(w, w->ids, k);
    (held ? put_held : put_train)(w, &s->end, 1);
    w->facts[held ? PIECE_HELD : PIECE_TRAIN] += k + 1;
    w->facts[PIECE_DOCUMENTS]++;
    w->facts[PIECE_HELD_DOCUMENTS] += held;
    if (hash < (uint64_t)w->facts[PIECE_LEAST]) w->facts[PIECE_LEAST] = (int64_t)hash;
    if (hash > (uint64_t)w->facts[PIECE_GREATEST]) w->facts[PIECE_GREATEST] = (int64_t)hash;
    w->counted += n;
    progress_add(w->job->progress, n * w->job->progress_factor);
}

static void finish(struct writer *w) {
    int64_t header[H_WORDS] = {MAGIC, (int64_t)w->job->key, w->job->width};
    put(w, w->block, w->n_block);
    put(w, w->held, w->n_held);
    memcpy(header + H_FACTS, w->facts, PIECE_FACTS * sizeof *header);
    header[H_TOKENS] = (int64_t)XXH3_64bits_digest(w->sum);
    header[H_SUM] = (int64_t)XXH3_64bits(header, H_SUM * sizeof *header);
    if (file_write_at(w->fd, header, PIECE_HEADER, 0) != 0 || fsync(w->fd) != 0)
        cannot(w, "written");
    if (close(w->fd) != 0 || rename(w->part, w->job->name) != 0) cannot(w, "completed");
}

void piece_make(const struct piece_job *j, int64_t *facts) {
    char host[65] = "";
    gethostname(host, sizeof host - 1);
    struct writer w = {.job = j, .facts = facts, .at = PIECE_HEADER};
    memset(facts, 0, PIECE_FACTS * sizeof *facts);
    facts[PIECE_LEAST] = -1;
    facts[PIECE_THRESHOLD] = (int64_t)j->threshold;
    w.part = die_format("%s.%s-%ld.part", j->name, host, (long)getpid());
    w.fd = open(w.part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w.fd < 0) cannot(&w, "made");
    w.sum = XXH3_createState();
    XXH3_64bits_reset(w.sum);
    w.block = die_alloc(BLOCK);
    for (int64_t i = 0; i < j->n; i++) {
        const struct text_range *r = &j->range[i];
        int64_t before = w.counted;
        facts[PIECE_WITHOUT_TEXT] +=
            documents_each(&j->files->file[r->file], r->first, r->last, take, &w);
        int64_t rest = r->last - r->first - (w.counted - before);
        if (rest > 0) progress_add(j->progress, rest * j->progress_factor);
    }
    finish(&w);
    XXH3_freeState(w.sum);
    free(w.block);
    free(w.held);
    free(w.ids);
    free(w.part);
}
