/* resume: a checkpoint that a run can go on from, on any mesh.
 *
 * Beside the model (src/weights.h) a checkpoint of a run has a folder resume/: the fp32 master of every tensor that is stored
 * narrower, both moments of every trained tensor, as global tensors under the tensors' names, the deck as it was used, and
 * state.json {step}. Everything else of a run is a pure function of deck and step. A checkpoint is
 * written under another name and renamed when all of it is on disk: it is complete or absent.
 *
 * The same command starts a run or continues it: resume_find looks into the output folder. */
#ifndef SRC_RESUME_H
#define SRC_RESUME_H

#include <stdbool.h>
#include <stdint.h>

struct comm;
struct deck;
struct engine;
struct mistakes;
struct output;

struct resume {
    bool found;
    int64_t step;               /* done when it was saved */
    uint64_t data;              /* corpus.identity then; 0 if it was not kept */
    char *folder;               /* of the checkpoint; malloc'd */
};

/* What there is to go on from, by checkpoint.resume: the checkpoint that checkpoints/latest names. Tells m if there must be one and is not, if
 * it is damaged, and of every fixed key whose value differs from the deck it was made with. Each rank on its own, same result. */
int resume_find(struct resume *r, const struct deck *d, struct mistakes *m);

/* Masters and moments into an engine that has read the weights of r->folder. Collective over the world. */
int resume_read(const struct resume *r, struct engine *e, struct mistakes *m);

/* Writes <output>/checkpoints/step-NNNNNNNN, then `latest`, and removes the oldest beyond checkpoint.keep. Collective over the world.
 * Returns the seconds it took. */
double resume_save(struct engine *e, const struct output *o, int64_t step, uint64_t data);

/* Removes what a killed run left half written. Rank 0, while it holds the folder's lock. */
void resume_sweep(const char *output);

#endif
