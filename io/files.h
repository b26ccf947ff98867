/* files: reading and writing files and folders so that nothing is half done unnoticed.
 *
 * Loops over interrupted and short transfers, refuses what is not a regular file before it can
 * block, knows how to make a folder appear under its name in one step, and to clear away what it
 * replaced without losing what is not ours.  Functions that can fail return -1 and leave the reason
 * in errno or in `why`. */
#ifndef IO_FILES_H
#define IO_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WHY_BYTES = 256, SHOWN_BYTES = 160 };

/* Opens a regular file (links are followed) for reading and tells its size. Returns -1 with a
 * reason for people in why[WHY_BYTES]: absent, a folder, a pipe, not permitted. */
int file_open(const char *path, int64_t *size, char *why);

/* All n bytes at place `at`. -1: errno says why; ENODATA if the file ends before. */
int file_read_at(int fd, void *to, int64_t n, int64_t at);
int file_write_at(int fd, const void *from, int64_t n, int64_t at);

/* The text of a regular file of at most `limit` bytes, with a NUL after it; malloc'd. NULL with
 * why[WHY_BYTES]. */
char *file_text(const char *path, int64_t limit, int64_t *bytes, char *why);

/* A new file with this text, synced; -1 with errno. */
int file_make(const char *path, const void *text, int64_t bytes);

/* The same in place of what is at path, in one step: made under the name `part`, then renamed. -1
 * with errno: path is as it was, and nothing is left at part. */
int file_replace(const char *path, const char *part, const void *text, int64_t bytes);

/* Links are followed. Two spellings of one thing that is there are the same place. */
bool file_exists(const char *path);
bool file_is_folder(const char *path);
bool file_same(const char *a, const char *b);

/* Why nothing can be made at this path, malloc'd: a name in it is too long, or something above the
 * last part is no folder. NULL if nothing is known against it. */
char *path_problem(const char *path);

/* Makes the folders above the last part of path, as mkdir -p. -1 with errno. */
int folder_make_above(const char *path);

/* Syncs a folder's list of names to disk. File systems that cannot are forgiven. */
int folder_sync(const char *path);
int folder_sync_above(const char *path);

/* Removes a folder or file and all below it, following no links. Best effort; -1 if something is
 * left. */
int folder_remove(const char *path);

/* Lets `fresh` take the place of `path` in one step (where the file system can; else by renaming).
 * What was at `path` then lies at `fresh`. -1 with errno: `path` is as it was. */
int folder_replace(const char *fresh, const char *path, bool *was_there);

/* path.old, or if that is taken path.old-2 and so on; malloc'd. */
char *name_aside(const char *path);

/* A name from a file made fit for a terminal: no control characters, cut if long. Returns
 * buf[SHOWN_BYTES]. */
const char *shown(const char *name, char *buf);

#endif
