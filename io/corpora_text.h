/* corpora_text: which text files there are, and their bytes.
 *
 * One rank lists, all are told, so that no two ranks see different folders. The files stay on disk:
 * known are only their names, sizes and where each begins in the stream of documents, and a few are
 * kept open. A file whose size is no longer what it was ends the run: sample numbers would mean
 * other text. For corpora.c alone. */
#ifndef IO_CORPORA_TEXT_H
#define IO_CORPORA_TEXT_H

#include <stdint.h>

struct group;
struct mistakes;

enum { END_OF_TEXT = 256, OPEN_FILES = 16 };

struct text_files {
    int64_t n;
    char *names;    /* all, one after the other, each closed by a NUL */
    char **name;    /* into names */
    int64_t *begin; /* [n + 1]: token numbers; a file takes its bytes and one token more */
    int64_t bytes;
    int64_t binary, unreadable, empty, twice,
        folders; /* left out; folders: links to folders, hidden ones */
    struct {
        int64_t file; /* number + 1; 0: none */
        int64_t used; /* when last */
        int fd;
    } open[OPEN_FILES];
    int64_t clock;
};

/* Lists what lies at the paths: files, folders with all below, patterns. Collective over g. Returns
 * -1 on all ranks after telling m: a path that is not there. */
int text_files_list(struct text_files *t, int n_paths, char **paths, struct group *g,
                    struct mistakes *m);
void text_files_free(struct text_files *t);

/* Tokens first to first + n of the stream. */
void text_files_tokens(struct text_files *t, int64_t first, int64_t n, int32_t *to);

#endif
