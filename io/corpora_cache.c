#include "io/corpora_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "io/corpora_files.h"
#include "io/corpora_piece.h"
#include "io/files.h"
#include "io/progress.h"
#include "io/token_source.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"

enum { VERSION = 1, SMALLEST_PIECE = 256 << 10, LARGEST_PIECE = 64 << 20, PIECES_WANTED = 256 };

struct builder {
    struct token_cache *cache;
    const struct text_files *files;
    const struct token_source *tokens;
    uint64_t key, threshold;
    int width, threads;
    struct group *group;
    int64_t *begin; /* [pieces + 1] into range */
    struct text_range *range;
    int64_t *facts; /* [pieces][PIECE_FACTS] */
};

/* ---- the plan ---- */

static uint64_t cache_key(const struct text_files *t, const struct token_source *s, double split) {
    XXH3_state_t *sum = XXH3_createState();
    XXH3_64bits_reset(sum);
    const int64_t all[] = {VERSION, (int64_t)s->hash, s->vocabulary, s->end, t->n};
    XXH3_64bits_update(sum, all, sizeof all);
    XXH3_64bits_update(sum, &split, sizeof split);
    for (int64_t i = 0; i < t->n; i++) {
        const struct text_file *f = &t->file[i];
        const int64_t one[] = {f->size, f->modified_ns, (int64_t)f->hash, f->lines};
        XXH3_64bits_update(sum, one, sizeof one);
        XXH3_64bits_update(sum, f->name, strlen(f->name) + 1);
    }
    uint64_t key = XXH3_64bits_digest(sum);
    XXH3_freeState(sum);
    return key;
}

/* Cuts the text into ranges of files, and these into pieces, by sizes alone. */
static void cut(struct builder *b) {
    const struct text_files *t = b->files;
    int64_t size = t->bytes / PIECES_WANTED, filled = 0, ranges = 0, pieces = 0;
    if (size < SMALLEST_PIECE) size = SMALLEST_PIECE;
    if (size > LARGEST_PIECE) size = LARGEST_PIECE;
    int64_t most = t->n + t->bytes / size + 1;
    b->range = die_alloc((unsigned long)most * sizeof *b->range);
    b->begin = die_alloc((unsigned long)(most + 1) * sizeof *b->begin);
    for (int64_t i = 0; i < t->n; i++)
        for (int64_t at = 0; at < t->file[i].size;) {
            int64_t left = t->file[i].size - at;
            int64_t take = t->file[i].lines && left > size ? size : left;
            b->range[ranges++] = (struct text_range){i, at, at + take};
            at += take;
            filled += take;
            if (filled < size) continue;
            b->begin[++pieces] = ranges;
            filled = 0;
        }
    if (filled) b->begin[++pieces] = ranges;
    struct token_cache *c = b->cache;
    c->n = pieces;
    c->name = die_alloc((unsigned long)pieces * sizeof *c->name);
    for (int64_t p = 0; p < pieces; p++)
        c->name[p] = die_format("%s/%06lld.tokens", c->folder, (long long)p);
    b->facts = die_alloc((unsigned long)(pieces * PIECE_FACTS) * sizeof *b->facts);
}

/* ---- the index ---- */

/* Words of the index: these, the facts of each piece, a checksum. */
enum { I_MAGIC, I_KEY, I_WIDTH, I_PIECES, I_FACTS };
static const int64_t MAGIC = 0x3178646e72617473; /* "starndx1" */

static int64_t index_words(const struct builder *b) {
    return I_FACTS + b->cache->n * PIECE_FACTS + 1;
}

static int64_t *index_text(const struct builder *b) {
    int64_t n = index_words(b), *text = die_alloc((unsigned long)n * sizeof *text);
    const int64_t head[I_FACTS] = {MAGIC, (int64_t)b->key, b->width, b->cache->n};
    memcpy(text, head, sizeof head);
    memcpy(text + I_FACTS, b->facts, (size_t)(b->cache->n * PIECE_FACTS) * sizeof *text);
    text[n - 1] = (int64_t)XXH3_64bits(text, (size_t)(n - 1) * sizeof *text);
    return text;
}

/* Fills the facts from the index and checks it and the sizes of all pieces. 0: there; 1: not; -1:
 * damaged, with why. */
