#include "tests/place.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/die.h"

void place_make(char *path, size_t size, const char *test) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(path, size, "%s/mestar-%s-XXXXXX", tmp ? tmp : "/tmp", test);
    if (n < 0 || (size_t)n >= size || !mkdtemp(path)) die("cannot make %s", path);
}
