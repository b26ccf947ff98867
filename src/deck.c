#include "src/deck.h"

#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"
#include "io/yaml.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck_table.h"

enum { DEEPEST = 16, MOST_FILES = 64 };

enum giver { NOBODY, DECK, COMMAND_LINE, WORKED_OUT };

struct deck_origin {
    enum giver giver;
    const char *where; /* file, "command line", or what worked it out */
    int line;
    const char *text; /* both together */
};

static const char command_line[] = "command line";

static void *value_of(const struct deck *d, int row) {
    return (char *)d + deck_table[row].at;
}

static void note(struct deck *d, int row, enum giver giver, const char *where, int line) {
    struct deck_origin *o = &d->origin[row];
    *o = (struct deck_origin){.giver = giver, .line = line};
    o->where = deck_own(d, die_strdup(where));
    o->text = line ? deck_own(d, die_format("%s:%d", where, line)) : o->where;
}

/* Reads a value from one text, as it is spelled on the command line: texts as they are, lists in
 * brackets. Returns what is wrong with it, or NULL. */
static char *read_spelled(struct deck *d, int row, const char *text) {
    const struct deck_key *k = &deck_table[row];
    void *to = value_of(d, row);
    char *one[] = {(char *)text};
    bool as_it_is = true;
    bool is_list = k->type == 'T' || k->type == 'R';
    if (is_list && !*text) return deck_value_read(k, d, 0, NULL, NULL, true, to);
    if (!is_list || *text != '[')
        return deck_value_read(k, d, 1, one, k->type == 't' ? &as_it_is : NULL, false, to);
    struct mistakes m = {0};
    struct yaml_deck y;
    char *deck = die_format("a:\n  b: %s\n", text), *problem = NULL;
    yaml_deck_read_text(&y, "", deck, strlen(deck), &m);
    if (m.n || y.n != 2 || !y.entry[1].list)
        problem = die_format("'%.60s' is not a list such as [a, b]%s", text,
                             strpbrk(text, "*&!%@`|>") ? "; what begins with a sign needs quotes "
                                                         "of its own: '[\"*.weight\"]'"
                                                       : "");
    else
        problem =
            deck_value_read(k, d, y.entry[1].n, y.entry[1].value, y.entry[1].quoted, true, to);
    free(deck);
    mistakes_free(&m);
    yaml_deck_free(&y);
    return problem;
}

static void unknown_key(struct mistakes *m, const char *where, int line, const char *section,
                        const char *name) {
    int i = deck_table_suggest(section, name);
    if (i < 0)
        mistake(m, where, line, "unknown key %s.%s; mestar keys %s lists what there is", section,
                name, section);
    else
        mistake(m, where, line, "unknown key %s.%s; did you mean %s.%s?", section, name,
                deck_table[i].section, deck_table[i].name);
}

static void unknown_section(struct mistakes *m, const char *where, int line, const char *name) {
    const char *names[64];
    int n = deck_sections_n < 64 ? deck_sections_n : 64;
    for (int i = 0; i < n; i++) names[i] = deck_sections[i].name;
    const char *near = mistakes_nearest(name, n, names);
    int i = deck_table_suggest("", name);
    if (near) mistake(m, where, line, "unknown section %s; did you mean %s?", name, near);
    else if (i >= 0)
        mistake(m, where, line, "%s is not a section; did you mean the key %s in section %s?", name,
                deck_table[i].name, deck_table[i].section);
    else mistake(m, where, line, "unknown section %s; mestar keys lists what there is", name);
}

/* ---------------------------------------------------------------- files */

/* The files being read, from the deck down its bases: a file in its own bases would never end. */
struct chain {
    const struct chain *above;
    char *real;
    int depth;
};

struct reading {
    struct deck *d;
    struct mistakes *m;
    int files;
};

static void read_file(struct reading *r, const char *path, const char *asked_in, int asked_line,
                      const struct chain *above);

static void read_base(struct reading *r, const struct yaml_entry *e, const char *path,
                      const struct chain *chain) {
    const char *slash = strrchr(path, '/');
    if (e->n == 0) mistake(r->m, path, e->line, "base: names no file");
    for (int i = 0; i < e->n; i++) {
        if (!*e->value[i]) {
            mistake(r->m, path, e->line, "base: names no file");
            continue;
        }
        bool beside = slash && e->value[i][0] != '/';
        char *base = beside ? die_format("%.*s/%s", (int)(slash - path), path, e->value[i])
                            : die_strdup(e->value[i]);
        read_file(r, base, path, e->line, chain);
        free(base);
    }
}

