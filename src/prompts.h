/* prompts: what is to be continued, from wherever the deck has it.
 *
 *   generate.prompt       a text          generate.prompts    a file: .txt, a prompt a line; .jsonl, {"prompt": "..."} or
 *   generate.prompt_ids   a list of ids                       {"ids": [...]} a line; - is standard input, a prompt a line
 *
 * One rank reads and tells the others. Ids are checked against the vocabulary here. */
#ifndef SRC_PROMPTS_H
#define SRC_PROMPTS_H

#include <stddef.h>
#include <stdint.h>

struct deck;
struct group;
struct mistakes;
struct text;

struct prompt {
    char *text;                 /* UTF-8 or not; NULL: given as ids */
    size_t bytes;
    int32_t *ids;
    int64_t n;                  /* at least 1 */
};

struct prompts {
    int64_t n, longest;         /* longest: tokens of the longest one */
    struct prompt *prompt;
};

/* Reads and encodes them. Collective over g (NULL: this process alone); mistakes are the same on every rank, and then it
 * returns -1. */
int prompts_read(struct prompts *p, const struct deck *d, const struct text *x, struct group *g, struct mistakes *m);
void prompts_free(struct prompts *p);

#endif
