/* stages: where a line of layers is cut into the stages of a pipeline.
 *
 * A cut is said by the first layer of each stage; a stage ends where the next begins, and may be
 * empty. The first stage has the embedding besides its layers and the last stage the head, so an
 * empty one of those still has work. Either the person draws the cut, as bars in the pattern
 * ("M-|M*|-E|"), or stages_balance finds it: the one whose slowest stage is fastest, since that
 * stage sets the pace of all. */
#ifndef PARALLEL_STAGES_H
#define PARALLEL_STAGES_H

#include <stdint.h>

/* Cuts n_items in a line into n_stages, so that the largest sum of work in a stage is as small
 * as can be; of such cuts the most even one (least sum of squares), and of those the one whose
 * last stages take most, for first stages hold most micro-batches. No stage is empty unless
 * there are more stages than items; then the first stage has the first item, the last stage the
 * last one, and empty ones stand before the last. first[n_stages] gets the first item of each
 * stage. Returns the largest sum. work is not negative and its total below 2^62. Exact, and the
 * same on every machine. */
int64_t stages_cut(int n_items, const int64_t *work, int n_stages, int *first);

/* The same for layers between an embedding and a head: first[n_stages] are layers; a stage with
 * nothing but the embedding or the head has none. */
int64_t stages_balance(int n_layers, const int64_t *work, int64_t embedding, int64_t head,
                       int n_stages, int *first);

/* Takes the bars out of a pattern: layers gets the rest (room for strlen(pattern) + 1), first[room]
 * the first layer of each stage as far as there is room. Returns the number of stages: bars + 1. */
int stages_of_pattern(const char *pattern, char *layers, int room, int *first);

#endif
