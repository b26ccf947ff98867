/* config_json: config.json in the spellings that exist, and back.
 *
 * Reading fills the model section of the deck, row by row, wherever the person gave nothing, so
 * that a key of a config.json is checked by the same row as a key of a deck.  Types are strict
 * (64.0 is not a whole number).  Older names of keys, bare Infinity, {"__float__": "Infinity"} and
 * null are understood; kinds of models that are not built are refused in words. */
#ifndef SRC_CONFIG_JSON_H
#define SRC_CONFIG_JSON_H

#include <jansson.h>
#include <stdbool.h>

struct config;
struct deck;
struct mistakes;

struct config_file {
    char *path, *text; /* of config.json; NULL if there is none */
    json_t *root;
    char *kinds, *mtp_kinds; /* as it says; NULL if it does not */
    int n_null;              /* keys that are null there although their row has no such value; */
    const char **null;       /* that is right only for kinds of layers the model has not */
    bool kv_follows_heads;   /* num_key_value_heads is null */
};

/* Finds and reads the config.json of d->model.from: sets c->folder, c->kept, c->unused and the
 * deck's model keys. Returns -1 after telling m if it cannot be used. */
int config_file_read(struct config_file *f, struct config *c, struct deck *d, struct mistakes *m);

/* Whether it gives a key (under any of its names), and a mistake about it at its line. */
bool config_file_has(const struct config_file *f, const char *key);
void config_file_mistake(const struct config_file *f, struct mistakes *m, const char *key,
                         const char *what);

void config_file_free(struct config_file *f);

/* Parses JSON in which Infinity, -Infinity and NaN stand bare, as Python writes them. They become
 * {"__float__": "Infinity"} and so on. Returns NULL after filling error. */
json_t *config_json_parse(const char *text, size_t bytes, json_error_t *error);

/* What reading and writing share. The name under which root holds a key, its own or an older one,
 * or NULL; the row of deck_table that a key of config.json belongs to, or -1; a number or
 * infinity; the letters that a list or a pattern says (NULL if neither is there), returning what
 * is wrong. */
const char *config_json_name(const json_t *root, const char *key);
int config_json_row(const char *name);
bool config_json_number(const json_t *v, double *x);
char *config_json_kinds(const struct config_file *f, const char *list_key, const char *text_key,
                        char **kinds);

#endif
