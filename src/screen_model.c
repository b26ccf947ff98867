/* The tables of the model and of the layout (screen.h). */
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "src/engine.h"
#include "src/machine.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/plan_pipeline.h"
#include "src/recompute.h"
#include "src/screen.h"
#include "src/units.h"

/* ---------------------------------------------------------------- the model */

struct sizes {
    int64_t all, active, here;
};

/* Adds up the tensors for which `wanted` is the letter of their layer ('e' the embedding, 'h' what
 * is behind the last layer, 'p' multi-token prediction). */
static char letter_of(const struct config *c, const struct param_tensor *t) {
    if (t->block < 0) return 'p';
    if (t->layer >= 0) return c->kinds[t->layer];
    return strstr(t->row->name, "embeddings") ? 'e' : 'h';
}

static struct sizes sizes_of(const struct config *c, const struct params *s, char letter) {
    struct sizes n = {0};
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        if (letter_of(c, t) != letter) continue;
        n.all += t->elements;
        if (letter == 'e') n.active += c->keys.tie_word_embeddings ? t->elements : 0;
        else if (letter != 'p' && t->expert < c->keys.num_experts_per_tok) n.active += t->elements;
    }
    for (int i = 0; i < s->n_blocks; i++) {
        const struct param_block *b = &s->block[i];
        char of = b->layer >= 0                        ? c->kinds[b->layer]
                  : strstr(b->row->name, "embeddings") ? 'e'
                                                       : 'h';
        if (of == letter && b->here) n.here += b->elements;
    }
    return n;
}

static void say_sizes(const struct output *o, const char *letter, const char *kind, int layers,
                      const struct sizes *n) {
    char count[UNIT_TEXT] = "", all[UNIT_TEXT], active[UNIT_TEXT], here[UNIT_TEXT];
    if (layers) snprintf(count, sizeof count, "%d", layers);
    say(o, "  %-3s %-38s %6s %12s %12s %12s", letter, kind, count, count_text((double)n->all, all),
        n->active ? count_text((double)n->active, active) : "-",
        n->here ? count_text((double)n->here, here) : "-");
}

/* What a letter of the table stands for, malloc'd. */
static char *part_text(const struct config *c, char letter) {
    const struct layer_kind *kind = layer_kind(letter);
    if (kind) {
        char *sizes = kind->describe(&c->keys), *text = die_format("%s, %s", kind->name, sizes);
        free(sizes);
        return text;
    }
    if (letter == 'e')
        return die_format("embedding, %ld words x %ld", (long)c->keys.vocab_size,
                          (long)c->keys.hidden_size);
    if (letter == 'p') return die_strdup("multi-token prediction, only counted");
    return die_format("norm and head%s", c->keys.tie_word_embeddings ? " (tied)" : "");
}

/* The line of a part of the model, if it has any, which is added to the total. */
static void say_part(const struct output *o, const struct config *c, const struct params *s,
                     char letter, struct sizes *total) {
    const struct sizes n = sizes_of(c, s, letter);
    if (!n.all) return;
    char *text = part_text(c, letter);
    say_sizes(o, layer_kind(letter) ? (char[]){letter, 0} : "", text, config_count(c, letter), &n);
    *total = (struct sizes){total->all + n.all, total->active + n.active, total->here + n.here};
    free(text);
}

void screen_model(const struct output *o, const struct run *r) {
    const struct config *c = r->engine->config;
    const struct deck *d = r->engine->deck;
    struct model model;
    struct staging stages;
    struct sizes total = {0};
    if (!o->speaks) return;
    staging_init(&stages, r->engine->deck, c, r->shape);
    model_init(&model, c, r->shape, r->comm->rank, &stages, false);
    const char *from = *d->model.preset ? d->model.preset : *d->model.from ? d->model.from : "";
    char *title = die_format("Model  %s%s%.40s%s", from, *from ? ": " : "", c->kinds,
                             strlen(c->kinds) > 40 ? "..." : "");
    say(o, "\n%-44s %6s %12s %12s %12s", title, "layers", "parameters", "active", "on rank 0");
    say_part(o, c, &model.params, 'e', &total);
    for (int i = 0; layer_kind_at(i); i++)
        say_part(o, c, &model.params, layer_kind_at(i)->letter, &total);
    say_part(o, c, &model.params, 'h', &total);
    say_part(o, c, &model.params, 'p', &total);
    say_sizes(o, "", "all", c->n_layers, &total);
    free(title);
    model_free(&model);
    staging_free(&stages);
}

/* ---------------------------------------------------------------- the layout */

