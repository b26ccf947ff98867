#include "src/pattern.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"

static const struct {
    char letter;
    const char *word;
} words[] = {
    {'M', "linear_attention"},
    {'*', "full_attention"},
    {'-', "mlp"},
    {'E', "moe"}, /* in use */
    {'M', "mamba"},
    {'*', "attention"}, /* older */
};
enum { WORDS = sizeof words / sizeof *words };

/* Signs of other programs' patterns, and what to do about them. */
static const struct {
    char sign;
    const char *hint;
} foreign[] = {
    {'|',
     "| marks the stages of a pipeline; give those as parallel.stages, and the layers alone here"},
    {'/', "/ begins multi-token prediction; write that part as model.mtp_hybrid_override_pattern "
          "and its "
          "depths as model.num_nextn_predict_layers"},
    {'G', "G (gated delta net) is not built"},
    {'D', "D (sparse attention) is not built"},
    {'+', "+ (latent attention) is not built"},
    {' ', "a space is no layer"},
    {'O', "O is experts in torchtitan's dialect; set model.pattern_dialect: torchtitan if that is "
          "meant"},
};

static char *not_a_layer(char c, int position, bool torchtitan) {
    const char *legal = torchtitan ? "M Mamba, * attention, E MLP, O experts"
                                   : "M Mamba, * attention, - MLP, E experts";
    for (unsigned i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (foreign[i].sign == c)
            return die_format("position %d: %s; the layers are %s", position, foreign[i].hint,
                              legal);
    if (c > ' ' && c < 127)
        return die_format("position %d: %c is no layer; the layers are %s", position, c, legal);
    return die_format("position %d: byte %d is no layer; the layers are %s", position,
                      (unsigned char)c, legal);
}

char *pattern_from_text(const char *text, bool torchtitan, char **kinds) {
    size_t length = strlen(text);
    if (length > 2 * PATTERN_LONGEST) return die_format("%zu letters are too many", length);
    char *out = die_alloc(length + 1);
    int n = 0;
    for (int i = 0; text[i]; i++) {
        char c = text[i];
        bool known = c == 'M' || c == '*' || c == 'E' || c == (torchtitan ? 'O' : '-');
        if (torchtitan && c == ' ') continue;
        if (!known) {
            free(out);
            return not_a_layer(c, i + 1, torchtitan);
        }
        if (torchtitan) c = c == 'E' ? '-' : c == 'O' ? 'E' : c;
        out[n++] = c;
    }
    if (n == 0 || n > PATTERN_LONGEST) {
        free(out);
        return n ? die_format("%d layers are more than %d", n, PATTERN_LONGEST)
                 : die_format("has no layers");
    }
    *kinds = out;
    return NULL;
}

char *pattern_from_list(int n, char *const *word, char **kinds) {
    const char *names[WORDS];
    for (int i = 0; i < WORDS; i++) names[i] = words[i].word;
    if (n == 0) return die_format("has no layers");
    if (n > PATTERN_LONGEST) return die_format("%d layers are more than %d", n, PATTERN_LONGEST);
    char *out = die_alloc((unsigned long)n + 1);
    for (int i = 0; i < n; i++) {
        for (int w = 0; w < WORDS && !out[i]; w++)
            if (!strcmp(word[i], words[w].word)) out[i] = words[w].letter;
        if (out[i]) continue;
        free(out);
        const char *near = mistakes_nearest(word[i], WORDS, names);
        return die_format(
            "entry %d: '%.40s' is no layer%s%s%s; the layers are linear_attention, full_attention, "
            "mlp, moe",
            i + 1, word[i], near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    }
    *kinds = out;
    return NULL;
}

const char *pattern_word(char kind) {
    for (int i = 0; i < WORDS; i++)
        if (words[i].letter == kind) return words[i].word;
    bug("no layer is written %c", kind);
}
