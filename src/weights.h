/* weights: between the tables of parameters and the folders they come from and go to.
 *
 * Names are told apart here: prefixes of the hub and of transformers, experts one by one or stacked
 * in one tensor, the singular `embedding` that some releases wrote. What a folder has and the model
 * does not use is counted, kept and written back as it is. */
#ifndef SRC_WEIGHTS_H
#define SRC_WEIGHTS_H

#include "src/params.h"

struct group;
struct mistakes;

struct weights {
    struct checkpoint checkpoint;
    struct source {    /* of each tensor of the table: where it is in the files */
        int tensor;    /* -1: nowhere */
        int64_t first; /* element at which it begins (experts in a stack) */
    } * source;        /* by number in params->tensor */
    int n_unused;
    int *unused; /* stored tensors that no row uses */
    int kept_as; /* the format that those of real numbers are written in; -1: that of the file */
};

/* Opens the model's folder. -1 after telling m. */
int weights_open(struct weights *w, const char *folder, struct mistakes *m);
void weights_close(struct weights *w);

/* Lets the tensors that are there decide about biases and about a head of its own. Before the model
 * is built. */
void weights_settle(const struct weights *w, struct config *c);

/* Finds every tensor of the table: tells m what is missing, of another shape, or in no format for
 * weights; notes stored formats in the table. */
int weights_match(struct weights *w, struct params *s, struct mistakes *m);

/* Fills this rank's blocks (masters, where there are any). Collective over g. */
int weights_read(const struct weights *w, const struct params *s, struct device *d, enum dtype real,
                 struct group *g, struct mistakes *m);

/* Writes a folder with all tensors, config.json, the tokenizer's files and what else the source had
 * (w may be NULL: a new model). Formats are the table's. transformers_names: as transformers holds
 * them in memory, experts stacked. Collective over g. */
void weights_write(const char *folder, const struct weights *w, const struct params *s,
                   struct device *d, enum dtype real, bool transformers_names, struct group *g);

/* The stored tensor `prefix` + name of t in whichever spelling ("" or "grad."); an expert may be a
 * slice of a stack, which begins at element *first. NULL if absent. */
const struct stored_tensor *weights_find(const struct checkpoint *c, const char *prefix,
                                         const struct param_tensor *t, int64_t *first);

#endif
