/* config: the model as settled.
 *
 * A model is described three ways: a preset (inputs/models, built into the program), a folder with
 * a config.json in any of the spellings that exist, or keys of the deck; and keys that the person
 * gives override.  config_settle brings them together once, checks them against each other more
 * strictly than transformers does, and the rest of the program reads the result: one letter a
 * layer, and every number resolved.  Going back, config_json gives the config.json of a folder we
 * write: what was read, unknown keys included, with what the deck changed; or a new one that
 * transformers loads. */
#ifndef SRC_CONFIG_H
#define SRC_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "src/deck.h"
#include "src/vocabulary.h"

struct mistakes;

struct config {
    struct deck_model keys; /* every key resolved; its texts are borrowed from the deck */
    char *kinds;            /* n_layers letters: 'M' Mamba, '*' attention, '-' MLP, 'E' experts */
    int n_layers;
    char *mtp_kinds;       /* the same for multi-token prediction, depth after depth; "" without */
    int n_mtp;             /* depths * letters of one depth = number of mtp.layers.* */
    double dt_min, dt_max; /* clamp of the time step while running: 0 and infinity unless limited */
    char *folder;          /* the Hugging Face folder the model comes from (in a run's folder, its
                              newest checkpoint); NULL without */
    json_t *kept;          /* its config.json as read; NULL without */
    const char *dtype;     /* what config_json writes as dtype, "float32"; NULL: leave as it was */
    struct vocabulary vocabulary; /* the tokenizer that keys.tokenizer names */
    int n_unused;
    char **unused; /* keys of that config.json that nothing here reads; kept and written back */
};

/* Settles the model of the deck into c.  Values that come from a preset or config.json are noted
 * in the deck with their origin, so that used.yaml shows them.  Returns 0, or -1 after telling m
 * what is wrong; c may be freed either way.  The deck must outlive c.  Reads files, computes
 * nothing; every rank calls it on its own. */
int config_settle(struct config *c, struct deck *d, struct mistakes *m);

/* How many layers of a kind there are, MTP not counted. */
int config_count(const struct config *c, char kind);

/* The config.json to write, a new reference; and the same as text (malloc'd, ends with a newline).
 * */
json_t *config_json(const struct config *c);
char *config_text(const struct config *c);

void config_free(struct config *c);

#endif
