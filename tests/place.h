/* place: a folder or a file of a test's own, for tests that write files.
 *
 * It lies in $TMPDIR, or /tmp, under a name nobody else has; the test removes it (folder_remove,
 * unlink) when it ends. */
#ifndef TESTS_PLACE_H
#define TESTS_PLACE_H

#include <stddef.h>

/* Makes the folder mestar-<test>-... and puts its path into path[size]. */
void place_make(char *path, size_t size, const char *test);

/* Makes a file mestar-<test>-... there with these bytes; the test unlinks it. */
void place_file(char *path, size_t size, const char *test, const void *bytes, size_t n);

/* Writes a file. */
void place_put(const char *path, const void *bytes, size_t n);
void place_put_text(const char *path, const char *text);

#endif
