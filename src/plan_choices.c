#include "src/plan_choices.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/choose_context.h"
#include "src/config.h"
#include "src/costs.h"
#include "src/deck.h"
#include "src/planning.h"
#include "src/recorded.h"
#include "src/staging.h"

double plan_seconds(const struct costs *c, double network) {
    return costs_total(c).least_s + (double)costs_sent(c) / network;
}

/* What one way costs a rank in a step. */
struct way {
    double sent, all_sent; /* bytes: on the groups it is about; on all */
    double seconds;
    int64_t memory;
};

static double sent_on(const struct costs *c, const char *group) {
    for (int i = 0; i < c->n_groups; i++)
        if (!strcmp(c->group[i].name, group)) return (double)c->group[i].bytes;
    return 0;
}

/* groups: two names. False if it cannot be planned. */
static bool plan_way(const struct plan_setting *s, const struct deck *d,
                     const struct mesh_shape *shape, int rank, const char *const groups[2],
                     struct way *w) {
    struct rank_plan plan;
    struct costs costs;
    struct mistakes m = {0};
    bool done = !plan_rank(d, s->config, shape, rank, s->speed, s->schedules, &plan, &costs, &m);
    mistakes_free(&m);
    if (!done) return false;
    *w = (struct way){.sent = sent_on(&costs, groups[0]) + sent_on(&costs, groups[1]),
                      .all_sent = (double)costs_sent(&costs),
                      .seconds = plan_seconds(&costs, s->network),
                      .memory = plan_bytes(&plan)};
    return true;
}

/* The pipeline coordinate with most layers of a kind. */
static int stage_of(const struct plan_setting *s, const struct mesh_shape *shape, char kind) {
    struct staging stages;
    int best = 0, most = -1;
    if (shape->pipeline == 1) return 0;
    int *n = die_alloc((size_t)shape->pipeline * sizeof *n);
    staging_init(&stages, s->deck, s->config, shape);
    for (int i = 0; i < s->config->n_layers; i++)
        n[staging_rank(&stages, staging_of_layer(&stages, i))] += s->config->kinds[i] == kind;
    for (int p = 0; p < shape->pipeline; p++)
        if (n[p] > most) best = p, most = n[p];
    staging_free(&stages);
    free(n);
    return best;
}

/* ---- context ---- */

/* A kind of layer with two ways across the context ranks, of which either may be impossible. */
struct context_choice {
    char kind;
    const char *name, *key, *ways[2]; /* the second: heads */
    bool heads;                       /* taken */
    int n;
    struct way way[2];
};

static int context_choices(const struct plan_setting *s, struct context_choice found[2]) {
    const struct deck *d = s->deck;
    struct parallel taken = {.shape = *s->shape};
    int n = 0;
    if (s->shape->context == 1) return 0;
    context_choose(d, &taken);
    struct context_choice all[] = {
        {.kind = '*',
         .name = "attention",
         .key = "context_attention",
         .ways = {"ring", "heads"},
         .heads = taken.attention_heads},
        {.kind = 'M',
         .name = "Mamba",
         .key = "context_mamba",
         .ways = {"state", "heads"},
         .heads = taken.mamba_heads},
    };
    static const char *const groups[] = {"context", ""};
    for (int i = 0; i < 2; i++) {
        struct context_choice *c = &all[i];
        if (!strchr(s->config->kinds, c->kind)) continue;
        const int rank = mesh_rank(s->shape, stage_of(s, s->shape, c->kind), 0, 0, 0),
                  ways = context_has_heads(d, c->kind) ? 2 : 1;
        for (int way = 0; way < ways; way++) {
            struct deck other = *d;
            /* What is left to choose by itself must not change with it. */
            other.parallel.context_attention = taken.attention_heads ? "heads" : "ring";
            other.parallel.context_mamba = taken.mamba_heads ? "heads" : "state";
            *(i ? &other.parallel.context_mamba : &other.parallel.context_attention) = c->ways[way];
            if (plan_way(s, &other, s->shape, rank, groups, &c->way[way])) c->n++;
        }
        if (c->n == ways) found[n++] = *c;
    }
    return n;
}

static bool is_auto(const struct deck *d, const struct context_choice *c) {
    return !strcmp(c->kind == 'M' ? d->parallel.context_mamba : d->parallel.context_attention,
                   "auto");
}

