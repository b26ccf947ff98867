/* yaml: the part of YAML that a deck is written in.
 *
 * A deck is sections of keys, and a key holds one value or a list of values:
 *     section:
 *       key: value
 *       key: [value, value]
 * libyaml does the parsing; what comes out is a flat list of entries with their lines, in the order
 * of the file.  All else that YAML can do (anchors, aliases, tags, several documents, maps in maps,
 * block text) is refused with the line and what to write instead; so are repeated keys, tabs and
 * text that is not UTF-8.  After a mistake reading goes on where that can be done, so that one look
 * shows all of them. */
#ifndef IO_YAML_H
#define IO_YAML_H

#include <stdbool.h>
#include <stddef.h>

struct mistakes;

struct yaml_entry {
    char *section; /* "" at top level */
    char *key;
    int line;     /* of the value */
    int key_line; /* of the key */
    bool list;
    bool begins_section; /* the section's own line: no value */
    int n;               /* values: 1 if not a list */
    char **value;
    bool *quoted; /* written in quotes, hence text */
};

struct yaml_deck {
    char *name; /* how mistakes call the file */
    int n;
    struct yaml_entry *entry;
};

/* Reads a file of at most 1 MiB. Returns 0, or -1 if anything was told to m; what could be read is
 * in y either way. */
int yaml_deck_read(struct yaml_deck *y, const char *path, struct mistakes *m);

/* The same from memory. `name` stands for the file in messages. */
int yaml_deck_read_text(struct yaml_deck *y, const char *name, const char *text, size_t bytes,
                        struct mistakes *m);

void yaml_deck_free(struct yaml_deck *y);

/* Writes text so that it reads back as the same text: plain where that is safe, else in quotes.
 * malloc'd. */
char *yaml_deck_quote(const char *text);

#endif
