#include "tests/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/die.h"

static void place_name(char *path, size_t size, const char *test) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(path, size, "%s/mestar-%s-XXXXXX", tmp ? tmp : "/tmp", test);
    if (n < 0 || (size_t)n >= size) die("a path of more than %zu bytes: %s", size, path);
}

void place_make(char *path, size_t size, const char *test) {
    place_name(path, size, test);
    if (!mkdtemp(path)) die("cannot make %s", path);
}

void place_file(char *path, size_t size, const char *test, const void *bytes, size_t n) {
    place_name(path, size, test);
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, bytes, n) != (ssize_t)n || close(fd)) die("cannot write %s", path);
}

void place_put(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot write %s", path);
    fwrite(bytes, 1, n, f);
    if (fclose(f) != 0) die("cannot write %s", path);
}

void place_put_text(const char *path, const char *text) {
    place_put(path, text, strlen(text));
}
