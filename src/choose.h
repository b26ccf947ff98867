/* choose: which tensors are trained, decayed, and at which rate, by patterns of names.
 *
 * train.freeze lists patterns of tensors that keep their values. optimizer.groups lists lines
 * "PATTERN key=value ...": rate=0.1 multiplies the learning rate, decay=0|1 takes weight decay away
 * or gives it; of several lines that fit, the last that says something decides. Patterns are those
 * of the shell (* ? [abc]) on checkpoint names. What is stored as one block (q, k and v; the
 * experts of a layer) must be chosen as one. */
#ifndef SRC_CHOOSE_H
#define SRC_CHOOSE_H

struct deck;
struct mistakes;
struct params;

/* Sets trained, decay and rate of every block. -1 after telling m: a pattern that fits nothing, a
 * line that cannot be read, a block chosen in part. */
int choose_parameters(const struct deck *d, struct params *s, struct mistakes *m);

#endif
