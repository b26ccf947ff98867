#include "src/prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "src/deck.h"
#include "src/text.h"

enum { LARGEST = 1 << 30 };

struct reading {
    struct prompts *to;
    const struct text *text;
    const struct deck *deck;
    const char *path; /* of a file; NULL: the deck itself */
    const char *key;  /* of the deck, if path is NULL */
    int line;
    int64_t room;
    struct mistakes *m;
};

static void wrong(struct reading *r, const char *what) {
    if (r->path) mistake(r->m, r->path, r->line, "%s", what);
    else deck_mistake(r->deck, r->m, r->key, "%s", what);
}

/* Takes over a prompt of n ids. text may be NULL. */
static void add_ids(struct reading *r, const char *text, size_t bytes, int32_t *ids, int64_t n) {
    struct prompts *p = r->to;
    int64_t words = r->deck->model.vocab_size;
    char say[160];
    if (p->n == r->room) {
        r->room = 2 * r->room + 16;
        p->prompt = die_realloc(p->prompt, (size_t)r->room * sizeof *p->prompt);
    }
    struct prompt *q = &p->prompt[p->n++];
    *q = (struct prompt){.bytes = bytes, .ids = ids, .n = n};
    if (text) q->text = memcpy(die_alloc(bytes + 1), text, bytes);
    if (n > p->longest) p->longest = n;
    if (!n) wrong(r, "is empty: a prompt needs a token at least");
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < words) continue;
        snprintf(say, sizeof say,
                 "token %ld is %d, and the model's vocabulary (model.vocab_size) ends at %ld",
                 (long)i + 1, ids[i], (long)words - 1);
        wrong(r, say);
        return;
    }
}

static void add_text(struct reading *r, const char *s, size_t n) {
    const char *why = NULL;
    int64_t n_ids;
    if (!text_known(r->text)) {
        wrong(r, "is text, and the model has no tokenizer; give model.tokenizer, or ids");
        return;
    }
    int32_t *ids = text_encode(r->text, s, n, &n_ids, &why);
    if (ids) add_ids(r, s, n, ids, n_ids);
    else wrong(r, why);
}

static void add_json(struct reading *r, const char *s, size_t n) {
    char why[WHY_BYTES];
    json_t *line = json_read(s, n, why);
    const json_t *prompt = json_object_get(line, "prompt"), *ids = json_object_get(line, "ids");
    if (!line) wrong(r, why);
    else if (!prompt == !ids) wrong(r, "is not an object with either \"prompt\" or \"ids\"");
    else if (json_is_string(prompt))
        add_text(r, json_string_value(prompt), json_string_length(prompt));
    else if (prompt) wrong(r, "\"prompt\" is not text");
    else if (!json_is_array(ids)) wrong(r, "\"ids\" is not a list");
    else {
        size_t k = json_array_size(ids);
        int32_t *list = die_alloc((k + 1) * sizeof *list);
        size_t whole = 0;
        for (; whole < k; whole++) {
            const json_t *v = json_array_get(ids, whole);
            json_int_t id = json_integer_value(v);
            if (!json_is_integer(v) || id < 0 || id > INT32_MAX) break;
            list[whole] = (int32_t)id;
        }
        if (whole == k) add_ids(r, NULL, 0, list, (int64_t)k);
        else {
            char say[80];
            snprintf(say, sizeof say, "entry %zu of \"ids\" is no token's number", whole + 1);
            wrong(r, say);
            free(list);
        }
    }
    json_decref(line);
}

static void add_lines(struct reading *r, const char *s, int64_t n, bool json) {
    for (const char *end = s + n; s < end;) {
        const char *stop = memchr(s, '\n', (size_t)(end - s));
        if (!stop) stop = end;
        size_t length = (size_t)(stop - s);
        if (length && s[length - 1] == '\r') length--;
        r->line++;
        if (json && length) add_json(r, s, length);
        else add_text(r, s, length);
        s = stop + 1;
    }
}

/* ---- the file ---- */

static char *read_input(int64_t *bytes, char *why) {
    char *text = NULL;
    size_t n = 0, room = 0, got = 1;
    while (got && n <= LARGEST) {
        if (room - n < 65536) text = die_realloc(text, room = 2 * room + 131072);
        n += got = fread(text + n, 1, room - n, stdin);
    }
    *bytes = (int64_t)n;
    if (!ferror(stdin) && n <= LARGEST) return text;
    snprintf(why, WHY_BYTES, "%s",
             n > LARGEST ? "is larger than prompts can be" : "could not be read");
    free(text);
    return NULL;
}

/* Rank 0 reads; everyone gets the text. Without a group this process reads for itself. */
static char *read_together(const char *path, struct group *g, int64_t *bytes, struct mistakes *m) {
    char why[WHY_BYTES] = "", *text = NULL;
    if (!g || g->rank == 0) {
        text = strcmp(path, "-") ? file_text(path, LARGEST, bytes, why) : read_input(bytes, why);
        if (!text) *bytes = -1;
    }
    if (g) comm_broadcast(g, bytes, sizeof *bytes, 0);
    if (*bytes < 0) {
        if (g) comm_broadcast(g, why, sizeof why, 0);
        mistake(m, strcmp(path, "-") ? path : "standard input", 0, "%s", why);
        return NULL;
    }
    if (!text) text = die_alloc((size_t)*bytes + 1);
    if (g) comm_broadcast(g, text, (size_t)*bytes, 0);
    return text;
}

int prompts_read(struct prompts *p, const struct deck *d, const struct text *x, struct group *g,
                 struct mistakes *m) {
    const struct deck_generate *k = &d->generate;
    struct reading r = {.to = p, .text = x, .deck = d, .m = m};
    int before = m->n;
    memset(p, 0, sizeof *p);
    if (*k->prompt) {
        r.key = "generate.prompt";
        add_text(&r, k->prompt, strlen(k->prompt));
    } else if (*k->prompts) {
        size_t n = strlen(k->prompts);
        int64_t bytes = 0;
        char *text = read_together(k->prompts, g, &bytes, m);
        r.path = strcmp(k->prompts, "-") ? k->prompts : "standard input";
        if (text) add_lines(&r, text, bytes, n > 6 && !strcmp(k->prompts + n - 6, ".jsonl"));
        if (text && !r.line) mistake(m, r.path, 0, "has no prompts");
        free(text);
    } else {
        int32_t *ids = die_alloc(((size_t)k->prompt_ids.n + 1) * sizeof *ids);
        for (int i = 0; i < k->prompt_ids.n; i++) ids[i] = (int32_t)k->prompt_ids.v[i];
        r.key = "generate.prompt_ids";
        add_ids(&r, NULL, 0, ids, k->prompt_ids.n);
    }
    return m->n > before ? -1 : 0;
}

void prompts_free(struct prompts *p) {
    for (int64_t i = 0; i < p->n; i++) {
        free(p->prompt[i].text);
        free(p->prompt[i].ids);
    }
    free(p->prompt);
    memset(p, 0, sizeof *p);
}
