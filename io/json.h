/* json: reading JSON that others wrote, on jansson, with reasons that a person can act on.
 *
 * A repeated key is a mistake, numbers keep their type, and text that is cut off or not UTF-8 is
 * refused with the line and column where it went wrong. */
#ifndef IO_JSON_H
#define IO_JSON_H

#include <jansson.h>
#include <stddef.h>

/* The value that text[n] says, or NULL with a reason in why[WHY_BYTES of io/files.h]. json_decref
 * it. */
json_t *json_read(const char *text, size_t n, char *why);

/* The text of a value, keys sorted if asked, two spaces a level, newline at the end; malloc'd. */
char *json_write(const json_t *value, int sort);

#endif