static void take_entry(struct reading *r, const struct yaml_entry *e, const char *path) {
    if (!*e->section) {
        bool empty = e->begins_section || (!e->list && !e->quoted[0] && !*e->value[0]);
        if (!strcmp(e->key, "base") && !e->begins_section) return;
        if (!deck_section_exists(e->key)) unknown_section(r->m, path, e->key_line, e->key);
        else if (!empty)
            mistake(r->m, path, e->key_line, "%s is a section: its keys stand below it, indented",
                    e->key);
        return;
    }
    if (!deck_section_exists(e->section)) return; /* told at the section's own line */
    int row = deck_table_find(e->section, e->key);
    if (row < 0) {
        unknown_key(r->m, path, e->key_line, e->section, e->key);
        return;
    }
    char *problem = NULL;
    const struct deck_key *k = &deck_table[row];
    /* "-M" is text to YAML, but "- M" a list: one rule for all three signs is easier to remember.
     * */
    if (strstr(k->name, "pattern") && k->type == 't' && e->n == 1 && !e->quoted[0] &&
        e->value[0][0] == '-')
        problem = die_format("a pattern that begins with - must be put in quotes");
    else
        problem = deck_value_read(k, r->d, e->n, e->value, e->quoted, e->list, value_of(r->d, row));
    if (problem) mistake(r->m, path, e->line, "%s.%s: %s", e->section, e->key, problem);
    else note(r->d, row, DECK, path, e->line);
    free(problem);
}

static void read_file(struct reading *r, const char *path, const char *asked_in, int asked_line,
                      const struct chain *above) {
    struct chain chain = {.above = above, .depth = above ? above->depth + 1 : 0};
    if (chain.depth > DEEPEST || ++r->files > MOST_FILES) {
        mistake(r->m, asked_in, asked_line, "base: more than %d files deep or %d files in all",
                DEEPEST, MOST_FILES);
        return;
    }
    struct yaml_deck y;
    chain.real = realpath(path, NULL);
    for (const struct chain *c = above; c && chain.real; c = c->above) {
        if (strcmp(c->real, chain.real)) continue;
        mistake(r->m, asked_in, asked_line, "base: %s is built on this file itself", path);
        free(chain.real);
        return;
    }
    if (!chain.real) chain.real = die_strdup(path);
    char why[WHY_BYTES];
    int64_t size;
    int fd = asked_in ? file_open(path, &size, why) : -1;
    if (fd >= 0) close(fd);
    if (asked_in && fd < 0) {
        mistake(r->m, asked_in, asked_line, "base: %s %s", path, why);
        free(chain.real);
        return;
    }
    yaml_deck_read(&y, path, r->m);
    for (int i = 0; i < y.n; i++) { /* wherever it stands, the base comes first */
        const struct yaml_entry *e = &y.entry[i];
        if (!*e->section && !strcmp(e->key, "base") && !e->begins_section)
            read_base(r, e, path, &chain);
    }
    for (int i = 0; i < y.n; i++) take_entry(r, &y.entry[i], path);
    yaml_deck_free(&y);
    free(chain.real);
}

/* ---------------------------------------------------------------- the command line */

static void take_override(struct deck *d, const char *text, struct mistakes *m) {
    const char *equals = strchr(text, '='), *dot = strchr(text, '.');
    if (!equals || !dot || dot > equals || dot == text || equals == dot + 1) {
        mistake(m, command_line, 0, "expected section.key=value, found '%.60s'", text);
        return;
    }
    char *section = die_format("%.*s", (int)(dot - text), text);
    char *name = die_format("%.*s", (int)(equals - dot - 1), dot + 1);
    int row = deck_table_find(section, name);
    if (!deck_section_exists(section)) unknown_section(m, command_line, 0, section);
    else if (row < 0) unknown_key(m, command_line, 0, section, name);
    else {
        char *problem = read_spelled(d, row, equals + 1);
        if (problem) mistake(m, command_line, 0, "%s.%s: %s", section, name, problem);
        else note(d, row, COMMAND_LINE, command_line, 0);
        free(problem);
    }
    free(section);
    free(name);
}

static int row_of(const char *key) {
    const char *dot = strchr(key, '.');
    char section[64];
    if (!dot || dot - key >= (long)sizeof section) bug("%s is not section.key", key);
    snprintf(section, sizeof section, "%.*s", (int)(dot - key), key);
    int row = deck_table_find(section, dot + 1);
    if (row < 0) bug("there is no key %s", key);
    return row;
}

