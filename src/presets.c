#include "src/presets.h"

#include <stddef.h>
#include <string.h>

/* presets.inc is made from inputs/models by src/presets.awk: PRESET("name", "text" "text" ...) */
#define PRESET(name, ...) name,
static const char *const name_of[] = {
#include "presets.inc"
};
#undef PRESET

#define PRESET(name, ...) __VA_ARGS__,
static const char *const text_of[] = {
#include "presets.inc"
};
#undef PRESET

enum { PRESETS = sizeof name_of / sizeof *name_of };

const char *preset_text(const char *name) {
    for (int i = 0; i < PRESETS; i++)
        if (!strcmp(name_of[i], name)) return text_of[i];
    return NULL;
}

int preset_names(const char *const **names) {
    *names = name_of;
    return PRESETS;
}
