/* deck_rules: what keys demand of each other.
 *
 * A row of deck.def knows its own range; a rule knows two keys or more.  Each rule is one row: the
 * key that is blamed, the condition that is wrong, and a message that names the nearest legal
 * values. deck_check (src/deck.h) holds those between keys; deck_mesh those between keys, model
 * and ranks. */
#ifndef SRC_DECK_RULES_H
#define SRC_DECK_RULES_H

#include <stdint.h>

struct deck;
struct mesh_shape;
struct mistakes;

/* The mesh of the deck for the ranks that were started; 0 (check, plan): run.ranks, else the
 * product of the axes with data at least 1.  Tells m what does not divide; *out is usable only if
 * it told nothing. Called after config_settle: heads and groups are checked if the settled pattern
 * has such layers. */
void deck_mesh(const struct deck *d, int ranks_started, struct mesh_shape *out, struct mistakes *m);

/* Micro-batches of a rank in a step. */
int64_t deck_micro_batches(const struct deck *d, const struct mesh_shape *s);

#endif
