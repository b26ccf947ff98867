#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "io/checkpoint.h"
#include "io/checkpoint_plan.h"
#include "io/exchange.h"
#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"

int64_t checkpoint_block_bytes = 8 << 20;

/* A temporary folder is ours if it holds this or, once it is complete, the checksums. */
static const char marker[] = ".mestar-is-writing", checksums[] = "checksums.json";

struct writer {
    char *path, *temporary;
    bool single;
    struct group *g;
    int n_tensors;
    const struct new_tensor *tensors;
    struct plan plan;
    struct cut cut;
    int *fd; /* [files], -1: not opened by this rank */
    unsigned char *bytes,
        *seen; /* the block in the making, and which of its bytes have been supplied */
    struct block_cache cache;
    uint64_t *hash; /* of this rank's blocks, one a round */
};

static _Noreturn void cannot(const char *what, const char *path, int reason) {
    bool room = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
    die("cannot %s %s: %s; %s. Nothing older was touched", what, path, strerror(reason),
        room ? "make room there or save elsewhere, then run again"
             : "check that the folder may be written to, then run again");
}

static char *file_path(const struct writer *w, const char *name) {
    return w->single ? die_strdup(w->temporary) : die_format("%s/%s", w->temporary, name);
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

static bool is_among(const char *name, int n, const struct new_file *files) {
    for (int i = 0; i < n; i++)
        if (strcmp(files[i].name, name) == 0) return true;
    return false;
}

/* Whether a file of an older checkpoint is made anew by every save or belongs to what it replaces.
 */
static bool is_replaced(const char *name, int n, const struct new_file *files) {
    bool shard = strncmp(name, "model", 5) == 0 && ends_with(name, ".safetensors");
    return shard || strcmp(name, "model.safetensors.index.json") == 0 ||
           strcmp(name, checksums) == 0 || strcmp(name, marker) == 0 || is_among(name, n, files);
}

/* Counts a folder's entries, those that are replaced, and whether it is a checkpoint. -1: no such
 * folder. */
static int folder_count(const char *path, int n, const struct new_file *files, int *replaced,
                        bool *ours) {
    DIR *d = opendir(path);
    if (!d) return -1;
    int entries = 0;
    *replaced = 0;
    *ours = false;
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        entries++;
        *replaced += is_replaced(e->d_name, n, files);
        *ours |= strcmp(e->d_name, marker) == 0 || strcmp(e->d_name, checksums) == 0 ||
                 ends_with(e->d_name, ".safetensors");
    }
    closedir(d);
    return entries;
}

/* Nothing may stand in the way that is not ours to remove. */
static void target_check(const struct writer *w, int n, const struct new_file *files) {
    struct stat s;
    if (lstat(w->path, &s) != 0) return;
    int replaced;
    bool ours;
    if (w->single) {
        if (S_ISDIR(s.st_mode)) die("%s is a folder; give another name for the file", w->path);
        return;
    }
    int entries = folder_count(w->path, n, files, &replaced, &ours);
    if (entries < 0)
        die("%s exists and is not a folder that can be listed (%s); save elsewhere", w->path,
            strerror(errno));
    if (entries > 0 && !ours)
        die("%s exists and holds no checkpoint; it is not replaced. Save elsewhere, or move it "
            "away",
            w->path);
}

/* What an older save left under the temporary name, or what the new folder replaced, goes; files in
 * it that saving does not make are kept under another name. */
static void older_remove(const struct writer *w, int n, const struct new_file *files) {
    int replaced;
    bool ours;
    char *mark = die_format("%s/%s", w->temporary, marker);
    int entries = folder_count(w->temporary, n, files, &replaced, &ours);
    if (file_exists(mark) || entries == replaced) {
        if (folder_remove(w->temporary) != 0) cannot("remove", w->temporary, errno);
    } else {
        DIR *d = opendir(w->temporary);
        for (struct dirent *e; d && (e = readdir(d));)
            if (is_replaced(e->d_name, n, files)) unlinkat(dirfd(d), e->d_name, 0);
        if (d) closedir(d);
        char *aside = name_aside(w->path);
        if (rename(w->temporary, aside) != 0) cannot("rename to", aside, errno);
        fprintf(stderr, "mestar: files beside the tensors of the older %s are kept in %s\n",
                w->path, aside);
        free(aside);
    }
    free(mark);
}

