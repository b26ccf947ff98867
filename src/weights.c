#include "src/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"

enum { MOST_SMALL_FILE = 64 << 20 };
static const int64_t shard_bytes = 5000000000;

/* ---- names ---- */

static bool has_prefix(const char *s, const char *prefix) {
    return !strncmp(s, prefix, strlen(prefix));
}

/* A row's name in spelling number i, malloc'd; NULL past the last. `first` gets the place in a
 * stack of experts. */
static char *spelling(const char *name, int i, int64_t elements, int64_t *first) {
    enum { PREFIXES = 3, FORMS = 3 };
    int prefix = i % PREFIXES, form = i / PREFIXES, expert, skip = 0;
    const char *rest = has_prefix(name, "backbone.") ? name + strlen("backbone.") : NULL;
    const char *e = strstr(name, ".experts.");
    *first = 0;
    if (form >= FORMS) return NULL;
    static const char *const heads[PREFIXES] = {"backbone.", "model.", "language_model.backbone."};
    const char *head = rest ? heads[prefix] : prefix == 2 ? "language_model." : "";
    const char *tail = rest ? rest : name;
    if (form == 1 && !strcmp(tail, "embeddings.weight"))
        return die_format("%sembedding.weight", head);
    if (form == 2 && e && sscanf(e, ".experts.%d.%n", &expert, &skip) == 1 && skip) {
        const char *which = e + skip, *end = strstr(which, ".weight");
        *first = expert * elements;
        return die_format("%s%.*s.experts.%.*s", head, (int)(e - tail), tail,
                          end ? (int)(end - which) : 0, which);
    }
    return die_format("%s%s", head, tail);
}

const struct stored_tensor *weights_find(const struct checkpoint *c, const char *prefix,
                                         const struct param_tensor *t, int64_t *first) {
    const struct stored_tensor *found = NULL;
    char *s, *whole;
    for (int i = 0; !found && (s = spelling(t->name, i, t->elements, first)); i++) {
        found = checkpoint_find(c, whole = die_format("%s%s", prefix, s));
        free(whole);
        free(s);
    }
    return found;
}

/* ---- opening and matching ---- */

int weights_open(struct weights *w, const char *folder, struct mistakes *m) {
    *w = (struct weights){.kept_as = -1};
    return checkpoint_open(&w->checkpoint, folder, m);
}

void weights_close(struct weights *w) {
    checkpoint_close(&w->checkpoint);
    free(w->source);
    free(w->unused);
    memset(w, 0, sizeof *w);
}

/* Whether any stored tensor of a main layer ends like this. */
static bool any_ends(const struct checkpoint *c, const char *end) {
    for (int i = 0; i < c->n; i++) {
        const char *name = c->tensor[i].name;
        size_t n = strlen(name), k = strlen(end);
        if (n >= k && !strcmp(name + n - k, end) && !has_prefix(name, "mtp.")) return true;
    }
    return false;
}

void weights_settle(const struct weights *w, struct config *c) {
    const struct checkpoint *p = &w->checkpoint;
    struct deck_model *k = &c->keys;
    if (strchr(c->kinds, 'M')) {
        k->use_bias = any_ends(p, "mixer.in_proj.bias") || any_ends(p, "mixer.out_proj.bias");
        k->use_conv_bias = any_ends(p, "mixer.conv1d.bias");
    }
    if (strpbrk(c->kinds, "-E"))
        k->mlp_bias =
            any_ends(p, "mixer.up_proj.bias") || any_ends(p, "shared_experts.up_proj.bias");
    if (strchr(c->kinds, '*')) k->attention_bias = any_ends(p, "mixer.q_proj.bias");
    if (any_ends(p, "lm_head.weight")) k->tie_word_embeddings = false;
}

static char *shape_text(int n, const int64_t *dim) {
    char text[200] = "[", *p = text + 1;
    for (int i = 0; i < n; i++)
        p += snprintf(p, text + sizeof text - p, "%s%ld", i ? ", " : "", (long)dim[i]);
    snprintf(p, text + sizeof text - p, "]");
    return die_strdup(text);
}

/* Experts in a stack have the number of experts before their own shape. */
static bool shape_fits(const struct params *s, const struct param_tensor *t,
                       const struct stored_tensor *f, int *n, int64_t *dim) {
    bool stacked = t->expert >= 0 && !strstr(f->name, ".weight");
    *n = 0;
    if (stacked) dim[(*n)++] = dim_size(s->config, EXPERTS);
    for (int i = 0; i < t->n_dims; i++) dim[(*n)++] = t->dim[i];
    if (*n != f->n_dims) return false;
    for (int i = 0; i < *n; i++)
        if (dim[i] != f->dim[i]) return false;
    return true;
}