/* The deck's file name without folder and ending names the run. */
static void name_run(struct deck *d) {
    if (!*d->run.name) {
        const char *slash = strrchr(d->path, '/'), *base = slash ? slash + 1 : d->path;
        size_t n = strlen(base);
        if (n > 5 && !strcmp(base + n - 5, ".yaml")) n -= 5;
        char *name = die_format("%.*s", (int)n, base);
        deck_set(d, "run.name", name, "name of the deck");
        free(name);
    }
    if (!*d->run.output) {
        char *output = die_format("outputs/%s", d->run.name);
        deck_set(d, "run.output", output, "run.name");
        free(output);
    }
}

static void refuse_empty(const struct deck *d, const char *key, struct mistakes *m) {
    int row = row_of(key);
    const struct deck_origin *o = &d->origin[row];
    if (o->giver == NOBODY || !deck_value_empty(&deck_table[row], value_of(d, row))) return;
    mistake(m, o->where, o->line, "%s: is empty; leave it out for the deck's own name", key);
}

void deck_read(struct deck *d, const char *path, int n_overrides, char **overrides,
               struct mistakes *m) {
    *d = (struct deck){0};
    d->path = die_strdup(path);
    d->origin = die_alloc((unsigned long)deck_table_n * sizeof *d->origin);
    for (int i = 0; i < deck_table_n; i++) {
        const struct deck_key *k = &deck_table[i];
        char *problem = NULL;
        if (*k->def) problem = read_spelled(d, i, k->def);
        else if (k->type == 't' || k->type == 'c') *(const char **)value_of(d, i) = "";
        if (problem) bug("default of %s.%s: %s", k->section, k->name, problem);
        d->origin[i] = (struct deck_origin){NOBODY, "default", 0, "default"};
    }
    int before = m->n;
    struct reading r = {.d = d, .m = m};
    read_file(&r, path, NULL, 0, NULL);
    for (int i = 0; i < n_overrides; i++) take_override(d, overrides[i], m);
    refuse_empty(d, "run.name", m);
    refuse_empty(d, "run.output", m);
    d->incomplete = m->n > before;
    name_run(d);
}

/* ---------------------------------------------------------------- asking and telling */

bool deck_given(const struct deck *d, const char *key) {
    int row = row_of(key);
    enum giver giver = d->origin[row].giver;
    return (giver == DECK || giver == COMMAND_LINE) &&
           !deck_value_empty(&deck_table[row], value_of(d, row));
}

const char *deck_where(const struct deck *d, const char *key) {
    return deck_given(d, key) ? d->origin[row_of(key)].text : "";
}

const char *deck_origin_text(const struct deck *d, int row) {
    return d->origin[row].text;
}

void deck_mistake(const struct deck *d, struct mistakes *m, const char *key, const char *fmt, ...) {
    const struct deck_origin *o = &d->origin[row_of(key)];
    char *what = NULL;
    size_t size;
    FILE *f = open_memstream(&what, &size);
    if (!f) die("no memory for a message");
    va_list ap;
    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    if (fclose(f)) die("no memory for a message");
    bool placed = o->giver == DECK || o->giver == COMMAND_LINE;
    if (placed || !d->incomplete)
        mistake(m, placed ? o->where : d->path, placed ? o->line : 0, "%s: %s", key, what);
    free(what);
}

void deck_set(struct deck *d, const char *key, const char *value, const char *origin) {
    int row = row_of(key);
    char *problem = read_spelled(d, row, value);
    if (problem) bug("%s set to %s: %s", key, value, problem);
    note(d, row, WORKED_OUT, origin, 0);
}

char *deck_try(struct deck *d, const char *key, const char *value, const char *origin) {
    int row = row_of(key);
    char *problem = read_spelled(d, row, value);
    if (!problem) note(d, row, WORKED_OUT, origin, 0);
    return problem;
}

bool deck_row(struct deck *d, const char *section, int i, const char **name, char *type,
              void **value) {
    for (int row = 0; row < deck_table_n; row++) {
        if (strcmp(deck_table[row].section, section) || i-- > 0) continue;
        *name = deck_table[row].name;
        *type = deck_table[row].type;
        *value = value_of(d, row);
        return true;
    }
    return false;
}

void deck_free(struct deck *d) {
    for (int i = 0; i < d->n_owned; i++) free(d->owned[i]);
    free(d->owned);
    free(d->origin);
    free(d->path);
    *d = (struct deck){0};
}
