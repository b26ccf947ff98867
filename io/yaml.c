#include "io/yaml.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "kernels/mistakes.h"
#include "kernels/die.h"

enum { LARGEST = 1 << 20, MOST_ENTRIES = 10000, RETRIES = 50 };

/* Where the walk through libyaml's events stands. */
struct reading {
    struct yaml_deck *y;
    struct mistakes *m;
    yaml_parser_t parser;
    char *text; /* as libyaml sees it: lines that cannot be read are blanked and it starts again */
    size_t bytes;
    bool *dead; /* by line: a mistake was told about it */
    int n_lines;
    int documents;
    int blame;    /* a line to blank before starting again, found while taking events; 0 none */
    int skip;     /* depth inside a value that was refused */
    bool in_list; /* of the newest entry */
    bool in_top, in_section;
    bool have_key;
    char *key, *section;
    int key_line;
};

/* ---------------------------------------------------------------- lines of the text */

static size_t line_begin(const struct reading *r, int line) {
    size_t at = 0;
    for (int i = 1; i < line && at < r->bytes; at++)
        if (r->text[at] == '\n') i++;
    return at;
}

static size_t line_end(const struct reading *r, size_t at) {
    while (at < r->bytes && r->text[at] != '\n') at++;
    return at;
}

/* Whether a line has something on it, but no colon that would make it a key or a section. */
static bool lacks_colon(const struct reading *r, int line) {
    size_t at = line_begin(r, line), end = line_end(r, at);
    while (at < end && r->text[at] == ' ') at++;
    if (at == end || r->text[at] == '#' || r->text[at] == '-') return false;
    for (; at < end && r->text[at] != '#'; at++)
        if (r->text[at] == ':') return false;
    return true;
}

/* The first character of the value on a line "key: value", or 0. */
static char value_first(const struct reading *r, int line) {
    size_t at = line_begin(r, line), end = line_end(r, at);
    while (at < end && r->text[at] == ' ') at++;
    while (at < end && !(r->text[at] == ':' && (at + 1 == end || r->text[at + 1] == ' '))) {
        if (r->text[at] == '#' || r->text[at] == '"' || r->text[at] == '\'') return 0;
        at++;
    }
    for (at++; at < end && r->text[at] == ' '; at++)
        ;
    return at < end ? r->text[at] : 0;
}

