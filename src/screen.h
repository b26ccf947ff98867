/* screen: what a training run says before its first step.
 *
 * One screen, in the order in which it becomes known, so that the first line is there at once and
 * nothing slow comes before what it would explain: what runs where; which keys differ from their
 * defaults; the model; the layout with the memory each rank is going to need, and what the fullest
 * host has; then, when weights and data are there, the batch, the rate, what decays, and notes that
 * name the key to turn. At most 100 columns. */
#ifndef SRC_SCREEN_H
#define SRC_SCREEN_H

#include <stdint.h>

struct output;
struct run;
struct machine;
struct feed;

/* The very first line. */
void screen_title(const struct output *o, const struct run *r);

/* Provenance, keys, model, layout (screen_model.c). */
void screen_run(const struct output *o, const struct run *r, const struct machine *h);
void screen_keys(const struct output *o, const struct run *r);
void screen_model(const struct output *o, const struct run *r);
void screen_layout(const struct output *o, const struct run *r, const struct machine *h);

/* The work: batch, data, rate, decay. steps: of the whole run. */
void screen_work(const struct output *o, const struct run *r, const struct feed *f, int64_t steps);

/* At most one line each, only where there is something to say. */
void screen_notes(const struct output *o, const struct run *r, const struct machine *h,
                  const struct feed *f, int64_t steps);

/* The texts of "source", "build", ... for the report: fills label and text (static and malloc'd) of
 * at most `room` facts; returns how many. */
struct fact {
    const char *label;
    char *text;
};
int screen_facts(const struct run *r, const struct machine *h, struct fact *f, int room);

/* Says a paragraph: the label in the first column, the words wrapped behind it. */
void say_wrapped(const struct output *o, const char *label, const char *words);

#endif