static int index_read(struct builder *b, char *why) {
    char *path = die_format("%s/index", b->cache->folder);
    int64_t bytes = 0, n = index_words(b);
    int result = -1;
    char *text = file_exists(path) ? file_text(path, INT64_MAX - 1, &bytes, why) : NULL;
    if (!text) {
        result = file_exists(path) ? -1 : 1;
    } else if (bytes != n * 8) {
        snprintf(why, WHY_BYTES, "its index has %lld bytes instead of %lld", (long long)bytes,
                 (long long)n * 8);
    } else {
        memcpy(b->facts, text + I_FACTS * 8, (size_t)(b->cache->n * PIECE_FACTS) * 8);
        int64_t *expected = index_text(b);
        result = memcmp(expected, text, (size_t)bytes) == 0 ? 0 : -1;
        if (result) snprintf(why, WHY_BYTES, "the checksum of its index is wrong");
        free(expected);
    }
    for (int64_t p = 0; p < b->cache->n && result == 0; p++) {
        struct stat s;
        int64_t want = piece_bytes(b->facts + p * PIECE_FACTS, b->width);
        if (stat(b->cache->name[p], &s) == 0 && s.st_size == want) continue;
        snprintf(why, WHY_BYTES, "%06lld.tokens is missing or not of %lld bytes", (long long)p,
                 (long long)want);
        result = -1;
    }
    free(text);
    free(path);
    return result;
}

static void index_write(const struct builder *b) {
    char *path = die_format("%s/index", b->cache->folder);
    char *part = die_format("%s.%ld.part", path, (long)getpid());
    int64_t *text = index_text(b);
    if (folder_sync(b->cache->folder) != 0 ||
        file_replace(path, part, text, index_words(b) * 8) != 0)
        die("%s cannot be written: %s; make room there, or name another folder with data.cache",
            path, strerror(errno));
    folder_sync(b->cache->folder);
    free(text);
    free(part);
    free(path);
}

/* ---- one builder at a time ---- */

/* What a builder that was killed left unfinished; only while no other can be at work. */
static void sweep(const char *folder) {
    DIR *d = opendir(folder);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 5, ".part") != 0) continue;
        char *path = die_format("%s/%s", folder, e->d_name);
        unlink(path);
        free(path);
    }
    closedir(d);
}

/* An open file that holds the lock, or holds none where there are no locks; -1 with errno if the
 * folder cannot be used. */
static int lock_take(const struct token_cache *c) {
    char *path = die_format("%s/lock", c->folder);
    int fd = folder_make_above(path) == 0 ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
    int reason = errno;
    const struct timespec tick = {0, 50000000};
    for (int ticks = 0; fd >= 0; ticks++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            sweep(c->folder);
            break;
        }
        if (errno != EWOULDBLOCK && errno != EINTR) break;
        if (ticks == 20)
            fprintf(stderr, "waiting for another run, which makes tokens of the same text in %s\n",
                    c->folder);
        nanosleep(&tick, NULL);
    }
    free(path);
    errno = reason;
    return fd;
}

/* ---- making ---- */

/* All pieces that are this rank's; then every rank knows the facts of all. */
static void make_pieces(struct builder *b, struct progress *progress) {
    struct group *g = b->group;
    int64_t words = b->cache->n * PIECE_FACTS;
    memset(b->facts, 0, (size_t)words * sizeof *b->facts);
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads)
    for (int64_t p = g->rank; p < b->cache->n; p += g->size) {
        struct piece_job j = {.files = b->files,
                              .tokens = b->tokens,
                              .key = b->key + (uint64_t)p,
                              .threshold = b->threshold,
                              .width = b->width,
                              .name = b->cache->name[p],
                              .n = b->begin[p + 1] - b->begin[p],
                              .range = b->range + b->begin[p],
                              .progress = progress,
                              .progress_factor = g->size};
        int64_t *facts = b->facts + p * PIECE_FACTS;
        if (!piece_check(&j, facts)) piece_make(&j, facts);
    }
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(g, words, I64));
    comm_sum_start(g, b->facts, words, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
}

