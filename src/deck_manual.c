/* deck_manual: what the rows of deck.def say about themselves, as used.yaml and as the manual. */
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck.h"
#include "src/deck_table.h"

/* Comments begin in the same column where the values leave room. */
static void pad(FILE *f, int written) {
    fprintf(f, "%*s", written < 46 ? 46 - written : 2, "");
}

void deck_write_used(const struct deck *d, FILE *f) {
    fprintf(f,
            "# Every key of the deck with the value it had; running this file repeats the run.\n");
    for (int i = 0; i < deck_table_n; i++) {
        const struct deck_key *k = &deck_table[i];
        const void *value = (const char *)d + k->at;
        if (!i || strcmp(k->section, deck_table[i - 1].section)) fprintf(f, "\n%s:\n", k->section);
        bool empty = deck_value_empty(k, value);
        char *text = empty ? die_strdup("") : deck_value_text(k, value);
        int n = fprintf(f, "%s%s:%s%s", empty ? "  # " : "  ", k->name, empty ? "" : " ", text);
        pad(f, n);
        /* A file name may hold anything; a comment ends with its line. */
        char *origin = die_strdup(empty ? "not given" : deck_origin_text(d, i));
        for (char *c = origin; *c; c++)
            if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
        fprintf(f, "# %s%s%s\n", k->unit, *k->unit ? "; " : "", origin);
        free(origin);
        free(text);
    }
}

static const char *type_text(const struct deck_key *k, char *to, size_t size) {
    char lo[32], hi[32];
    deck_real_text(k->real_lo, lo);
    deck_real_text(k->real_hi, hi);
    switch (k->type) {
    case 'i':
        snprintf(to, size, "whole number, %" PRId64 " to %" PRId64, k->int_lo, k->int_hi);
        break;
    case 'r': snprintf(to, size, "number, %s to %s", lo, hi); break;
    case 'b': snprintf(to, size, "true or false"); break;
    case 'c': snprintf(to, size, "%s", k->choices); break;
    case 't': snprintf(to, size, "text"); break;
    case 'T': snprintf(to, size, "list of texts"); break;
    case 'R':
        if (k->count > 0) snprintf(to, size, "list of %d numbers, %s to %s", k->count, lo, hi);
        else snprintf(to, size, "list of 1 to %d numbers, %s to %s", -k->count, lo, hi);
        break;
    default: bug("type %c of %s.%s", k->type, k->section, k->name);
    }
    return to;
}

/* A bar would end the cell of a table. */
static void cell(FILE *f, const char *text) {
    for (const char *c = text; *c; c++) {
        if (*c == '|' || *c == '*' || *c == '<') fputc('\\', f);
        fputc(*c, f);
    }
}

static void print_key(FILE *f, const struct deck_key *k, bool markdown) {
    char type[256];
    type_text(k, type, sizeof type);
    const char *resume = k->fixed ? "fixed" : "may change on resume";
    if (!markdown) {
        fprintf(f, "  %s.%s = %s%s%s\n", k->section, k->name, *k->def ? k->def : "(not given)",
                *k->unit ? " " : "", k->unit);
        fprintf(f, "      %s; %s\n      %s\n", type, resume, k->meaning);
        return;
    }
    fprintf(f, "| `%s` | %s%s%s | ", k->name, *k->def ? "`" : "", k->def, *k->def ? "`" : "");
    cell(f, k->unit);
    fprintf(f, " | ");
    cell(f, type);
    fprintf(f, " | %s | ", k->fixed ? "fixed" : "may change");
    cell(f, k->meaning);
    fprintf(f, " |\n");
}

static void print_section(FILE *f, const struct deck_section *s, bool markdown) {
    if (markdown)
        fprintf(f,
                "\n## %s\n\n%s.\n\n"
                "| key | default | unit | type and range | on resume | meaning |\n"
                "|---|---|---|---|---|---|\n",
                s->name, s->meaning);
    else fprintf(f, "%s: %s\n", s->name, s->meaning);
    for (int i = 0; i < deck_table_n; i++)
        if (!strcmp(deck_table[i].section, s->name)) print_key(f, &deck_table[i], markdown);
    if (!markdown) fputc('\n', f);
}

/* Someone asked for a word that is neither a section nor a key. */
static int not_found(const char *word) {
    const char *names[512];
    int n = 0;
    for (int i = 0; i < deck_sections_n && n < 512; i++) names[n++] = deck_sections[i].name;
    for (int i = 0; i < deck_table_n && n < 512; i++) names[n++] = deck_table[i].name;
    const char *dot = strchr(word, '.'), *near = mistakes_nearest(dot ? dot + 1 : word, n, names);
    if (dot) {
        char *section = die_format("%.*s", (int)(dot - word), word);
        int row = deck_table_suggest(section, dot + 1);
        free(section);
        if (row >= 0) {
            fprintf(stderr, "there is no key %s; did you mean %s.%s?\n", word,
                    deck_table[row].section, deck_table[row].name);
            return -1;
        }
    }
    fprintf(stderr, "there is no section or key %s%s%s%s\n", word, near ? "; did you mean " : "",
            near ? near : "; mestar keys lists all", near ? "?" : "");
    return -1;
}

int deck_keys(FILE *f, const char *section_or_key, bool markdown) {
    const char *word = section_or_key && *section_or_key ? section_or_key : NULL;
    if (!word && markdown)
        fprintf(f, "# Keys of a deck\n\nWritten by `mestar keys --markdown` from `src/deck.def`. A "
                   "deck is sections of keys;\n"
                   "`mpirun -n N ./mestar DECK section.key=value ...` overrides.\n");
    int found = 0;
    for (int i = 0; i < deck_sections_n; i++) {
        if (word && strcmp(word, deck_sections[i].name)) continue;
        print_section(f, &deck_sections[i], markdown);
        found = 1;
    }
    const char *dot = word ? strchr(word, '.') : NULL;
    for (int i = 0; word && i < deck_table_n; i++) {
        const struct deck_key *k = &deck_table[i];
        bool whole = dot && strlen(k->section) == (size_t)(dot - word) &&
                     !strncmp(k->section, word, (size_t)(dot - word)) && !strcmp(k->name, dot + 1);
        if (!whole && (dot || strcmp(k->name, word))) continue;
        print_key(f, k, markdown);
        found = 1;
    }
    return found ? 0 : not_found(word);
}
