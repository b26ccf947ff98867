#include "io/corpora_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "io/files.h"
#include "kernels/mistakes.h"
#include "kernels/die.h"
#include "parallel/comm.h"

struct found {
    char *name;
    int64_t size, modified_ns;
    uint64_t hash;
};

struct listing {
    struct found *file;
    int64_t n, room;
    struct text_files *t; /* for its counts */
};

uint64_t document_hash(const char *text, int64_t n) {
    return XXH3_64bits_withSeed(text, (size_t)(n < DOCUMENT_HEAD ? n : DOCUMENT_HEAD), (uint64_t)n);
}

uint64_t split_threshold(double split) {
    return (uint64_t)(split * 0x1p64);
}

uint64_t split_settle(uint64_t threshold, uint64_t least, uint64_t greatest) {
    if (least >= greatest) return 0;
    if (threshold <= least) return least + 1;
    return threshold > greatest ? greatest : threshold;
}

/* Takes over path. */
static void list_file(struct listing *l, char *path) {
    char look[DOCUMENT_HEAD], why[WHY_BYTES];
    struct stat s = {0};
    int64_t size = 0;
    int fd = file_open(path, &size, why);
    int64_t n = size < DOCUMENT_HEAD ? size : DOCUMENT_HEAD;
    int64_t *left_out = NULL;
    if (fd < 0 || fstat(fd, &s) != 0 || file_read_at(fd, look, n, 0) != 0)
        left_out = &l->t->unreadable;
    else if (size == 0) left_out = &l->t->empty;
    else if (memchr(look, 0, (size_t)n)) left_out = &l->t->binary;
    if (fd >= 0) close(fd);
    if (left_out) {
        ++*left_out;
        free(path);
        return;
    }
    if (l->n == l->room) {
        l->room = 2 * l->room + 64;
        l->file = die_realloc(l->file, (unsigned long)l->room * sizeof *l->file);
    }
    int64_t modified = (int64_t)s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec;
    l->file[l->n++] = (struct found){path, size, modified, document_hash(look, size)};
}

/* All regular files below, links to files too. Links to folders could lead in circles, and hidden
 * folders hold what a program left, not what a person wrote: both are left out. */
static void list_folder(struct listing *l, const char *path) {
    DIR *d = opendir(path);
    if (!d) {
        l->t->unreadable++;
        return;
    }
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        size_t n = strlen(path);
        char *below = die_format("%s%s%s", path, n && path[n - 1] == '/' ? "" : "/", e->d_name);
        struct stat s, link;
        bool known = lstat(below, &link) == 0 && stat(below, &s) == 0;
        if (known && S_ISDIR(s.st_mode)) {
            if (S_ISLNK(link.st_mode) || e->d_name[0] == '.') l->t->folders++;
            else list_folder(l, below);
            free(below);
        } else {
            list_file(l, below);
        }
    }
    closedir(d);
}

static void list_path(struct listing *l, const char *path, struct mistakes *m) {
    struct stat s;
    if (stat(path, &s) == 0) {
        if (S_ISDIR(s.st_mode)) list_folder(l, path);
        else list_file(l, die_strdup(path));
        return;
    }
    int reason = errno;
    if (!strpbrk(path, "*?[")) {
        mistake(m, path, 0, "%s", strerror(reason));
        return;
    }
    glob_t g;
    int failed = glob(path, GLOB_NOSORT, NULL, &g);
    if (failed == GLOB_NOMATCH) mistake(m, path, 0, "no file has a name like this");
    else if (failed) mistake(m, path, 0, "its folders cannot be listed");
    for (size_t i = 0; !failed && i < g.gl_pathc; i++) {
        if (stat(g.gl_pathv[i], &s) == 0 && S_ISDIR(s.st_mode)) list_folder(l, g.gl_pathv[i]);
        else list_file(l, die_strdup(g.gl_pathv[i]));
    }
    if (!failed) globfree(&g);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct found *)a)->name, ((const struct found *)b)->name);
}

