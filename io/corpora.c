#include "io/corpora.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "io/corpora_blend.h"
#include "io/corpora_cache.h"
#include "io/corpora_files.h"
#include "io/corpora_mock.h"
#include "io/corpora_stream.h"
#include "kernels/mistakes.h"
#include "io/token_source.h"
#include "kernels/die.h"

struct source {
    const char *path; /* as the deck has it, if the source is one path; borrowed */
    struct text_files files;
    bool cached;
    struct token_cache cache;
    struct token_stream train, held;
    int64_t documents, held_documents;
};

struct sources {
    int n;
    struct source *source;
    int64_t *weight; /* [n]; NULL: there is one source */
    bool holds_out;
    int64_t validation; /* samples of what is measured, of all sources */
    int32_t end;        /* closes a document */
};

static const int64_t MOCK_VALIDATION_FIRST = (int64_t)1 << 62; /* training does not come so far */
static const double WEIGHT_UNIT = 1e9;                         /* weights count to nine decimals */

/* The order of samples: a Feistel network over the smallest square power of two that holds n;
 * numbers that fall beyond n walk on through the network until one does not (less than four steps
 * on average). */
int64_t corpus_permute(uint64_t key, int64_t n, int64_t i) {
    int half = 1;
    while (half < 31 && (int64_t)1 << 2 * half < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (mock_mix(key + round, right) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

int corpus_mock(struct corpus *c, uint64_t seed, int64_t vocabulary, int length) {
    *c = (struct corpus){.kind = "mock",
                         .seed = seed,
                         .vocabulary = vocabulary,
                         .length = length,
                         .mask_documents = true,
                         .samples = INT64_MAX};
    c->identity = mock_mix(mock_mix(seed, (uint64_t)vocabulary), (uint64_t)length);
    return 0;
}

/* ---- opening ---- */

/* Files of bytes, as they are: a document each. */
static void read_directly(struct source *s, const struct token_source *tokens, double split) {
    uint64_t threshold = split_threshold(split), least = UINT64_MAX, greatest = 0;
    for (int64_t i = 0; i < s->files.n; i++) {
        if (s->files.file[i].hash < least) least = s->files.file[i].hash;
        if (s->files.file[i].hash > greatest) greatest = s->files.file[i].hash;
    }
    if (split > 0) threshold = split_settle(threshold, least, greatest);
    stream_init(&s->train, 1, tokens->end, tokens->vocabulary);
    stream_init(&s->held, 1, tokens->end, tokens->vocabulary);
    for (int64_t i = 0; i < s->files.n; i++) {
        const struct text_file *f = &s->files.file[i];
        bool held = f->hash < threshold;
        stream_add(held ? &s->held : &s->train, (struct piece){f->name, f->size + 1, 0, f->size});
        s->held_documents += held;
    }
    s->documents = s->files.n;
}

static int64_t samples_for_training(const struct source *s, int length) {
    int64_t tokens = stream_tokens(&s->train);
    return tokens > length ? (tokens - 1) / length : 0;
}

/* What is measured: the documents held out, or all if none are to be. */
static struct token_stream *measured(const struct sources *all, int k) {
    return all->holds_out ? &all->source[k].held : &all->source[k].train;
}

/* Samples that take every token in; the last one may be short. */
static int64_t samples_measured(const struct sources *all, int k, int length) {
    int64_t tokens = stream_tokens(measured(all, k));
    return tokens > 1 ? (tokens - 2) / length + 1 : 0;
}

/* Is there enough? */
static void judge(const struct source *s, const struct corpus_text *t, const char *found,
                  struct mistakes *m) {
    const char *where = s->path ? s->path : "data.path";
    int64_t tokens = stream_tokens(&s->train);
    if (s->documents == 0) mistake(m, where, 0, "no text file found (%s)", found);
    else if (samples_for_training(s, t->length) == 0)
        mistake(m, where, 0,
                "the text has %lld tokens%s, too few for one sample of %d and the token after it; "
                "shorten train.sequence_length or give more text",
                (long long)tokens, t->split > 0 ? " for training" : "", t->length);
}

static int source_open(struct source *s, const struct corpus_text *t, int n_paths, char **paths,
                       struct group *g, struct mistakes *m) {
    int before = m->n;
    if (text_files_list(&s->files, n_paths, paths, g, m)) return -1;
    s->cached = s->files.n > 0 && (t->tokens != &token_source_bytes || s->files.lines);
    if (!s->cached) {
        read_directly(s, t->tokens, t->split);
        return 0;
    }
    int failed = cache_open(&s->cache, &s->files, t->tokens, t->split, t->cache, t->threads, g, m,
                            &s->train, &s->held);
    s->documents = s->cache.documents;
    s->held_documents = s->cache.held_documents;
    return failed || m->n > before ? -1 : 0;
}

/* What the samples are a function of, but for the files' names and times. */
static uint64_t identity(const struct corpus_text *t, const struct sources *all) {
    XXH3_state_t *sum = XXH3_createState();
    XXH3_64bits_reset(sum);
    const uint64_t head[] = {t->seed, (uint64_t)t->length, t->tokens->hash, (uint64_t)all->n};
    XXH3_64bits_update(sum, head, sizeof head);
    XXH3_64bits_update(sum, &t->split, sizeof t->split);
    for (int k = 0; k < all->n; k++) {
        const struct source *s = &all->source[k];
        const int64_t one[] = {all->weight ? all->weight[k] : 0, s->files.n,
                               stream_tokens(&s->train), stream_tokens(&s->held)};
        XXH3_64bits_update(sum, one, sizeof one);
        for (int64_t i = 0; i < s->files.n; i++)
            XXH3_64bits_update(sum, &s->files.file[i].hash, sizeof s->files.file[i].hash);
    }
    uint64_t result = XXH3_64bits_digest(sum);
    XXH3_freeState(sum);
    return result;
}

static struct sources *sources_new(const struct corpus_text *t) {
    struct sources *all = die_alloc(sizeof *all);
    all->source = die_alloc((unsigned long)(t->n_weights + 1) * sizeof *all->source);
    all->end = t->tokens->end;
    all->holds_out = t->split > 0;
    if (t->n_weights == 0) {
        all->n = 1;
        return all;
    }
    all->weight = die_alloc((unsigned long)t->n_weights * sizeof *all->weight);
    for (int i = 0; i < t->n_weights; i++) {
        if (!(t->weights[i] > 0)) continue;
        int64_t weight = llround(t->weights[i] * WEIGHT_UNIT);
        all->source[all->n].path = t->paths[i];
        all->weight[all->n++] = weight ? weight : 1;
    }
    return all;
}

int corpus_text(struct corpus *c, const struct corpus_text *t, struct group *g,
                struct mistakes *m) {
    *c = (struct corpus){.kind = "text",
                         .seed = t->seed,
                         .vocabulary = t->tokens->vocabulary,
                         .length = t->length,
                         .mask_documents = t->mask_documents,
                         .own = sources_new(t)};
    int before = m->n;
    for (int k = 0; k < c->own->n; k++) {
        struct source *s = &c->own->source[k];
        int failed = s->path ? source_open(s, t, 1, (char *[]){(char *)s->path}, g, m)
                             : source_open(s, t, t->n_paths, t->paths, g, m);
        c->samples += samples_for_training(s, t->length);
        c->own->validation += samples_measured(c->own, k, t->length);
        if (!failed) judge(s, t, corpus_describe(c), m);
    }
    c->identity = identity(t, c->own);
    if (m->n == before && t->split > 0 && c->own->validation == 0)
        mistake(m, "data.path", 0,
                "data.split needs at least two documents that differ (a file is a document, or "
                "each line of a *.jsonl): %s",
                corpus_describe(c));
    if (m->n == before) return 0;
    corpus_free(c);
    return -1;
}

void corpus_validation(const struct corpus *c, struct corpus *v) {
    *v = *c;
    v->validation = true;
    v->samples = c->own ? c->own->validation : MOCK_VALIDATION_FIRST;
}

/* ---- samples ---- */

/* length + 1 tokens of a sample for training. */
static void read_training(const struct corpus *c, int64_t i, int32_t *tokens) {
    const struct sources *all = c->own;
    int k = 0;
    if (all->weight) k = blend_turn(all->n, all->weight, i, &i);
    struct source *s = &all->source[k];
    int64_t n = samples_for_training(s, c->length);
    uint64_t key = mock_mix(c->seed, (uint64_t)(i / n));
    if (k) key = mock_mix(key, (uint64_t)k);
    int64_t sample = corpus_permute(key, n, i % n);
    stream_read(&s->train, sample * c->length, (int64_t)c->length + 1, tokens);
}

/* The same of a sample that is measured; returns how many of them are text. */
static int64_t read_measured(const struct corpus *c, int64_t i, int32_t *tokens) {
    const struct sources *all = c->own;
    int64_t sample = corpus_permute(mock_mix(c->seed, UINT64_MAX), c->samples, i % c->samples);
    int k = 0;
    for (int64_t n; sample >= (n = samples_measured(all, k, c->length)); k++) sample -= n;
    struct token_stream *s = measured(all, k);
    int64_t first = sample * c->length, n = stream_tokens(s) - first;
    if (n > c->length + 1) n = c->length + 1;
    stream_read(s, first, n, tokens);
    for (int64_t t = n; t <= c->length; t++) tokens[t] = all->end;
    return n;
}

void corpus_sample(const struct corpus *c, int64_t i, int32_t *tokens, int32_t *start,
                   bool *target_counts) {
    int32_t close = END_OF_MOCK;
    int64_t text = (int64_t)c->length + 1;
    if (c->own) {
        close = c->own->end;
        if (c->validation) text = read_measured(c, i, tokens);
        else read_training(c, i, tokens);
    } else {
        if (c->validation) i += MOCK_VALIDATION_FIRST;
        mock_tokens(c->seed, i, c->vocabulary, c->length + 1, tokens);
    }
    int32_t begin = 0;
    for (int t = 0; t < c->length; t++) {
        if (t == text) begin = t; /* what fills up is a document of its own */
        bool last = c->mask_documents && t < text && tokens[t] == close;
        start[t] = begin;
        target_counts[t] = !last && t + 1 < text;
        if (last) begin = t + 1;
    }
}

/* ---- for people ---- */

struct text {
    char *to;
    size_t room;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t, const char *fmt, ...) {
    va_list more;
    va_start(more, fmt);
    int n = vsnprintf(t->to, t->room, fmt, more);
    va_end(more);
    size_t used = n < 0 ? 0 : (size_t)n < t->room ? (size_t)n : t->room - 1;
    t->to += used;
    t->room -= used;
}

static void add_left_out(struct text *line, const struct sources *all) {
    enum { WAYS = 6 };
    static const char *const what[WAYS] = {"binary",
                                           "unreadable",
                                           "empty",
                                           "named twice",
                                           "folders linked or hidden",
                                           "lines without \"text\""};
    int64_t n[WAYS] = {0};
    for (int k = 0; k < all->n; k++) {
        const struct text_files *f = &all->source[k].files;
        const int64_t more[WAYS] = {f->binary, f->unreadable, f->empty,
                                    f->twice,  f->folders,    all->source[k].cache.without_text};
        for (int i = 0; i < WAYS; i++) n[i] += more[i];
    }
    const char *before = "; left out: ";
    for (int i = 0; i < WAYS; i++) {
        if (n[i] == 0) continue;
        add(line, "%s%lld %s", before, (long long)n[i], what[i]);
        before = ", ";
    }
}

const char *corpus_describe(const struct corpus *c) {
    static char buffer[1024];
    struct text line = {buffer, sizeof buffer};
    if (!c->own) {
        add(&line, "mock: seeded tokens below %lld", (long long)c->vocabulary);
        return buffer;
    }
    const struct sources *all = c->own;
    int64_t files = 0, bytes = 0, documents = 0, held = 0, tokens = 0;
    double weights = 0;
    for (int k = 0; k < all->n; k++) {
        const struct source *s = &all->source[k];
        files += s->files.n;
        bytes += s->files.bytes;
        documents += s->documents;
        held += s->held_documents;
        tokens += stream_tokens(&s->train) + stream_tokens(&s->held);
        weights += all->weight ? (double)all->weight[k] : 0;
    }
    add(&line,
        "text: %lld files, %lld bytes, %lld documents, %lld tokens, %lld samples of %d a pass",
        (long long)files, (long long)bytes, (long long)documents, (long long)tokens,
        (long long)c->samples, c->length);
    if (held)
        add(&line, "; %lld documents held out, %lld samples", (long long)held,
            (long long)all->validation);
    for (int k = 0; all->weight && k < all->n; k++)
        add(&line, "%s%.4g %% %.60s", k ? ", " : "; ", 100 * (double)all->weight[k] / weights,
            all->source[k].path);
    add_left_out(&line, all);
    return buffer;
}

void corpus_free(struct corpus *c) {
    struct sources *all = c->own;
    c->own = NULL;
    if (!all || c->validation) return;
    for (int k = 0; k < all->n; k++) {
        struct source *s = &all->source[k];
        stream_free(&s->train);
        stream_free(&s->held);
        if (s->cached) cache_free(&s->cache);
        text_files_free(&s->files);
    }
    free(all->source);
    free(all->weight);
    free(all);
}
