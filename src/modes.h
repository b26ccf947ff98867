/* modes: what a run does once its deck is checked; one function a mode, each in a file of its own.
 *
 * All are collective over the world, get an engine that has been opened (engine_open) and a legal
 * mesh, and return the exit code that every rank leaves with (design: 0 finished, 2 the person's
 * input is wrong, 4 the verdict is no). Mistakes found on the way go to m, the same on every rank;
 * then nothing is written. */
#ifndef SRC_MODES_H
#define SRC_MODES_H

struct comm;
struct engine;
struct mesh_shape;
struct mistakes;

struct run {
    struct engine *engine;
    struct comm *comm;
    const struct mesh_shape *shape;
    int argc; /* the command line, for provenance */
    char **argv;
};

int mode_train(struct run *r, struct mistakes *m);    /* train.c */
int mode_evaluate(struct run *r, struct mistakes *m); /* evaluate.c */
int mode_generate(struct run *r, struct mistakes *m); /* generate.c */
int mode_compare(struct run *r, struct mistakes *m);  /* compare.c */
int mode_convert(struct run *r, struct mistakes *m);  /* convert.c */
int mode_bench(struct run *r, struct mistakes *m);    /* bench.c */

#endif
