/* place: a folder of a test's own, for tests that write files.
 *
 * It lies in $TMPDIR, or /tmp, under a name nobody else has; the test removes it (folder_remove) when it
 * ends. */
#ifndef TESTS_PLACE_H
#define TESTS_PLACE_H

#include <stddef.h>

/* Makes the folder mestar-<test>-... and puts its path into path[size]. */
void place_make(char *path, size_t size, const char *test);

#endif