/* Another stored tensor that could be the same row's, in a spelling of its own; NULL if there is
 * none. */
static const struct stored_tensor *find_other(const struct checkpoint *c,
                                              const struct param_tensor *t,
                                              const struct stored_tensor *found) {
    const struct stored_tensor *other = NULL;
    int64_t first;
    char *s;
    for (int i = 0; !other && (s = spelling(t->name, i, t->elements, &first)); i++) {
        const struct stored_tensor *f = checkpoint_find(c, s);
        if (f && f != found) other = f;
        free(s);
    }
    return other;
}

static void match_one(struct weights *w, struct params *s, int i, char *taken, struct mistakes *m) {
    struct param_tensor *t = &s->tensor[i];
    const struct checkpoint *c = &w->checkpoint;
    const struct stored_tensor *f = weights_find(c, "", t, &w->source[i].first);
    if (!f) {
        mistake(m, c->folder, 0, "tensor %s is missing", t->name);
        return;
    }
    int n;
    int64_t dim[4];
    int number = w->source[i].tensor = (int)(f - c->tensor);
    if (!shape_fits(s, t, f, &n, dim)) {
        char *want = shape_text(n, dim), *have = shape_text(f->n_dims, f->dim);
        mistake(m, c->file[f->file].path, 0, "tensor %s has shape %s; config.json asks for %s",
                f->name, have, want);
        free(want);
        free(have);
    } else if (f->dtype != F32 && f->dtype != BF16 && f->dtype != F16) {
        mistake(m, c->file[f->file].path, 0,
                "tensor %s is stored as %s; weights are read from F32, BF16 and F16", f->name,
                dtype_name(f->dtype));
    }
    const struct stored_tensor *other = find_other(c, t, f);
    if (other)
        mistake(m, c->folder, 0,
                "tensors %s and %s are both there for the same weights; only one may be", f->name,
                other->name);
    t->stored = f->dtype;
    taken[number] = 1;
}

int weights_match(struct weights *w, struct params *s, struct mistakes *m) {
    int before = m->n, n = w->checkpoint.n;
    char *taken = die_alloc(n + 1);
    w->source = die_realloc(w->source, (s->n_tensors + 1) * sizeof *w->source);
    for (int i = 0; i < s->n_tensors; i++) {
        w->source[i] = (struct source){-1, 0};
        if (s->tensor[i].block >= 0) match_one(w, s, i, taken, m);
    }
    w->unused = die_realloc(w->unused, (n + 1) * sizeof *w->unused);
    w->n_unused = 0;
    for (int i = 0; i < n; i++)
        if (!taken[i]) w->unused[w->n_unused++] = i;
    free(taken);
    return m->n > before ? -1 : 0;
}

int weights_read(const struct weights *w, const struct params *s, struct device *d, enum dtype real,
                 struct group *g, struct mistakes *m) {
    int n;
    struct box *boxes = params_boxes(s, real, PART_VALUES, false, &n);
    boxes_to_host(d, n, boxes);
    for (int i = 0; i < n; i++) {
        const struct source *from = &w->source[boxes[i].tensor];
        boxes[i].tensor = from->tensor;
        boxes[i].first = from->first;
    }
    int bad = checkpoint_read(&w->checkpoint, g, n, boxes, m);
    free(boxes);
    return bad;
}

/* ---- writing ---- */

struct plan { /* the tensors to be written, and where each of the table's goes */
    int n;
    struct new_tensor *tensor;
    char **name;
    struct source *to;
};

static void plan_tensor(struct plan *p, const struct params *s, int i, bool transformers_names) {
    const struct param_tensor *t = &s->tensor[i];
    const char *e = strstr(t->name, ".experts.");
    bool stack = transformers_names && t->expert >= 0 && e;
    if (stack && t->expert > 0) { /* its stack began with expert 0 of the same row */
        int first = i;
        while (s->tensor[first].expert > 0) first--;
        p->to[i] = (struct source){p->to[first].tensor, t->expert * t->elements};
        return;
    }
    struct new_tensor *x = &p->tensor[p->n];
    *x = (struct new_tensor){.dtype = t->stored};
    if (stack) x->dim[x->n_dims++] = dim_size(s->config, EXPERTS);
    for (int d = 0; d < t->n_dims; d++) x->dim[x->n_dims++] = t->dim[d];
    const char *rest = transformers_names && has_prefix(t->name, "backbone.")
                           ? t->name + strlen("backbone.")
                           : NULL;
    const char *head = rest ? "model." : "", *tail = rest ? rest : t->name;
    if (stack) {
        const char *which = strchr(e + strlen(".experts."), '.') + 1;
        p->name[p->n] = die_format("%s%.*s.experts.%.*s", head, (int)(e - tail), tail,
                                   (int)(strstr(which, ".weight") - which), which);
    } else {
        p->name[p->n] = die_format("%s%s", head, tail);
    }
    x->name = p->name[p->n];
    p->to[i] = (struct source){p->n++, 0};
}

