#include "io/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "kernels/die.h"

json_t *json_read(const char *text, size_t n, char *why) {
    json_error_t error;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!value) {
        char buf[SHOWN_BYTES];
        bool nul = strstr(error.text, "JSON_ALLOW_NUL"); /* our reader's name for its switch */
        snprintf(why, WHY_BYTES, "is not JSON: %s (line %d, column %d)",
                 nul ? "\\u0000 is not read here" : shown(error.text, buf), error.line,
                 error.column);
    }
    return value;
}

char *json_write(const json_t *value, int sort) {
    char *text = json_dumps(value, JSON_INDENT(2) | (sort ? JSON_SORT_KEYS : 0));
    if (!text) die("cannot write JSON: out of memory");
    char *line = die_format("%s\n", text);
    free(text);
    return line;
}
