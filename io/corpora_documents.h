/* corpora_documents: the documents in a file of text, one after the other.
 *
 * A plain file is one document. A file named *.jsonl has one in each line: the string "text" of an
 * object, whatever else the object holds. Such a file may be read in parts, so that several ranks
 * share it; a line belongs to the part in which it begins. Bytes stay as they are, UTF-8 or not;
 * the escapes of JSON are undone, and a surrogate without its other half becomes U+FFFD. For
 * corpora*.c alone. */
#ifndef IO_CORPORA_DOCUMENTS_H
#define IO_CORPORA_DOCUMENTS_H

#include <stdint.h>

struct text_file;

/* Gives `take` each document that begins in bytes first to last of the file (a plain file is taken
 * whole, first is 0). Returns how many lines hold no object with a "text"; blank ones are passed
 * over. Dies if the file is not as it was listed. */
int64_t documents_each(const struct text_file *f, int64_t first, int64_t last,
                       void (*take)(void *to, const char *text, int64_t n), void *to);

/* The string "text" of the object that line[*n] holds, its escapes undone in place, and its length
 * in *n; NULL if there is none. */
char *jsonl_text(char *line, int64_t *n);

#endif
