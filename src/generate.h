/* generate: prompts are continued, a round at a time.
 *
 * A round takes the next `batch` prompts for every data rank, deals them out in order, and lasts
 * until all its answers have ended; then they are collected and written, so that generations.jsonl
 * grows in the order of the prompts. All ranks that compute a row, along context, tensor and
 * pipeline, see the same logits and draw the same tokens. After every token all ranks agree whether
 * to go on (src/stop.h); a run that is told to stop writes the answers that have ended, and only
 * those. The parts: where prompts come from (prompts), texts and ids (text), cached computing
 * (decoder), choosing a token (sample), an answer and its end (answer). */
#ifndef SRC_GENERATE_H
#define SRC_GENERATE_H

#include "src/answer.h"
#include "src/decoder.h"
#include "src/prompts.h"
#include "src/sample.h"
#include "src/text.h"

struct generation {
    struct engine *engine;
    struct text text;
    struct prompts prompts;
    struct ending ending;
};

/* Reads prompts and tokenizer, before any memory is taken. Collective over the group (NULL: this
 * process alone, and standard input is a mistake). -1 after telling m, the same on every rank;
 * generation_free either way. */
int generation_prepare(struct generation *g, struct engine *e, struct group *group,
                       struct mistakes *m);
void generation_free(struct generation *g);

/* On an engine that has been made: the memory of every round, without answers. For plans. */
void generation_plan(struct generation *g);

#endif
