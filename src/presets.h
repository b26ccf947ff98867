/* presets: the files of inputs/models, built into the program.
 *
 * The text of each file is embedded when the program is built, so that `model.preset: nano-30b`
 * works wherever it is run from, and the files stay the one source: a deck may as well name one as
 * its base. */
#ifndef SRC_PRESETS_H
#define SRC_PRESETS_H

/* The file's text, or NULL if there is no such preset. */
const char *preset_text(const char *name);

/* All names; returns how many. */
int preset_names(const char *const **names);

#endif