static void leftover_remove(const struct writer *w, int n, const struct new_file *files) {
    struct stat s;
    if (lstat(w->temporary, &s) != 0) return;
    bool ours = false;
    int replaced;
    if (w->single) {
        ours = S_ISREG(s.st_mode);
        if (ours && unlink(w->temporary) != 0) cannot("remove", w->temporary, errno);
    } else if (S_ISDIR(s.st_mode)) {
        int entries = folder_count(w->temporary, n, files, &replaced, &ours);
        ours |= entries == 0;
        if (ours) older_remove(w, n, files);
    }
    if (!ours) die("%s is in the way and not left by an earlier save; move it away", w->temporary);
}

/* Rank 0 makes the files at their full size, so that a full disk shows before anything is computed.
 */
static void files_make(const struct writer *w, int n, const struct new_file *files) {
    if (folder_make_above(w->path) != 0) cannot("make the folders above", w->path, errno);
    leftover_remove(w, n, files);
    if (!w->single) {
        if (mkdir(w->temporary, 0777) != 0) cannot("make the folder", w->temporary, errno);
        char *mark = die_format("%s/%s", w->temporary, marker);
        if (file_make(mark, "", 0) != 0) cannot("write", mark, errno);
        free(mark);
    }
    for (int f = 0; f < w->plan.n_files; f++) {
        char *path = file_path(w, w->plan.file[f].name);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) cannot("make", path, errno);
        if (fallocate(fd, 0, 0, w->plan.file[f].size) != 0 && errno != EOPNOTSUPP &&
            errno != ENOSYS)
            cannot("write", path, errno);
        if (ftruncate(fd, w->plan.file[f].size) != 0) cannot("write", path, errno);
        if (close(fd) != 0) cannot("write", path, errno);
        free(path);
    }
}

static int file_of_rank(struct writer *w, int f) {
    if (w->fd[f] >= 0) return w->fd[f];
    char *path = file_path(w, w->plan.file[f].name);
    w->fd[f] = open(path, O_WRONLY | O_CLOEXEC);
    if (w->fd[f] < 0) cannot("open", path, errno);
    free(path);
    return w->fd[f];
}

/* Marks bytes at..at+n of the block as supplied; each may be so once. */
static void supply(struct writer *w, struct block b, int64_t at, int64_t n) {
    if (at < 0 || n < 0 || at + n > b.end - b.begin) bug("numbers for a place outside their block");
    if (memchr(w->seen + at, 1, (size_t)n))
        bug("%s: bytes from %lld on are supplied twice", w->plan.file[b.file].name,
            (long long)(b.begin + at));
    memset(w->seen + at, 1, (size_t)n);
}

/* n bytes, from byte `first` on, of a new tensor that is copied. No number lies in two blocks: they
 * are cut, and tensors begin, at multiples of its size. */
static void tensor_copy(struct writer *w, const struct new_tensor *t, int64_t first, int64_t n,
                        void *to) {
    const struct stored_tensor *from = &t->from->tensor[t->from_tensor];
    const int64_t size = (int64_t)dtype_size(t->dtype), stored = (int64_t)dtype_size(from->dtype);
    const bool same = from->dtype == t->dtype;
    struct mistakes m = {0};
    void *as_stored = same ? to : die_alloc((unsigned long)(n / size * stored));
    if (checkpoint_copy(t->from, from, first / size * stored, n / size * stored, as_stored,
                        &w->cache, &m) != 0)
        die("%s. Nothing older was touched", m.text[0]);
    if (same) return;
    dtype_convert(to, t->dtype, as_stored, from->dtype, (size_t)(n / size));
    free(as_stored);
}

/* What the block's own rank knows: the header, and tensors that are copied from another checkpoint.
 */
static void block_begin(struct writer *w, struct block b) {
    const struct planned_file *file = &w->plan.file[b.file];
    memset(w->seen, 0, (size_t)(b.end - b.begin));
    if (b.begin < file->header_bytes) {
        int64_t n = file->header_bytes < b.end ? file->header_bytes - b.begin : b.end - b.begin;
        supply(w, b, 0, n);
        memcpy(w->bytes, file->header + b.begin, (size_t)n);
    }
    int lo = 0, hi = file->n; /* the first tensor that ends after the block's begin */
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (file->tensor[mid].begin + file->tensor[mid].bytes > b.begin) hi = mid;
        else lo = mid + 1;
    }
    for (int i = lo; i < file->n && file->tensor[i].begin < b.end; i++) {
        const struct stored_tensor *t = &file->tensor[i];
        const struct new_tensor *given = &w->tensors[file->given[i]];
        if (!given->from) continue;
        int64_t begin = t->begin > b.begin ? t->begin : b.begin;
        int64_t end = t->begin + t->bytes < b.end ? t->begin + t->bytes : b.end;
        if (begin >= end) continue;
        supply(w, b, begin - b.begin, end - begin);
        tensor_copy(w, given, begin - t->begin, end - begin, w->bytes + (begin - b.begin));
    }
}