/* Length of the UTF-8 sequence at s, or 0 if it is none. */
static size_t utf8_length(const unsigned char *s, size_t left) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : 0;
    if (s[0] >= 0xf0 && s[0] < 0xf5) n = 4;
    if (!n || n > left) return 0;
    if (n == 1) return 1;
    uint32_t c = s[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

/* Tells of bytes that no deck may hold, once a line, and puts spaces in their place. A line
 * indented by a tab goes altogether: how deep it was meant to be nobody knows. */
static void clean(struct reading *r) {
    int line = 1, bad_line = 0;
    bool comment = false, indent = true;
    if (r->bytes >= 3 && !memcmp(r->text, "\xef\xbb\xbf", 3)) { /* a byte order mark says nothing */
        memmove(r->text, r->text + 3, r->bytes - 2);
        r->bytes -= 3;
    }
    for (size_t i = 0; i < r->bytes;) {
        unsigned char c = (unsigned char)r->text[i];
        size_t n = utf8_length((unsigned char *)r->text + i, r->bytes - i);
        const char *what = NULL;
        if (c == '#' && (i == 0 || memchr(" \n", r->text[i - 1], 2))) comment = true;
        if (!n) what = "is not UTF-8 text";
        else if (c == '\t' && !comment) what = "holds a tab; use spaces";
        else if ((c < ' ' && !memchr("\n\r\t", c, 3)) || c == 127) what = "holds a control character";
        if (what && bad_line != line)
            mistake(r->m, r->y->name, bad_line = line, "the line %s", what);
        if (c == '\t' && indent) memset(r->text + i, ' ', line_end(r, i) - i);
        if (what || c == '\t') r->text[i] = ' ';
        indent = c == '\n' || (indent && c == ' ');
        if (c == '\n') line++, comment = false;
        i += n ? n : 1;
    }
    r->n_lines = line;
}

/* ---------------------------------------------------------------- entries */

static void entry_free(struct yaml_entry *e) {
    for (int i = 0; i < e->n; i++) free(e->value[i]);
    free(e->value);
    free(e->quoted);
    free(e->section);
    free(e->key);
}

static void tell(struct reading *r, int line, const char *what) {
    mistake(r->m, r->y->name, line, "%s", what);
}

static struct yaml_entry *add_entry(struct reading *r, int line) {
    struct yaml_deck *y = r->y;
    y->entry = die_realloc(y->entry, (unsigned long)(y->n + 1) * sizeof *y->entry);
    struct yaml_entry *e = &y->entry[y->n++];
    *e = (struct yaml_entry){.line = line, .key_line = r->key_line};
    e->section = die_strdup(r->in_section ? r->section : "");
    e->key = die_strdup(r->key);
    return e;
}

static void add_value(struct yaml_entry *e, const char *text, bool quoted) {
    e->value = die_realloc(e->value, (unsigned long)(e->n + 1) * sizeof *e->value);
    e->quoted = die_realloc(e->quoted, (unsigned long)(e->n + 1) * sizeof *e->quoted);
    e->value[e->n] = die_strdup(text);
    e->quoted[e->n++] = quoted;
}

/* A repeated key would let the last one win in silence. */
static void check_repeated(struct reading *r) {
    const char *section = r->in_section ? r->section : "";
    for (int i = 0; i < r->y->n; i++) {
        const struct yaml_entry *e = &r->y->entry[i];
        if (strcmp(e->section, section) || strcmp(e->key, r->key)) continue;
        if (*section)
            mistake(r->m, r->y->name, r->key_line, "%s.%s: already set on line %d", section, r->key,
                    e->key_line);
        else
            mistake(r->m, r->y->name, r->key_line,
                    "%s: already begun on line %d; one deck has each section once", r->key,
                    e->key_line);
        return;
    }
}

static const char quote_it[] = "is read by YAML as a sign of its own when it begins a value: put "
                               "the value in quotes, as in \"*-M\"";

/* What is wrong with the form of a scalar, or NULL. */
static const char *scalar_problem(const yaml_event_t *e) {
    if (e->data.scalar.anchor) return "anchors (&name) are not used in decks";
    if (e->data.scalar.tag) return "tags (!name) are not used in decks";
    if (e->data.scalar.style == YAML_LITERAL_SCALAR_STYLE ||
        e->data.scalar.style == YAML_FOLDED_SCALAR_STYLE)
        return "a | or > at the beginning of a value begins block text, which decks do not use; "
               "put the "
               "value in quotes";
    if (strlen((char *)e->data.scalar.value) != e->data.scalar.length)
        return "the text holds a zero byte";
    return NULL;
}

static const char no_colon[] = "expected 'key: value' or 'section:'; is a colon missing?";

/* A line without a colon runs together with its neighbour. Returns the line at fault, or 0. */
static int runs_on(const struct reading *r, const yaml_event_t *e) {
    if (e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return 0;
    for (int line = (int)e->start_mark.line + 1; line <= (int)e->end_mark.line + 1; line++)
        if (e->start_mark.line != e->end_mark.line && lacks_colon(r, line)) return line;
    return 0;
}

static void take_scalar(struct reading *r, const yaml_event_t *e) {
    int line = (int)e->start_mark.line + 1;
    const char *text = (char *)e->data.scalar.value;
    bool quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    if ((r->blame = runs_on(r, e))) tell(r, r->blame, no_colon);
    const char *what = scalar_problem(e);
    if (what) tell(r, line, what);
    if (r->in_list) {
        if (!what) add_value(&r->y->entry[r->y->n - 1], text, quoted);
    } else if (!r->in_top) {
        if (!what && *text)
            tell(r, line, "a deck is made of sections (name:) with keys below them");
    } else if (!r->have_key) {
        free(r->key);
        r->key = die_strdup(text);
        r->key_line = line;
        r->have_key = true;
        if (!what) check_repeated(r);
    } else {
        r->have_key = false;
        if (!what) add_value(add_entry(r, line), text, quoted);
    }
}

static void take_list(struct reading *r, const yaml_event_t *e) {
    int line = (int)e->start_mark.line + 1;
    const char *what = NULL;
    if (e->data.sequence_start.anchor) what = "anchors (&name) are not used in decks";
    else if (e->data.sequence_start.tag) what = "tags (!name) are not used in decks";
    else if (r->in_list) what = "a list inside a list is not used in decks";
    else if (!r->in_top)
        what = "a deck is made of sections (name:) with keys below them, not of a list";
    else if (!r->have_key) what = "a list cannot be a key";
    if (what) {
        tell(r, line, what);
        r->skip = 1;
        return;
    }
    add_entry(r, line)->list = true;
    r->in_list = true;
    r->have_key = false;
}

static void take_map(struct reading *r, const yaml_event_t *e) {
    int line = (int)e->start_mark.line + 1;
    const char *what = NULL;
    if (e->data.mapping_start.anchor) what = "anchors (&name) are not used in decks";
    else if (e->data.mapping_start.tag) what = "tags (!name) are not used in decks";
    else if (r->in_list) what = "keys inside a list are not used in decks";
    else if (r->in_top && !r->have_key) what = "a group of keys cannot be a key";
    else if (r->in_section) what = "keys below a key: decks have sections and keys, nothing deeper";
    if (what) {
        tell(r, line, what);
        r->skip = 1;
    } else if (!r->in_top) {
        r->in_top = true;
    } else {
        add_entry(r, r->key_line)->begins_section = true;
        free(r->section);
        r->section = die_strdup(r->key);
        r->in_section = true;
        r->have_key = false;
    }
}

/* A refused value leaves its key without one. */
static void skipped(struct reading *r) {
    if (!r->in_list) r->have_key = false;
}

/* One event. Returns false at the end of the stream. */
static bool take(struct reading *r, const yaml_event_t *e) {
    int line = (int)e->start_mark.line + 1;
    switch (e->type) {
    case YAML_STREAM_END_EVENT: return false;
    case YAML_DOCUMENT_START_EVENT:
        if (++r->documents == 2)
            tell(r, line, "a second document (---) begins here; one file is one deck");
        return true;
    case YAML_ALIAS_EVENT:
        if (r->skip) return true;
        mistake(r->m, r->y->name, line,
                value_first(r, line) == '*' ? "* %s"
                                            : "aliases (*name) are not used in decks; * %s",
                quote_it);
        skipped(r);
        return true;
    case YAML_SCALAR_EVENT:
        if (!r->skip && r->documents == 1) take_scalar(r, e);
        return true;
    case YAML_SEQUENCE_START_EVENT:
    case YAML_MAPPING_START_EVENT:
        if (r->documents > 1) return true;
        if (r->skip) r->skip++;
        else if (e->type == YAML_SEQUENCE_START_EVENT) take_list(r, e);
        else take_map(r, e);
        return true;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        if (r->documents > 1) return true;
        if (r->skip) {
            if (--r->skip == 0) skipped(r);
        } else if (r->in_list) r->in_list = false;
        else if (r->in_section) r->in_section = r->have_key = false;
        else r->in_top = r->have_key = false;
        return true;
    default: return true;
    }
}

/* ---------------------------------------------------------------- what libyaml cannot read */

/* Tells of a syntax error in words that name the cause, and returns the line at fault. */
static int tell_syntax(struct reading *r) {
    const yaml_parser_t *p = &r->parser;
    const char *context = p->context ? p->context : "", *problem = p->problem ? p->problem : "";
    int line = (int)p->problem_mark.line + 1, began = (int)p->context_mark.line + 1;
    /* What was opened and not closed is noticed later than where it stands. */
    if (strstr(context, "scalar") || strstr(context, "flow") || strstr(context, "simple key") ||
        strstr(context, "alias") || strstr(context, "anchor") || strstr(context, "tag"))
        line = began;
    if (strstr(problem, "mapping values are not allowed")) {
        int above = line - 1;
        while (above > 0 && value_first(r, above) == 0 && !lacks_colon(r, above)) above--;
        if (above > 0 && lacks_colon(r, above)) {
            tell(r, above, no_colon);
            return above;
        }
    }
    char first = value_first(r, line);
    if (first == '*' || first == '|' || first == '-' || first == '>')
        mistake(r->m, r->y->name, line, "%c %s", first, quote_it);
    else if (strstr(context, "quoted scalar"))
        mistake(r->m, r->y->name, line,
                "the quote that is opened here is not closed, or holds an unknown escape");
    else if (strstr(context, "flow"))
        mistake(r->m, r->y->name, line,
                "the list that is opened here is not closed or lacks a comma");
    else if (strstr(context, "simple key")) tell(r, line, no_colon);
    else if (strstr(problem, "mapping values are not allowed"))
        mistake(r->m, r->y->name, line,
                "a second colon, or a key deeper than the line above it allows; put text that "
                "holds ': ' in quotes");
    else if (strstr(context, "block mapping") || strstr(problem, "block sequence"))
        mistake(r->m, r->y->name, line,
                "expected 'key: value' here; are the spaces before it as many as before its "
                "neighbours?");
    else mistake(r->m, r->y->name, line, "%s%s%s", problem, *context ? " " : "", context);
    return line;
}

static void start_again(struct reading *r) {
    for (int i = 0; i < r->y->n; i++) entry_free(&r->y->entry[i]);
    r->y->n = 0;
    r->documents = r->skip = 0;
    r->in_list = r->in_top = r->in_section = r->have_key = false;
}

/* Blanks a line that was told about, so that the rest can be read without it. A line that may be
 * the head of a section takes what stands below it along: its keys would be taken for the section
 * above. Returns whether to go on. */
static bool blank(struct reading *r, int line) {
    if (line > r->n_lines || r->dead[line]) return false;
    size_t at = line_begin(r, line), end = line_end(r, at);
    bool head = at < end && r->text[at] != ' ';
    do {
        r->dead[line++] = true;
        memset(r->text + at, ' ', end - at);
        at = end + 1;
        end = at < r->bytes ? line_end(r, at) : at;
    } while (head && at < r->bytes && line <= r->n_lines && strchr(" \r\n#", r->text[at]));
    return true;
}

/* Reads all events, or up to a line that has to be blanked. Returns whether to start again. */
static bool pass(struct reading *r) {
    start_again(r);
    if (!yaml_parser_initialize(&r->parser)) die("no memory for reading %s", r->y->name);
    yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r->parser, (unsigned char *)r->text, r->bytes);
    bool more = true;
    r->blame = 0;
    while (more && !r->blame) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r->parser, &e)) {
            r->blame = tell_syntax(r);
            break;
        }
        more = take(r, &e);
        if (more && r->y->n > MOST_ENTRIES) {
            mistake(r->m, r->y->name, (int)e.start_mark.line + 1, "more than %d keys are no deck",
                    MOST_ENTRIES);
            more = false;
        }
        yaml_event_delete(&e);
    }
    yaml_parser_delete(&r->parser);
    return r->blame && blank(r, r->blame);
}