/* Makes what is missing; once more if the share to be held out turned out to be none, or all. */
static void make_all(struct builder *b, double split) {
    struct progress progress;
    progress_begin(&progress, "tokenising", b->files->bytes, b->group->rank == 0);
    make_pieces(b, &progress);
    uint64_t least = UINT64_MAX, greatest = 0;
    for (int64_t p = 0; p < b->cache->n; p++) {
        const int64_t *facts = b->facts + p * PIECE_FACTS;
        if ((uint64_t)facts[PIECE_LEAST] < least) least = (uint64_t)facts[PIECE_LEAST];
        if ((uint64_t)facts[PIECE_GREATEST] > greatest) greatest = (uint64_t)facts[PIECE_GREATEST];
    }
    uint64_t settled = split > 0 ? split_settle(b->threshold, least, greatest) : b->threshold;
    if (settled != b->threshold) {
        b->threshold = settled;
        make_pieces(b, &progress);
    }
    progress_end(&progress);
}

/* Rank 0 looks whether the cache is there, under the lock if it must be made. */
enum { THERE, TO_MAKE, IMPOSSIBLE };

static int64_t look(struct builder *b, int *lock, struct mistakes *m) {
    char why[WHY_BYTES] = "";
    *lock = -1;
    if (index_read(b, why) == 0) return THERE;
    *lock = lock_take(b->cache);
    if (*lock < 0) {
        mistake(m, "data.cache", 0, "%s cannot be used: %s", b->cache->folder, strerror(errno));
        return IMPOSSIBLE;
    }
    int state = index_read(b, why);
    if (state < 0)
        fprintf(stderr, "note: the tokens in %s are damaged (%s); they are mended\n",
                b->cache->folder, why);
    return state == 0 ? THERE : TO_MAKE;
}

static void fill(struct builder *b, struct token_stream *train, struct token_stream *held) {
    struct token_cache *c = b->cache;
    stream_init(train, b->width, b->tokens->end, b->tokens->vocabulary);
    stream_init(held, b->width, b->tokens->end, b->tokens->vocabulary);
    for (int64_t p = 0; p < c->n; p++) {
        const int64_t *facts = b->facts + p * PIECE_FACTS;
        int64_t bytes = piece_bytes(facts, b->width), n = facts[PIECE_TRAIN];
        if (n) stream_add(train, (struct piece){c->name[p], n, PIECE_HEADER, bytes});
        int64_t after = PIECE_HEADER + n * b->width;
        n = facts[PIECE_HELD];
        if (n) stream_add(held, (struct piece){c->name[p], n, after, bytes});
        c->documents += facts[PIECE_DOCUMENTS];
        c->held_documents += facts[PIECE_HELD_DOCUMENTS];
        c->without_text += facts[PIECE_WITHOUT_TEXT];
    }
}

int cache_open(struct token_cache *c, const struct text_files *files,
               const struct token_source *tokens, double split, const char *below, int threads,
               struct group *g, struct mistakes *m, struct token_stream *train,
               struct token_stream *held) {
    *c = (struct token_cache){0};
    struct builder b = {.cache = c, .files = files, .tokens = tokens, .group = g};
    b.key = cache_key(files, tokens, split);
    b.threshold = split_threshold(split);
    b.width = tokens->vocabulary <= 65536 ? 2 : 4;
    b.threads = threads > 0 ? threads : 1;
    c->folder = die_format("%s/%016llx", below, (unsigned long long)b.key);
    cut(&b);
    int lock = -1;
    int64_t state = THERE;
    struct mistakes mine = {0};
    if (g->rank == 0) state = look(&b, &lock, &mine);
    comm_broadcast(g, &state, sizeof state, 0);
    mistakes_share(g, &mine, m);
    mistakes_free(&mine);
    if (state == TO_MAKE) {
        make_all(&b, split);
        if (g->rank == 0) index_write(&b);
    }
    if (lock >= 0) close(lock);
    comm_broadcast(g, b.facts, (size_t)(c->n * PIECE_FACTS) * sizeof *b.facts, 0);
    if (state != IMPOSSIBLE) fill(&b, train, held);
    free(b.begin);
    free(b.range);
    free(b.facts);
    return state == IMPOSSIBLE ? -1 : 0;
}

void cache_free(struct token_cache *c) {
    for (int64_t p = 0; p < c->n; p++) free(c->name[p]);
    free(c->name);
    free(c->folder);
    *c = (struct token_cache){0};
}