/* What other ranks sent for the block in this window. */
static void block_add(struct writer *w, struct block b, const struct exchange *e) {
    const unsigned char *packet = e->their_data;
    int64_t n = exchange_asked(e);
    for (int64_t k = 0; k < n; k++) {
        const struct run *run = &e->their_runs[k];
        for (int64_t i = 0; i < run->rows; i++, packet += run->bytes) {
            int64_t at = run->at + i * run->step;
            supply(w, b, at, run->bytes);
            memcpy(w->bytes + at, packet, (size_t)run->bytes);
        }
    }
}

static void block_write(struct writer *w, struct block b, int64_t round) {
    const struct planned_file *file = &w->plan.file[b.file];
    int64_t n = b.end - b.begin;
    const unsigned char *hole = memchr(w->seen, 0, (size_t)n);
    if (hole) {
        int64_t at = b.begin + (hole - w->seen);
        const char *name = "?";
        for (int i = 0; i < file->n && file->tensor[i].begin <= at; i++)
            name = file->tensor[i].name;
        bug("%s: nobody supplies byte %lld, of tensor %s", file->name, (long long)at, name);
    }
    w->hash[round] = XXH3_64bits(w->bytes, (size_t)n);
    if (file_write_at(file_of_rank(w, b.file), w->bytes, n, b.begin) != 0) {
        int reason = errno;
        cannot("write", file_path(w, file->name), reason);
    }
}

static void blocks_write(struct writer *w, int n_boxes, const struct box *boxes) {
    struct place *place = die_alloc((unsigned long)n_boxes * sizeof *place);
    for (int i = 0; i < n_boxes; i++) {
        if (boxes[i].tensor < 0 || boxes[i].tensor >= w->n_tensors) bug("a box of no tensor");
        place[i] = place_of(&boxes[i], w->plan.place[boxes[i].tensor]);
    }
    struct exchange e;
    exchange_init(&e, w->g, &w->cut, n_boxes, place);
    while (exchange_round(&e)) {
        struct block b = e.block[w->g->rank];
        if (b.file >= 0) block_begin(w, b);
        while (exchange_window(&e)) {
            exchange_push(&e);
            block_add(w, b, &e);
        }
        if (b.file >= 0) block_write(w, b, e.round);
    }
    exchange_free(&e);
    for (int f = 0; f < w->plan.n_files; f++) {
        if (w->fd[f] < 0) continue;
        int failed = fsync(w->fd[f]) != 0;
        if (failed || close(w->fd[f]) != 0) {
            int reason = errno;
            cannot("write", file_path(w, w->plan.file[f].name), reason);
        }
    }
}

/* The hashes of all blocks in their order, on every rank. */
static uint64_t *hashes_gather(const struct writer *w) {
    int64_t n = w->cut.first[w->cut.n_files], size = w->g->size;
    int64_t *counts = die_alloc((unsigned long)size * sizeof *counts);
    for (int64_t r = 0; r < size; r++) counts[r] = n / size + (r < n % size);
    uint64_t *by_rank = die_alloc((unsigned long)n * sizeof *by_rank), *at = by_rank;
    uint64_t *hash = die_alloc((unsigned long)n * sizeof *hash);
    struct request request;
    comm_gather_start(w->g, w->hash, by_rank, counts, sizeof *hash, &request);
    comm_wait(&request);
    for (int64_t r = 0; r < size; r++)
        for (int64_t b = r; b < n; b += size) hash[b] = *at++;
    free(by_rank);
    free(counts);
    return hash;
}

static void text_write(const struct writer *w, const char *name, const char *text, int64_t bytes) {
    char *path = die_format("%s/%s", w->temporary, name);
    if (file_make(path, text, bytes) != 0) cannot("write", path, errno);
    free(path);
}

/* The checksums come last but one: from then on the folder is complete, and known as ours without
 * the marker. */
static void texts_write(const struct writer *w, int n, const struct new_file *files,
                        const uint64_t *hash) {
    for (int i = 0; i < n; i++) text_write(w, files[i].name, files[i].text, files[i].bytes);
    if (w->plan.n_files > 1) {
        char *index = plan_index(&w->plan);
        text_write(w, "model.safetensors.index.json", index, (int64_t)strlen(index));
        free(index);
    }
    char *sums = plan_checksums(&w->plan, checkpoint_block_bytes, hash);
    text_write(w, checksums, sums, (int64_t)strlen(sums));
    free(sums);
    char *mark = die_format("%s/%s", w->temporary, marker);
    if (unlink(mark) != 0) cannot("remove", mark, errno);
    free(mark);
    if (folder_sync(w->temporary) != 0) cannot("sync", w->temporary, errno);
}