/* What rank 0 tells the others: these numbers, the files, then all names. */
enum { N_FILES, NAME_BYTES, BINARY, UNREADABLE, EMPTY, TWICE, FOLDERS, N_MISTAKES, N_TOLD };

static void list_all(struct text_files *t, int n_paths, char **paths, int64_t *told,
                     struct mistakes *m) {
    struct listing l = {.t = t};
    int64_t n = 0, used = 0;
    for (int i = 0; i < n_paths; i++) list_path(&l, paths[i], m);
    if (l.n) qsort(l.file, (size_t)l.n, sizeof *l.file, by_name);
    for (int64_t i = 0; i < l.n; i++) {
        if (n && strcmp(l.file[i].name, l.file[n - 1].name) == 0) {
            t->twice++;
            free(l.file[i].name);
            continue;
        }
        used += (int64_t)strlen(l.file[i].name) + 1;
        l.file[n++] = l.file[i];
    }
    t->file = die_alloc((unsigned long)n * sizeof *t->file);
    t->names = die_alloc((unsigned long)used);
    char *name = t->names;
    for (int64_t i = 0; i < n; i++) {
        const struct found *f = &l.file[i];
        t->file[i] = (struct text_file){NULL, f->size, f->modified_ns, f->hash, false};
        name = stpcpy(name, f->name) + 1;
        free(f->name);
    }
    free(l.file);
    const int64_t all[N_TOLD] = {n,        used,     t->binary,  t->unreadable,
                                 t->empty, t->twice, t->folders, m->n};
    memcpy(told, all, sizeof all);
}

void mistakes_share(struct group *g, struct mistakes *of_rank_0, struct mistakes *m) {
    int64_t n = of_rank_0->n;
    comm_broadcast(g, &n, sizeof n, 0);
    for (int64_t i = 0; i < n; i++) {
        int64_t bytes = g->rank == 0 ? (int64_t)strlen(of_rank_0->text[i]) + 1 : 0;
        comm_broadcast(g, &bytes, sizeof bytes, 0);
        char *text = die_alloc((unsigned long)bytes);
        if (g->rank == 0) memcpy(text, of_rank_0->text[i], (size_t)bytes);
        comm_broadcast(g, text, (size_t)bytes, 0);
        mistake(m, NULL, 0, "%s", text);
        free(text);
    }
}

static bool has_lines(const char *name) {
    size_t n = strlen(name);
    return n > 6 && strcmp(name + n - 6, ".jsonl") == 0;
}

int text_files_list(struct text_files *t, int n_paths, char **paths, struct group *g,
                    struct mistakes *m) {
    *t = (struct text_files){0};
    int64_t told[N_TOLD] = {0};
    struct mistakes mine = {0};
    if (g->rank == 0) list_all(t, n_paths, paths, told, &mine);
    comm_broadcast(g, told, sizeof told, 0);
    mistakes_share(g, &mine, m);
    mistakes_free(&mine);
    t->n = told[N_FILES];
    t->binary = told[BINARY];
    t->unreadable = told[UNREADABLE];
    t->empty = told[EMPTY];
    t->twice = told[TWICE];
    t->folders = told[FOLDERS];
    if (g->rank != 0) {
        t->file = die_alloc((unsigned long)t->n * sizeof *t->file);
        t->names = die_alloc((unsigned long)told[NAME_BYTES]);
    }
    comm_broadcast(g, t->file, (size_t)t->n * sizeof *t->file, 0);
    comm_broadcast(g, t->names, (size_t)told[NAME_BYTES], 0);
    char *name = t->names;
    for (int64_t i = 0; i < t->n; i++, name += strlen(name) + 1) {
        t->file[i].name = name;
        t->file[i].lines = has_lines(name);
        t->lines |= t->file[i].lines;
        t->bytes += t->file[i].size;
    }
    return told[N_MISTAKES] ? -1 : 0;
}

void text_files_free(struct text_files *t) {
    free(t->names);
    free(t->file);
    *t = (struct text_files){0};
}

_Noreturn void text_file_changed(const char *name, const char *what) {
    die("%s %s since it was listed, so samples would no longer be the same; restore it or start a "
        "new run",
        name, what);
}