int yaml_deck_read_text(struct yaml_deck *y, const char *name, const char *text, size_t bytes,
                        struct mistakes *m) {
    int before = m->n;
    *y = (struct yaml_deck){.name = die_strdup(name)};
    if (bytes > LARGEST) {
        mistake(m, name, 0, "%zu bytes are too many for a deck (at most %d)", bytes, LARGEST);
        return -1;
    }
    struct reading r = {.y = y, .m = m, .bytes = bytes, .text = die_alloc(bytes + 1)};
    memcpy(r.text, text, bytes);
    clean(&r);
    r.dead = die_alloc((unsigned long)r.n_lines + 1);
    for (int i = 0; i < RETRIES && pass(&r); i++)
        ;
    free(r.dead);
    free(r.text);
    free(r.key);
    free(r.section);
    return m->n > before ? -1 : 0;
}

int yaml_deck_read(struct yaml_deck *y, const char *path, struct mistakes *m) {
    struct stat s;
    FILE *f = NULL;
    *y = (struct yaml_deck){.name = die_strdup(path)};
    if (stat(path, &s)) mistake(m, path, 0, "%s", strerror(errno));
    else if (S_ISDIR(s.st_mode)) mistake(m, path, 0, "is a folder, not a deck");
    else if (!S_ISREG(s.st_mode)) mistake(m, path, 0, "is not a regular file");
    else if (s.st_size > LARGEST)
        mistake(m, path, 0, "%lld bytes are too many for a deck (at most %d)", (long long)s.st_size,
                LARGEST);
    else if (!(f = fopen(path, "rb"))) mistake(m, path, 0, "%s", strerror(errno));
    if (!f) return -1;
    char *text = die_alloc(LARGEST + 1);
    size_t bytes = fread(text, 1, LARGEST + 1, f);
    int failed = ferror(f), result = -1;
    fclose(f);
    if (failed) mistake(m, path, 0, "could not be read: %s", strerror(EIO));
    else {
        free(y->name);
        result = yaml_deck_read_text(y, path, text, bytes, m);
    }
    free(text);
    return result;
}

void yaml_deck_free(struct yaml_deck *y) {
    for (int i = 0; i < y->n; i++) entry_free(&y->entry[i]);
    free(y->entry);
    free(y->name);
    *y = (struct yaml_deck){0};
}

char *yaml_deck_quote(const char *text) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+";
    size_t n = strlen(text);
    bool plain = n > 0 && (text[0] == '/' || text[0] == '_' || text[0] == '.' ||
                           strchr(safe, text[0]) != NULL);
    for (size_t i = 0; i < n && plain; i++)
        plain = strchr(safe, text[i]) || (i > 0 && text[i] == '-');
    if (!strcmp(text, "null") || !strcmp(text, "~")) plain = false;
    if (plain) return die_strdup(text);
    char *out = die_alloc(4 * n + 3), *o = out;
    *o++ = '"';
    for (const char *s = text; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') *o++ = '\\', *o++ = *s;
        else if (c < ' ' || c == 127) o += sprintf(o, "\\x%02x", c);
        else *o++ = *s;
    }
    *o++ = '"';
    return out;
}
