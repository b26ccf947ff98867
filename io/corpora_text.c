#include "io/corpora_text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"
#include "io/mistakes.h"
#include "kernels/die.h"
#include "parallel/comm.h"

enum { LOOKED_AT = 8192 }; /* bytes in which a NUL makes a file binary */

struct found {
    char *name;
    int64_t size;
};

struct listing {
    struct found *file;
    int64_t n, room;
    struct text_files *t; /* for its counts */
};

/* Takes over path. */
static void list_file(struct listing *l, char *path) {
    unsigned char look[LOOKED_AT];
    char why[WHY_BYTES];
    int64_t size = 0;
    int fd = file_open(path, &size, why);
    int64_t n = size < LOOKED_AT ? size : LOOKED_AT;
    int64_t *left_out = NULL;
    if (fd < 0 || file_read_at(fd, look, n, 0) != 0) left_out = &l->t->unreadable;
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
    l->file[l->n++] = (struct found){path, size};
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

/* What rank 0 tells the others: numbers, sizes, then all names. */
enum { N_FILES, NAME_BYTES, BINARY, UNREADABLE, EMPTY, TWICE, FOLDERS, N_MISTAKES, N_TOLD };

static void list_all(struct text_files *t, int n_paths, char **paths, int64_t *told,
                     int64_t **sizes, struct mistakes *m) {
    struct listing l = {.t = t};
    int64_t n = 0, used = 0;
    for (int i = 0; i < n_paths; i++) list_path(&l, paths[i], m);
    if (l.n) qsort(l.file, (size_t)l.n, sizeof *l.file, by_name);
    for (int64_t i = 0; i < l.n; i++) {
        if (i && strcmp(l.file[i].name, l.file[i - 1].name) == 0) {
            t->twice++;
            continue;
        }
        used += (int64_t)strlen(l.file[i].name) + 1;
        n++;
    }
    *sizes = die_alloc((unsigned long)n * sizeof **sizes);
    t->names = die_alloc((unsigned long)used);
    char *name = t->names;
    for (int64_t i = 0, k = 0; i < l.n; i++) {
        if (i && strcmp(l.file[i].name, l.file[i - 1].name) == 0) continue;
        (*sizes)[k++] = l.file[i].size;
        name = stpcpy(name, l.file[i].name) + 1;
    }
    for (int64_t i = 0; i < l.n; i++) free(l.file[i].name);
    free(l.file);
    const int64_t all[N_TOLD] = {n,        used,     t->binary,  t->unreadable,
                                 t->empty, t->twice, t->folders, m->n};
    memcpy(told, all, sizeof all);
}

static void mistakes_tell(struct group *g, int64_t n, struct mistakes *mine, struct mistakes *m) {
    for (int64_t i = 0; i < n; i++) {
        int64_t bytes = g->rank == 0 ? (int64_t)strlen(mine->text[i]) + 1 : 0;
        comm_broadcast(g, &bytes, sizeof bytes, 0);
        char *text = die_alloc((unsigned long)bytes);
        if (g->rank == 0) memcpy(text, mine->text[i], (size_t)bytes);
        comm_broadcast(g, text, (size_t)bytes, 0);
        mistake(m, NULL, 0, "%s", text);
        free(text);
    }
}

int text_files_list(struct text_files *t, int n_paths, char **paths, struct group *g,
                    struct mistakes *m) {
    *t = (struct text_files){0};
    int64_t told[N_TOLD] = {0}, *sizes = NULL;
    struct mistakes mine = {0};
    if (g->rank == 0) list_all(t, n_paths, paths, told, &sizes, &mine);
    comm_broadcast(g, told, sizeof told, 0);
    mistakes_tell(g, told[N_MISTAKES], &mine, m);
    mistakes_free(&mine);
    t->n = told[N_FILES];
    t->binary = told[BINARY];
    t->unreadable = told[UNREADABLE];
    t->empty = told[EMPTY];
    t->twice = told[TWICE];
    t->folders = told[FOLDERS];
    if (g->rank != 0) {
        sizes = die_alloc((unsigned long)t->n * sizeof *sizes);
        t->names = die_alloc((unsigned long)told[NAME_BYTES]);
    }
    comm_broadcast(g, sizes, (size_t)t->n * sizeof *sizes, 0);
    comm_broadcast(g, t->names, (size_t)told[NAME_BYTES], 0);
    t->name = die_alloc((unsigned long)t->n * sizeof *t->name);
    t->begin = die_alloc(((unsigned long)t->n + 1) * sizeof *t->begin);
    char *name = t->names;
    for (int64_t i = 0; i < t->n; i++, name += strlen(name) + 1) {
        t->name[i] = name;
        t->begin[i + 1] = t->begin[i] + sizes[i] + 1;
        t->bytes += sizes[i];
    }
    free(sizes);
    return told[N_MISTAKES] ? -1 : 0;
}

void text_files_free(struct text_files *t) {
    for (int i = 0; i < OPEN_FILES; i++)
        if (t->open[i].file) close(t->open[i].fd);
    free(t->names);
    free(t->name);
    free(t->begin);
}

static _Noreturn void changed(const struct text_files *t, int64_t file, const char *what) {
    die("%s %s since the run began, so samples would no longer be the same; restore it or start a "
        "new run",
        t->name[file], what);
}

/* An open file, from the few that are kept, else in place of the one unused for longest. */
static int file_kept(struct text_files *t, int64_t file) {
    int oldest = 0;
    for (int i = 0; i < OPEN_FILES; i++) {
        if (t->open[i].file == file + 1) {
            t->open[i].used = ++t->clock;
            return t->open[i].fd;
        }
        if (t->open[i].used < t->open[oldest].used) oldest = i;
    }
    if (t->open[oldest].file) close(t->open[oldest].fd);
    t->open[oldest].file = 0;
    int64_t size;
    char why[WHY_BYTES];
    int fd = file_open(t->name[file], &size, why);
    if (fd < 0)
        die("%s %s, though it was listed; every rank must be able to read it", t->name[file], why);
    t->open[oldest].file = file + 1;
    t->open[oldest].fd = fd;
    t->open[oldest].used = ++t->clock;
    return fd;
}

void text_files_tokens(struct text_files *t, int64_t first, int64_t n, int32_t *to) {
    int64_t lo = 0, hi = t->n; /* begin[lo] <= first < begin[hi] */
    while (hi - lo > 1) {
        int64_t mid = lo + (hi - lo) / 2;
        if (t->begin[mid] <= first) lo = mid;
        else hi = mid;
    }
    for (int64_t file = lo; n > 0; file++) {
        int64_t size = t->begin[file + 1] - t->begin[file] - 1, at = first - t->begin[file];
        int64_t take = size - at < n ? size - at : n;
        struct stat s;
        int fd = file_kept(t, file);
        if (fstat(fd, &s) != 0 || s.st_size != size) changed(t, file, "changed its size");
        unsigned char buffer[16384];
        for (int64_t done = 0; done < take;) {
            int64_t k = take - done < (int64_t)sizeof buffer ? take - done : (int64_t)sizeof buffer;
            if (file_read_at(fd, buffer, k, at + done) != 0) changed(t, file, "became unreadable");
            for (int64_t i = 0; i < k; i++) to[done + i] = buffer[i];
            done += k;
        }
        if (take < n) to[take++] = END_OF_TEXT;
        to += take;
        n -= take;
        first += take;
    }
}
