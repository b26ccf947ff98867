#include "src/config.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/yaml.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config_json.h"
#include "src/deck_table.h"
#include "src/pattern.h"
#include "src/presets.h"

/* Larger than anything that will be trained, small enough that no product of sizes overflows. */
static const double most_parameters = 1e15;

struct settling {
    struct config *c;
    struct deck *d;
    struct mistakes *m;
    struct config_file file;
    char *preset_origin;             /* "preset NAME" */
    char *preset_kinds, *preset_mtp; /* as the preset says, or NULL */
};

/* A mistake about a model key, at whoever's place it came from. */
static void __attribute__((format(printf, 3, 4)))
wrong(struct settling *s, const char *key, const char *fmt, ...) {
    char what[512], full[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    snprintf(full, sizeof full, "model.%s", key);
    if (!deck_given(s->d, full) && config_file_has(&s->file, key))
        config_file_mistake(&s->file, s->m, key, what);
    else deck_mistake(s->d, s->m, full, "%s", what);
}

static bool given(const struct settling *s, const char *key) {
    char full[128];
    snprintf(full, sizeof full, "model.%s", key);
    return deck_given(s->d, full);
}

/* ---------------------------------------------------------------- presets */

static void take_preset(struct settling *s) {
    const char *name = s->d->model.preset, *text = preset_text(name);
    const char *const *names;
    int n = preset_names(&names);
    if (!text) {
        const char *near = mistakes_nearest(name, n, names);
        char *list = NULL;
        size_t size;
        FILE *f = open_memstream(&list, &size);
        if (!f) die("no memory for a message");
        for (int i = 0; i < n; i++) fprintf(f, "%s%s", i ? ", " : "", names[i]);
        fclose(f);
        wrong(s, "preset", "there is no '%.60s'%s%s%s; there are %s", name,
              near ? "; did you mean " : "", near ? near : "", near ? "?" : "", list);
        free(list);
        return;
    }
    struct mistakes none = {0};
    struct yaml_deck y;
    if (yaml_deck_read_text(&y, name, text, strlen(text), &none)) bug("preset: %s", none.text[0]);
    s->preset_origin = die_format("preset %s", name);
    for (int i = 0; i < y.n; i++) {
        const struct yaml_entry *e = &y.entry[i];
        if (e->begins_section) continue;
        char *problem = NULL, *full = die_format("model.%s", e->key);
        if (!strcmp(e->key, "hybrid_override_pattern"))
            problem = pattern_from_text(e->value[0], false, &s->preset_kinds);
        else if (!strcmp(e->key, "mtp_hybrid_override_pattern"))
            problem = pattern_from_text(e->value[0], false, &s->preset_mtp);
        else if (!deck_given(s->d, full))
            problem = deck_try(s->d, full, e->value[0], s->preset_origin);
        if (problem) bug("preset %s: %s: %s", name, e->key, problem);
        free(full);
    }
    yaml_deck_free(&y);
}

/* ---------------------------------------------------------------- the order of the layers */

/* Letters from the person's own pattern or list, if there is one; both must agree. */
static char *own_kinds(struct settling *s, const char *text_key, const char *text,
                       const char *list_key, const struct deck_texts *list) {
    char *from_text = NULL, *from_list = NULL, *problem = NULL;
    bool torchtitan = !strcmp(s->d->model.pattern_dialect, "torchtitan");
    if (given(s, text_key) && (problem = pattern_from_text(text, torchtitan, &from_text)))
        wrong(s, text_key, "%s", problem);
    free(problem);
    problem = NULL;
    if (given(s, list_key) && (problem = pattern_from_list(list->n, list->v, &from_list)))
        wrong(s, list_key, "%s", problem);
    free(problem);
    if (from_text && from_list && strcmp(from_text, from_list))
        wrong(s, list_key, "says other layers than %s", text_key);
    if (!from_text) return from_list;
    free(from_list);
    return from_text;
}

static void set_text(struct settling *s, const char *key, const char *now, const char *value,
                     const char *origin) {
    if (strcmp(now, value)) deck_set(s->d, key, value, origin);
}

static void settle_layers(struct settling *s) {
    struct deck_model *k = &s->d->model;
    struct config *c = s->c;
    c->kinds = own_kinds(s, "hybrid_override_pattern", k->hybrid_override_pattern,
                         "layers_block_type", &k->layers_block_type);
    bool own = c->kinds != NULL;
    const char *origin = given(s, "hybrid_override_pattern") || own ? "the pattern"
                         : s->preset_origin                         ? s->preset_origin
                                                                    : s->file.path;
    if (!own && s->preset_kinds) c->kinds = die_strdup(s->preset_kinds);
    if (!own && s->file.kinds) c->kinds = die_strdup(s->file.kinds);
    if (!c->kinds) return;
    c->n_layers = (int)strlen(c->kinds);
    bool counted =
        given(s, "num_hidden_layers") || (!own && config_file_has(&s->file, "num_hidden_layers"));
    if (counted && k->num_hidden_layers && k->num_hidden_layers != c->n_layers)
        wrong(s, "num_hidden_layers", "%" PRId64 ", but the pattern has %d layers",
              k->num_hidden_layers, c->n_layers);
    char number[32];
    snprintf(number, sizeof number, "%d", c->n_layers);
    if (k->num_hidden_layers != c->n_layers)
        deck_set(s->d, "model.num_hidden_layers", number, "the pattern");
    set_text(s, "model.hybrid_override_pattern", k->hybrid_override_pattern, c->kinds, origin);
}

static void settle_mtp(struct settling *s) {
    struct deck_model *k = &s->d->model;
    struct config *c = s->c;
    char *one = own_kinds(s, "mtp_hybrid_override_pattern", k->mtp_hybrid_override_pattern,
                          "mtp_layers_block_type", &k->mtp_layers_block_type);
    const char *origin = one                 ? "the pattern"
                         : s->preset_mtp     ? s->preset_origin
                         : s->file.mtp_kinds ? s->file.path
                                             : "default";
    if (!one && s->preset_mtp) one = die_strdup(s->preset_mtp);
    if (!one && s->file.mtp_kinds) one = die_strdup(s->file.mtp_kinds);
    if (!one) one = die_strdup("*E");
    int depths = (int)k->num_nextn_predict_layers, n = (int)strlen(one);
    c->n_mtp = depths * n;
    c->mtp_kinds = die_alloc((unsigned long)c->n_mtp + 1);
    for (int i = 0; i < depths; i++) memcpy(c->mtp_kinds + i * n, one, (size_t)n);
    if (depths || given(s, "mtp_hybrid_override_pattern"))
        set_text(s, "model.mtp_hybrid_override_pattern", k->mtp_hybrid_override_pattern, one,
                 origin);
    free(one);
}

/* ---------------------------------------------------------------- rules */

/* The letter of the only kind of layer that reads a key; 0 if all do. */
static char reader_of(const char *key) {
    static const struct {
        char kind;
        const char *keys;
    } readers[] = {
        {'M',
         " mamba_num_heads mamba_head_dim mamba_hidden_act ssm_state_size n_groups conv_kernel "
         "chunk_size use_bias use_conv_bias time_step_min time_step_max time_step_floor "},
        {'*', " num_attention_heads head_dim attention_bias attention_dropout "},
        {'-', " intermediate_size "},
        {'E', " n_group topk_group norm_topk_prob routed_scaling_factor moe_intermediate_size "
              "moe_shared_expert_intermediate_size "},
    };
    char word[128];
    snprintf(word, sizeof word, " %s ", key);
    for (unsigned i = 0; i < sizeof readers / sizeof *readers; i++)
        if (strstr(readers[i].keys, word)) return readers[i].kind;
    return 0;
}

static bool has(const struct config *c, char kind) {
    return (c->kinds && strchr(c->kinds, kind)) || strchr(c->mtp_kinds, kind);
}

/* The divisor of n nearest to x. */
static int64_t nearest_divisor(int64_t n, int64_t x) {
    for (int64_t away = 0; away < n; away++) {
        if (x - away >= 1 && n % (x - away) == 0) return x - away;
        if (x + away <= n && n % (x + away) == 0) return x + away;
    }
    return 1;
}

/* One row a rule: the key, the condition that is wrong, and what to say. */
#define RULE(key, condition, ...)                                                                  \
    if (condition) wrong(s, key, __VA_ARGS__)
#define N PRId64

static void check_all_layers(struct settling *s) {
    const struct deck_model *k = &s->d->model;
    RULE("residual_in_fp32", k->residual_in_fp32, "only false is built");
    RULE("attention_dropout", k->attention_dropout > 0, "only 0 is built");
    RULE("sliding_window", k->sliding_window > 0, "only 0 (no window) is built");
    RULE("time_step_min", k->time_step_min > k->time_step_max, "%g is above time_step_max, %g",
         k->time_step_min, k->time_step_max);
    RULE("time_step_limit", s->c->dt_min > s->c->dt_max, "low %g is above high %g", s->c->dt_min,
         s->c->dt_max);
    for (int i = 0; i < s->file.n_null; i++) {
        char kind = reader_of(s->file.null[i]);
        RULE(s->file.null[i], !kind || has(s->c, kind), "is null, but the model needs it");
    }
}

static void check_kinds(struct settling *s) {
    const struct deck_model *k = &s->d->model;
    int64_t heads = k->num_attention_heads, kv = k->num_key_value_heads, mamba = k->mamba_num_heads;
    if (has(s->c, '*'))
        RULE("num_key_value_heads", heads % kv,
             "%" N " does not divide num_attention_heads, %" N "; %" N " would", kv, heads,
             nearest_divisor(heads, kv));
    if (has(s->c, 'M'))
        RULE("n_groups", mamba % k->n_groups,
             "%" N " does not divide mamba_num_heads, %" N "; %" N " would", k->n_groups, mamba,
             nearest_divisor(mamba, k->n_groups));
    if (!has(s->c, 'E')) return;
    int64_t experts = k->n_routed_experts, groups = k->n_group,
            reach = experts / groups * k->topk_group;
    RULE("n_routed_experts", experts < 2,
         "%" N ", but the pattern has experts; at least 2 are needed", experts);
    RULE("num_experts_per_tok", k->num_experts_per_tok < 1,
         "%" N ", but the pattern has experts; at least 1 is needed", k->num_experts_per_tok);
    if (experts < 2) return;
    RULE("n_group", experts % groups,
         "%" N " does not divide n_routed_experts, %" N "; %" N " would", groups, experts,
         nearest_divisor(experts, groups));
    RULE("n_group", experts % groups == 0 && experts / groups < 2,
         "%" N " leaves groups of one expert; a group is chosen by its two best, so %" N
         " is the most",
         groups, experts / 2);
    RULE("topk_group", k->topk_group > groups, "%" N " is above n_group, %" N, k->topk_group,
         groups);
    RULE("num_experts_per_tok",
         k->topk_group <= groups && experts % groups == 0 && experts / groups > 1 &&
             k->num_experts_per_tok > reach,
         "%" N " is above the %" N " experts of the groups that a token keeps",
         k->num_experts_per_tok, reach);
}

/* Roughly how many parameters there are, in numbers that cannot overflow. */
static void check_size(struct settling *s) {
    const struct deck_model *k = &s->d->model;
    double hidden = (double)k->hidden_size,
           inner = (double)k->mamba_num_heads * (double)k->mamba_head_dim;
    double heads = (double)(k->num_attention_heads + k->num_key_value_heads) * (double)k->head_dim;
    double width = k->moe_latent_size ? (double)k->moe_latent_size : hidden,
           total = 2 * hidden * (double)k->vocab_size;
    for (int i = 0; i < s->c->n_layers + s->c->n_mtp; i++) {
        switch (i < s->c->n_layers ? s->c->kinds[i] : s->c->mtp_kinds[i - s->c->n_layers]) {
        case 'M':
            total += (3 * inner + 2 * (double)k->n_groups * (double)k->ssm_state_size) *
                     (hidden + (double)k->conv_kernel);
            break;
        case '*': total += 2 * heads * hidden; break;
        case '-': total += 2 * hidden * (double)k->intermediate_size; break;
        default:
            total += (double)k->n_routed_experts *
                         (2 * width * (double)k->moe_intermediate_size + hidden) +
                     2 * hidden * (double)k->moe_shared_expert_intermediate_size;
        }
    }
    RULE("hidden_size", total > most_parameters,
         "with the other sizes makes a model of %.1g parameters; is a size mistaken?", total);
}

/* ---------------------------------------------------------------- together */

static void settle_numbers(struct settling *s) {
    struct deck_model *k = &s->d->model;
    if (s->file.kv_follows_heads && !given(s, "num_key_value_heads")) {
        char number[32];
        snprintf(number, sizeof number, "%" PRId64, k->num_attention_heads);
        deck_set(s->d, "model.num_key_value_heads", number, "num_attention_heads");
    }
    s->c->dt_min = k->time_step_limit.n > 0 ? k->time_step_limit.v[0] : 0;
    s->c->dt_max = k->time_step_limit.n > 1 ? k->time_step_limit.v[1] : INFINITY;
}

int config_settle(struct config *c, struct deck *d, struct mistakes *m) {
    int before = m->n;
    *c = (struct config){0};
    struct settling s = {.c = c, .d = d, .m = m};
    if (vocabulary_only(d)) {
        c->keys = d->model;
        vocabulary_settle(c, d, m);
        return m->n > before ? -1 : 0;
    }
    bool preset = *d->model.preset, from = *d->model.from;
    if (preset && from)
        wrong(&s, "from", "model.preset is given too (%s); a model has one source",
              deck_where(d, "model.preset"));
    else if (preset) take_preset(&s);
    else if (from) config_file_read(&s.file, c, d, m);
    else if (!given(&s, "hybrid_override_pattern") && !given(&s, "layers_block_type") &&
             !d->incomplete)
        deck_mistake(d, m, "model.hybrid_override_pattern",
                     "no model: give a pattern of your own here, or model.preset, or model.from");
    settle_layers(&s);
    settle_mtp(&s);
    settle_numbers(&s);
    if (!strcmp(d->model.pattern_dialect, "torchtitan"))
        deck_set(d, "model.pattern_dialect", "hf", "patterns above are rewritten");
    /* Rules about layers would only repeat what is wrong with their list. */
    check_all_layers(&s);
    if (c->kinds && m->n == before) check_kinds(&s), check_size(&s);
    c->keys = d->model;
    vocabulary_settle(c, d, m);
    const char *saved = d->precision.parameters;
    if (!c->kept)
        c->dtype = !strcmp(saved, "bf16")   ? "bfloat16"
                   : !strcmp(saved, "fp16") ? "float16"
                                            : "float32";
    config_file_free(&s.file);
    free(s.preset_origin);
    free(s.preset_kinds);
    free(s.preset_mtp);
    return m->n > before ? -1 : 0;
}

int config_count(const struct config *c, char kind) {
    int n = 0;
    for (int i = 0; i < c->n_layers; i++) n += c->kinds[i] == kind;
    return n;
}

void config_free(struct config *c) {
    for (int i = 0; i < c->n_unused; i++) free(c->unused[i]);
    free(c->unused);
    free(c->kinds);
    free(c->mtp_kinds);
    free(c->folder);
    json_decref(c->kept);
    vocabulary_free(&c->vocabulary);
    *c = (struct config){0};
}
