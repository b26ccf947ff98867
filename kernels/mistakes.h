/* mistakes: what is wrong with what the person gave us, collected and reported together.
 *
 * Decks, checkpoints, data and meshes are checked as far as they can be before anything is said, so
 * that one look at the terminal shows everything there is to mend.  Each mistake is one line:
 * where (file and line, or file and tensor), which key, what is wrong, and what would be right. */
#ifndef KERNELS_MISTAKES_H
#define KERNELS_MISTAKES_H

#include <stdio.h>

struct mistakes {
    int n;
    char **text;    /* owned; complete lines without the newline */
    unsigned *hash; /* of each: there may be as many as a model has tensors */
};

/* Adds "where:line: <text>", "where: <text>" if line is 0, or "<text>" if where is NULL. The same
 * line is not added twice. */
void mistake(struct mistakes *m, const char *where, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Prints all of them (at most 50, then how many more), one a line. */
void mistakes_print(const struct mistakes *m, FILE *to);

/* Frees the texts; m is empty afterwards. */
void mistakes_free(struct mistakes *m);

/* Of n words the one closest to `word` by edit distance, or NULL if none is close: did-you-mean. */
const char *mistakes_nearest(const char *word, int n, const char *const *words);

#endif
