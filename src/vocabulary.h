/* vocabulary: which tokenizer belongs to a model.
 *
 * model.tokenizer says: bytes, or a folder (or file) with a tokenizer.json. Where it says nothing
 * it is the model's own: what lies in the model's folder, or the bytes that its config.json names
 * (mestar_tokenizer). A model that is saved takes its tokenizer along, so that its folder alone is
 * enough later. The tokenizer is opened where the run reads or writes text, and wherever the person
 * named one. Owned by struct config. */
#ifndef SRC_VOCABULARY_H
#define SRC_VOCABULARY_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct deck;
struct mistakes;
struct tokenizer;

struct vocabulary {
    char *name;                  /* "bytes", a folder or a file; NULL: none */
    bool own;                    /* it is that of the model's folder */
    struct tokenizer *tokenizer; /* NULL: none, or this run does without */
    int32_t begin, end;          /* ids that begin and end a document; -1: none */
};

/* Whether the deck asks for tokens alone, so that it needs no model: convert.what tokens. */
bool vocabulary_only(const struct deck *d);

/* Finds and opens the tokenizer of the settled model: sets c->vocabulary and c->keys.tokenizer.
 * Tells m where text is to be read without one, without an end of documents, or by a model that has
 * too few words. Every rank on its own. */
void vocabulary_settle(struct config *c, const struct deck *d, struct mistakes *m);
void vocabulary_free(struct vocabulary *v);

/* Where a file that lies beside saved weights is copied from (malloc'd): the tokenizer's, or that
 * of the folder the weights came from (NULL: none). NULL: it is left out. */
char *vocabulary_file(const struct vocabulary *v, const char *name, const char *weights_folder);

#endif