static void print_context(FILE *f, const struct plan_setting *s) {
    struct context_choice found[2];
    const int n = context_choices(s, found);
    if (!n) return;
    fprintf(f, "\n%-24s %10s %12s %12s   a rank of %d, in a step, all layers\n",
            "across context ranks", "way", "MB sent", "ms at least", s->shape->context);
    for (int i = 0; i < n; i++) {
        const struct context_choice *c = &found[i];
        for (int way = 0; way < c->n; way++) {
            fprintf(f, "%-24s %10s %12.3f %12.2f", way ? "" : c->name, c->ways[way],
                    1e-6 * c->way[way].sent, 1e3 * c->way[way].seconds);
            if (way != c->heads) fputc('\n', f);
            else
                fprintf(f, "   taken: %s\n",
                        !is_auto(s->deck, c) ? "the deck says so"
                        : c->n == 1          ? "heads cannot be shared out"
                                             : "it sends least");
        }
    }
}

static void json_context(FILE *f, const struct plan_setting *s) {
    struct context_choice found[2];
    const int n = context_choices(s, found);
    if (!n) return;
    fprintf(f, ",\n  \"context_ways\": {");
    for (int i = 0; i < n; i++) {
        const struct context_choice *c = &found[i];
        fprintf(f, "%s\n    \"%s\": {\"taken\": \"%s\"", i ? "," : "", c->key, c->ways[c->heads]);
        for (int way = 0; way < c->n; way++)
            fprintf(f, ", \"%s\": {\"sent\": %.0f, \"least_seconds\": %.6g}", c->ways[way],
                    c->way[way].sent, c->way[way].seconds);
        fputc('}', f);
    }
    fputs("\n  }", f);
}

/* ---- experts ---- */

/* Recorded loads, or none: no layers. */
static struct recorded recorded(const struct plan_setting *s) {
    struct mistakes m = {0};
    struct recorded r = {0};
    if (*s->deck->plan.routing) recorded_read(&r, s->deck, s->config, s->shape, &m);
    mistakes_free(&m);
    return r;
}

/* Which of n ranks of the expert group has most rows in all layers. */
static int fullest_of(const struct loads *l, int n) {
    int best = 0;
    double most = -1; /* a record's layers may have more together than an integer counts */
    const int64_t held = l->experts / n;
    for (int g = 0; g < n && l->layers; g++) {
        double load = 0;
        for (int i = 0; i < l->layers; i++)
            for (int64_t e = g * held; e < (g + 1) * held; e++)
                load += (double)l->n[i * l->experts + e];
        if (load > most) best = g, most = load;
    }
    return best;
}

static double worst_of(const struct loads *l, int n) {
    double worst = 1;
    for (int i = 0; i < l->layers; i++) {
        const double x = loads_imbalance_of(l, i, n, NULL);
        if (x > worst) worst = x;
    }
    return worst;
}

struct expert_mesh {
    struct mesh_shape shape;
    struct way way;
    double imbalance;
    bool taken;
};

/* The meshes of experts that these ranks allow: experts on 1, 2, .. ranks; not split, split as
 * dense layers are, or as the deck says. */
static int expert_meshes(const struct plan_setting *s, const struct loads *l,
                         struct expert_mesh **all) {
    static const char *const groups[] = {"expert", "expert_tensor"};
    const struct mesh_shape *here = s->shape;
    const int ranks = here->data * here->context * here->tensor,
              parts[] = {1, here->tensor, here->expert_tensor};
    int n = 0;
    *all = NULL;
    if (!strchr(s->config->kinds, 'E') || ranks == 1) return 0;
    for (int e = 1; e <= ranks; e++)
        for (int i = 0; i < 3; i++) {
            struct expert_mesh x = {.shape = *here};
            struct deck d = *s->deck;
            bool again = (i > 0 && parts[i] == parts[0]) || (i > 1 && parts[i] == parts[1]);
            if (again || ranks % (e * parts[i]) || s->config->keys.n_routed_experts % e) continue;
            d.parallel.expert = x.shape.expert = e;
            d.parallel.expert_tensor = x.shape.expert_tensor = parts[i];
            x.shape.expert_data = ranks / (e * parts[i]);
            x.imbalance = worst_of(l, e);
            x.taken = e == here->expert && parts[i] == here->expert_tensor;
            const int rank =
                mesh_rank_expert(&x.shape, stage_of(s, here, 'E'), 0, fullest_of(l, e), 0);
            if (!plan_way(s, &d, &x.shape, rank, groups, &x.way)) continue;
            *all = die_realloc(*all, (size_t)(n + 1) * sizeof **all);
            (*all)[n++] = x;
        }
    return n;
}

