#include "src/convert_tokens.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"
#include "io/tokenizer.h"
#include "io/unicode.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck.h"

/* Lines and bytes of a block: much for each thread, little for the memory. */
enum { BLOCK_LINES = 16384, BLOCK_BYTES = 16 << 20 };

struct line {
    char *text; /* as read; then what is written, or NULL */
    size_t n;
    int64_t bytes, ids;
    char *wrong; /* malloc'd; NULL: nothing */
};

struct block {
    struct line *line;
    int64_t n;
};

/* ---- a line ---- */

static void add_ids(struct utf8_text *to, const struct ids *ids) {
    char number[16];
    for (int64_t i = 0; i < ids->n; i++)
        utf8_text_add(to, number,
                      (size_t)snprintf(number, sizeof number, i ? ", %d" : "%d", ids->at[i]));
}

/* The line that is written, closed by a newline. */
static void answer(struct line *l, const struct tokenizer *t, const struct ids *ids) {
    struct utf8_text text = {0}, out = {0};
    tokenizer_decode(t, ids->at, ids->n, true, &text);
    json_t *value = json_stringn(text.n ? text.at : "", text.n);
    char *spelled = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    if (!spelled) bug("a decoded text is not UTF-8");
    utf8_text_add(&out, "{\"ids\": [", 9);
    add_ids(&out, ids);
    utf8_text_add(&out, "], \"text\": ", 11);
    utf8_text_add(&out, spelled, strlen(spelled));
    utf8_text_add(&out, "}\n", 2);
    free(l->text);
    l->text = out.at;
    l->n = out.n;
    l->ids = ids->n;
    free(spelled);
    json_decref(value);
    utf8_text_free(&text);
}

static void convert_line(struct line *l, const struct tokenizer *t, struct encoder *e,
                         struct ids *ids) {
    json_error_t error;
    json_t *value = json_loadb(l->text, l->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    ids->n = 0;
    if (!value) l->wrong = die_format("is not a JSON string: %s", error.text);
    else if (!json_is_string(value)) l->wrong = die_strdup("is JSON, but not a string");
    else if (tokenizer_encode(e, json_string_value(value), json_string_length(value), true, ids))
        l->wrong = die_strdup(encoder_why(e));
    else {
        l->bytes = (int64_t)json_string_length(value);
        answer(l, t, ids);
    }
    json_decref(value);
}

/* ---- blocks ---- */

static void convert_block(struct block *b, const struct tokenizer *t, int threads) {
#pragma omp parallel num_threads(threads)
    {
        struct encoder *e = encoder_make(t);
        struct ids ids = {0};
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < b->n; i++) convert_line(&b->line[i], t, e, &ids);
        ids_free(&ids);
        encoder_free(e);
    }
}

/* False at the end of the file. */
static bool read_block(struct block *b, FILE *f, const char *path) {
    size_t bytes = 0;
    for (b->n = 0; b->n < BLOCK_LINES && bytes < BLOCK_BYTES; b->n++) {
        struct line *l = &b->line[b->n];
        size_t room = 0;
        *l = (struct line){0};
        errno = 0;
        ssize_t n = getline(&l->text, &room, f);
        if (n < 0) {
            free(l->text);
            if (ferror(f)) die("cannot read %s: %s", path, strerror(errno));
            break;
        }
        bytes += l->n = (size_t)n;
    }
    return b->n > 0;
}

/* What is written, under the name it has until it is whole. */
struct part {
    char *name;
    FILE *f;
};

static _Noreturn void cannot_write(const struct part *p) {
    int reason = errno;
    unlink(p->name);
    die("cannot write %s: %s; is the disk full?", p->name, strerror(reason));
}

/* Writes the lines of a block, unless something has been wrong already. */
static void write_block(struct block *b, const char *path, int64_t first, const struct part *to,
                        struct token_counts *n, struct mistakes *m) {
    for (int64_t i = 0; i < b->n; i++) {
        struct line *l = &b->line[i];
        if (l->wrong) mistake(m, path, (int)(first + i + 1), "%s", l->wrong);
        else if (!m->n && fwrite(l->text, 1, l->n, to->f) < l->n) cannot_write(to);
        n->bytes += l->bytes;
        n->ids += l->ids;
        free(l->text);
        free(l->wrong);
    }
    n->lines += b->n;
}

static void convert_file(const char *path, const struct tokenizer *t, int threads,
                         const struct part *to, struct token_counts *n, struct mistakes *m) {
    char why[WHY_BYTES];
    int64_t size, first = 0;
    int fd = file_open(path, &size, why);
    if (fd < 0) {
        mistake(m, path, 0, "%s", why);
        return;
    }
    FILE *f = fdopen(fd, "r");
    if (!f) die("cannot read %s: %s", path, strerror(errno));
    struct block b = {die_alloc(BLOCK_LINES * sizeof *b.line), 0};
    while (read_block(&b, f, path)) {
        convert_block(&b, t, threads);
        write_block(&b, path, first, to, n, m);
        first += b.n;
    }
    free(b.line);
    fclose(f);
}

int convert_tokens(const struct deck *d, const struct tokenizer *t, int threads,
                   struct token_counts *n, struct mistakes *m) {
    int before = m->n;
    struct part to = {.name = die_format("%s.part", d->convert.to)};
    *n = (struct token_counts){0};
    if (folder_make_above(to.name))
        die("cannot make the folder of %s: %s", to.name, strerror(errno));
    to.f = fopen(to.name, "w");
    if (!to.f) die("cannot write %s: %s", to.name, strerror(errno));
    for (int i = 0; i < d->data.path.n; i++) convert_file(d->data.path.v[i], t, threads, &to, n, m);
    if (fclose(to.f)) cannot_write(&to);
    if (m->n > before) unlink(to.name);
    else if (rename(to.name, d->convert.to)) cannot_write(&to);
    free(to.name);
    return m->n > before ? -1 : 0;
}