/* "0-3,8" : the ranks for which like[r] == which */
static char *rank_list(int n, const int *like, int which) {
    char *list = die_strdup("");
    for (int r = 0; r < n; r++) {
        if (like[r] != which) continue;
        int end = r;
        while (end + 1 < n && like[end + 1] == which) end++;
        text_add(&list, "%s%d", *list ? "," : "", r);
        if (end > r) text_add(&list, "-%d", end);
        r = end;
    }
    return list;
}

static bool same_plan(const struct rank_plan *a, const struct rank_plan *b) {
    return !memcmp(a, b, offsetof(struct rank_plan, work)); /* of memory: this table's matter */
}

static void say_plan(const struct output *o, const char *ranks, const struct rank_plan *p,
                     double unit) {
    char list[31];
    snprintf(list, sizeof list, strlen(ranks) > 30 ? "%.27s..." : "%s", ranks);
    say(o, "  %-30s %10.2f %10.2f %9.2f %11.2f %8.2f %9.2f", list, (double)p->parameters / unit,
        (double)p->gradients / unit, (double)p->moments / unit, (double)p->activations / unit,
        (double)p->scratch / unit, (double)plan_bytes(p) / unit);
}

/* Ranks that need the same are one line. */
static void say_groups(const struct output *o, const struct machine *h, double unit) {
    enum { MOST = 6 };
    int *like = die_alloc((size_t)h->ranks * sizeof *like), groups = 0;
    for (int r = 0; r < h->ranks; r++) {
        int of = 0;
        while (!same_plan(&h->rank[of].plan, &h->rank[r].plan)) of++;
        like[r] = of;
    }
    for (int r = 0; r < h->ranks; r++) {
        if (like[r] != r || ++groups > MOST) continue;
        char *ranks = rank_list(h->ranks, like, r),
             *named = die_format("rank%s %s", strpbrk(ranks, "-,") ? "s" : "", ranks);
        say_plan(o, named, &h->rank[r].plan, unit);
        free(ranks);
        free(named);
    }
    if (groups > MOST) say(o, "  and %d more kinds of rank", groups - MOST);
    free(like);
}

static void say_stages(const struct output *o, const struct run *r) {
    struct staging s;
    staging_init(&s, r->engine->deck, r->engine->config, r->shape);
    char *text = staging_text(&s, r->engine->config);
    say(o, "  stages %s, schedule %s: %.1f %% idle by plan", text, schedule_kind_name(s.shape.kind),
        100 * plan_pipeline_idle(r->engine->deck, r->engine->config, r->shape));
    free(text);
    staging_free(&s);
}

void screen_layout(const struct output *o, const struct run *r, const struct machine *h) {
    const struct mesh_shape *s = r->shape;
    char bytes[UNIT_TEXT], have[UNIT_TEXT];
    double most = 0;
    for (int i = 0; i < h->ranks; i++)
        if ((double)plan_bytes(&h->rank[i].plan) > most)
            most = (double)plan_bytes(&h->rank[i].plan);
    bool gib = most >= 1073741824;
    char *stages = s->pipeline > 1 ? die_format("pipeline %d", s->pipeline) : NULL;
    bool away = s->expert > 1 || s->expert_tensor != s->tensor; /* of tokens */
    char *experts = away && strchr(r->engine->config->kinds, 'E')
                        ? die_format(", expert %d x %d", s->expert, s->expert_tensor)
                        : die_strdup("");
    char *title = die_format("Layout  %s%sdata %d x tensor %d%s%s%s", stages ? stages : "",
                             stages ? " x " : "", s->data, s->tensor,
                             r->engine->deck->parallel.sequence ? ", sequence" : "", experts,
                             recompute_layers(r->engine->deck) ? ", recompute"
                             : recompute_ops(r->engine->deck)  ? ", recompute chosen"
                                                               : "");
    say(o, "\n%-32s %10s %10s %9s %11s %8s %9s", title, "parameters", "gradients", "moments",
        "activations", "scratch", gib ? "sum GiB" : "sum MiB");
    say_groups(o, h, gib ? 1073741824.0 : 1048576.0);
    double need = (double)machine_host_bytes(h, h->fullest),
           memory = (double)h->rank[h->first[h->fullest]].memory;
    say(o, "  host %s: %d rank%s plan%s %s of its %s (%.*f %%); the program and MPI come on top",
        h->rank[h->first[h->fullest]].name, machine_host_ranks(h, h->fullest),
        machine_host_ranks(h, h->fullest) == 1 ? "" : "s",
        machine_host_ranks(h, h->fullest) == 1 ? "s" : "", bytes_text(need, bytes),
        bytes_text(memory, have), 100 * need / memory < 10 ? 1 : 0, 100 * need / memory);
    if (stages && o->speaks) say_stages(o, r);
    free(experts);
    free(stages);
    free(title);
}