static void print_experts(FILE *f, const struct plan_setting *s) {
    struct recorded r = recorded(s);
    struct expert_mesh *x;
    const int n = expert_meshes(s, &r.loads, &x);
    if (n)
        fprintf(f,
                "\nmeshes of experts: %s rank in a step\n%8s %14s %12s %12s %12s %12s %12s %10s\n",
                r.loads.layers ? "the fullest" : "a", "expert", "expert_tensor", "expert_data",
                "MB of tokens", "MB sent", "ms at least", "MiB", "imbalance");
    for (int i = 0; i < n; i++) {
        const struct mesh_shape *m = &x[i].shape;
        const struct way *w = &x[i].way;
        fprintf(f, "%8d %14d %12d %12.3f %12.3f %12.2f %12.1f", m->expert, m->expert_tensor,
                m->expert_data, 1e-6 * w->sent, 1e-6 * w->all_sent, 1e3 * w->seconds,
                (double)w->memory / 1048576);
        if (r.loads.layers) fprintf(f, " %10.2f", x[i].imbalance);
        else fprintf(f, " %10s", "?");
        fprintf(f, "%s\n", x[i].taken ? "   this one" : "");
    }
    free(x);
    recorded_free(&r);
}

static void json_experts(FILE *f, const struct plan_setting *s) {
    struct recorded r = recorded(s);
    struct expert_mesh *x;
    const int n = expert_meshes(s, &r.loads, &x);
    if (n) fprintf(f, ",\n  \"expert_meshes\": [");
    for (int i = 0; i < n; i++) {
        const struct mesh_shape *m = &x[i].shape;
        const struct way *w = &x[i].way;
        fprintf(f,
                "%s\n    {\"expert\": %d, \"expert_tensor\": %d, \"expert_data\": %d, "
                "\"taken\": %s, \"tokens_sent\": %.0f, \"sent\": %.0f, \"least_seconds\": %.6g, "
                "\"bytes\": %ld",
                i ? "," : "", m->expert, m->expert_tensor, m->expert_data,
                x[i].taken ? "true" : "false", w->sent, w->all_sent, w->seconds, (long)w->memory);
        if (r.loads.layers) fprintf(f, ", \"imbalance\": %.6g", x[i].imbalance);
        fputc('}', f);
    }
    if (n) fputs("\n  ]", f);
    free(x);
    recorded_free(&r);
}

/* ---- loads ---- */

void plan_loads_text(FILE *f, const struct plan_setting *s) {
    struct recorded r = recorded(s);
    const struct loads *l = &r.loads;
    if (l->layers)
        fprintf(f,
                "\nchoices as recorded in %s (step %ld), %s; loads, the fullest over the mean\n"
                "%6s %10s %20s\n",
                s->deck->plan.routing, (long)r.step,
                r.choices ? "of every rank" : "in these proportions on every rank", "layer",
                "expert", "rank along expert");
    for (int i = 0; i < l->layers; i++) {
        int fullest = 0;
        const double x = loads_imbalance_of(l, i, s->shape->expert, &fullest);
        fprintf(f, "%6d %10.2f %13.2f (%d)\n", l->layer[i], loads_imbalance(l, i), x, fullest);
    }
    recorded_free(&r);
}

void plan_loads_json(FILE *f, const struct plan_setting *s) {
    struct recorded r = recorded(s);
    const struct loads *l = &r.loads;
    for (int i = 0; i < l->layers; i++) {
        int fullest = 0;
        const double x = loads_imbalance_of(l, i, s->shape->expert, &fullest);
        fprintf(f, "%s{\"layer\": %d, \"expert\": %.6g, \"rank\": %.6g, \"fullest_rank\": %d}",
                i ? ", " : ",\n  \"imbalance\": [", l->layer[i], loads_imbalance(l, i), x, fullest);
    }
    if (l->layers) fputc(']', f);
    recorded_free(&r);
}

void plan_choices_text(FILE *f, const struct plan_setting *s) {
    print_context(f, s);
    print_experts(f, s);
}

void plan_choices_json(FILE *f, const struct plan_setting *s) {
    json_context(f, s);
    json_experts(f, s);
}