/* Whether a tensor that no row uses is by its name one that always stays fp32. */
static bool is_buffer(const struct params *s, const char *name) {
    const size_t n = strlen(name);
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_row *row = s->tensor[i].row;
        const size_t k = strlen(row->name);
        if (row->may & BUFFER && k <= n && !strcmp(name + n - k, row->name)) return true;
    }
    return false;
}

static struct plan plan_writing(const struct weights *w, const struct params *s,
                                bool transformers_names) {
    int most = s->n_tensors + (w ? w->n_unused : 0) + 1;
    struct plan p = {0, die_alloc(most * sizeof *p.tensor), die_alloc(most * sizeof *p.name),
                     die_alloc(most * sizeof *p.to)};
    for (int i = 0; i < s->n_tensors; i++)
        if (s->tensor[i].block >= 0) plan_tensor(&p, s, i, transformers_names);
    for (int i = 0; w && i < w->n_unused; i++) {
        const struct stored_tensor *f = &w->checkpoint.tensor[w->unused[i]];
        struct new_tensor *x = &p.tensor[p.n++];
        const bool other = w->kept_as >= 0 && dtype_is_real(f->dtype) && !is_buffer(s, f->name);
        *x = (struct new_tensor){.name = f->name,
                                 .dtype = other ? (enum dtype)w->kept_as : f->dtype,
                                 .n_dims = f->n_dims,
                                 .from = &w->checkpoint,
                                 .from_tensor = w->unused[i]};
        memcpy(x->dim, f->dim, sizeof x->dim);
    }
    return p;
}

/* What a model's folder has beside weights: copied as it is. */
static const char *const beside[] = {"tokenizer.json",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "vocab.json",
                                     "merges.txt",
                                     "chat_template.jinja",
                                     "generation_config.json"};
enum { BESIDE = sizeof beside / sizeof *beside };

static int small_files(const struct weights *w, const struct params *s, struct new_file *files) {
    int n = 0;
    char *text = config_text(s->config);
    files[n++] = (struct new_file){"config.json", text, (int64_t)strlen(text)};
    for (int i = 0; i < BESIDE; i++) {
        char *path =
            vocabulary_file(&s->config->vocabulary, beside[i], w ? w->checkpoint.folder : NULL);
        struct stat st;
        if (!path) continue;
        FILE *f = fopen(path, "rb");
        free(path);
        if (!f) continue;
        if (!fstat(fileno(f), &st) && S_ISREG(st.st_mode) && st.st_size <= MOST_SMALL_FILE) {
            char *data = die_alloc(st.st_size + 1);
            int64_t got = (int64_t)fread(data, 1, st.st_size, f);
            files[n++] = (struct new_file){beside[i], data, got};
        }
        fclose(f);
    }
    return n;
}

void weights_write(const char *folder, const struct weights *w, const struct params *s,
                   struct device *d, enum dtype real, bool transformers_names, struct group *g) {
    struct plan p = plan_writing(w, s, transformers_names);
    struct new_file files[BESIDE + 1];
    int n, n_files = small_files(w, s, files);
    struct box *boxes = params_boxes(s, real, PART_VALUES, true, &n);
    boxes_to_host(d, n, boxes);
    for (int i = 0; i < n; i++) {
        const struct source *to = &p.to[boxes[i].tensor];
        boxes[i].tensor = to->tensor;
        boxes[i].first = to->first;
    }
    checkpoint_write(folder, g, p.n, p.tensor, n, boxes, n_files, files, shard_bytes,
                     w ? &w->checkpoint : NULL);
    for (int i = 0; i < n_files; i++) free((char *)files[i].text);
    for (int i = 0; i < p.n; i++) free(p.name[i]);
    free(p.tensor);
    free(p.name);
    free(p.to);
    free(boxes);
}