static void folder_finish(const struct writer *w, int n, const struct new_file *files) {
    bool was_there;
    if (folder_replace(w->temporary, w->path, &was_there) != 0) cannot("rename to", w->path, errno);
    if (folder_sync_above(w->path) != 0) cannot("sync the folder of", w->path, errno);
    if (was_there) older_remove(w, n, files);
}

static void writer_check(const struct writer *w, int n, const struct new_file *files) {
    uint64_t print = plan_fingerprint(&w->plan);
    int64_t half = (int64_t)(print >> 1);
    if (comm_max(w->g, half) != half || comm_max(w->g, -half) != -half)
        bug("ranks do not agree on what to write to %s", w->path);
    if (checkpoint_block_bytes <= 0 || checkpoint_block_bytes % 64)
        bug("blocks must be multiples of 64");
    for (int i = 0; i < n; i++)
        if (strchr(files[i].name, '/') || is_replaced(files[i].name, 0, NULL))
            bug("%s cannot be a file beside the tensors", files[i].name);
}

/* The __metadata__ of all files; what the first says counts. NULL without. */
static json_t *metadata_of(const struct checkpoint *like) {
    json_t *all = like ? json_object() : NULL;
    for (int f = 0; like && f < like->n_files; f++)
        json_object_update_missing(all, like->file[f].metadata);
    return all;
}

static void writer_init(struct writer *w, const char *path, int64_t shard_bytes,
                        const struct checkpoint *like) {
    /* Through a link, so that what it points to is replaced and not the link. */
    w->path = realpath(path, NULL);
    if (!w->path) w->path = die_strdup(path);
    for (size_t k = strlen(w->path); k > 1 && w->path[k - 1] == '/';) w->path[--k] = 0;
    w->temporary = die_format("%s.tmp", w->path);
    w->single = ends_with(w->path, ".safetensors");
    json_t *metadata = metadata_of(like);
    plan_make(&w->plan, w->n_tensors, w->tensors, w->single ? 0 : shard_bytes, metadata);
    json_decref(metadata);
    cut_init(&w->cut, w->plan.n_files);
    w->fd = die_alloc((unsigned long)w->plan.n_files * sizeof *w->fd);
    for (int f = 0; f < w->plan.n_files; f++) {
        w->fd[f] = -1;
        w->cut.size[f] = w->plan.file[f].size;
        w->cut.block_bytes[f] = checkpoint_block_bytes;
    }
    cut_number(&w->cut);
    w->bytes = die_alloc((unsigned long)checkpoint_block_bytes);
    w->seen = die_alloc((unsigned long)checkpoint_block_bytes);
    w->hash =
        die_alloc((unsigned long)(w->cut.first[w->cut.n_files] / w->g->size + 1) * sizeof *w->hash);
}

void checkpoint_write(const char *path, struct group *g, int n_tensors,
                      const struct new_tensor *tensors, int n_boxes, const struct box *boxes,
                      int n_files, const struct new_file *files, int64_t shard_bytes,
                      const struct checkpoint *like) {
    struct writer w = {.g = g, .n_tensors = n_tensors, .tensors = tensors};
    writer_init(&w, path, shard_bytes, like);
    writer_check(&w, n_files, files);
    if (g->rank == 0) {
        target_check(&w, n_files, files);
        files_make(&w, n_files, files);
    }
    comm_barrier(g);
    blocks_write(&w, n_boxes, boxes);
    uint64_t *hash = hashes_gather(&w); /* also a barrier: all files are complete */
    if (g->rank == 0 && w.single) {
        if (rename(w.temporary, w.path) != 0) cannot("rename to", w.path, errno);
        if (folder_sync_above(w.path) != 0) cannot("sync the folder of", w.path, errno);
    } else if (g->rank == 0) {
        texts_write(&w, n_files, files, hash);
        folder_finish(&w, n_files, files);
    }
    comm_barrier(g);
    free(hash);
    plan_free(&w.plan);
    cut_free(&w.cut);
    free(w.path);
    free(w.temporary);
    free(w.fd);
    free(w.bytes);
    free(w.seen);
    free(w.hash);
    free(w.cache.bytes);
}
