/* corpora_files: which files of text there are.
 *
 * One rank lists, all are told, so that no two ranks see different folders. The files stay on disk:
 * known are their names, sizes, times and a hash of each one's beginning. A file is one document,
 * or has one in each line (io/corpora_documents.h). For corpora*.c alone. */
#ifndef IO_CORPORA_FILES_H
#define IO_CORPORA_FILES_H

#include <stdbool.h>
#include <stdint.h>

struct group;
struct mistakes;

enum { DOCUMENT_HEAD = 8192 }; /* bytes of a document that its hash sees; a NUL there: binary */

struct text_file {
    const char *name;
    int64_t size, modified_ns;
    uint64_t hash; /* as of a document */
    bool lines;    /* *.jsonl */
};

struct text_files {
    int64_t n;
    struct text_file *file;                            /* sorted by name */
    char *names;                                       /* their memory */
    int64_t bytes;                                     /* of all files */
    bool lines;                                        /* some have */
    int64_t binary, unreadable, empty, twice, folders; /* left out; folders: links to, and hidden */
};

/* Lists what lies at the paths: files, folders with all below, patterns. Collective over g. Returns
 * -1 on all ranks after telling m: a path that is not there. */
int text_files_list(struct text_files *t, int n_paths, char **paths, struct group *g,
                    struct mistakes *m);
void text_files_free(struct text_files *t);

/* Of a document of n bytes that begins with these (its first DOCUMENT_HEAD at least, or all): by
 * its size and beginning alone, so that no file that comes or goes moves another across the split.
 */
uint64_t document_hash(const char *text, int64_t n);

/* Documents with a hash below this are held out, a share `split` of them. */
uint64_t split_threshold(double split);

/* The nearest threshold that leaves some on both sides; none is held out if the least and the
 * greatest hash of all documents are the same. */
uint64_t split_settle(uint64_t threshold, uint64_t least, uint64_t greatest);

/* Ends the run: the file is not what was listed, so samples would be others. */
_Noreturn void text_file_changed(const char *name, const char *what);

/* Tells m, on every rank of g, what rank 0 found. Collective over g. */
void mistakes_share(struct group *g, struct mistakes *of_rank_0, struct mistakes *m);

#endif
