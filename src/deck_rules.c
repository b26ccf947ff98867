#include "src/deck_rules.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/mesh.h"
#include "src/choose_context.h"
#include "src/deck.h"
#include "src/deck_table.h"
#include "src/recompute.h"
#include "src/stop.h"
#include "src/text.h"

/* One row a rule: the key, the condition that is wrong, and what to say. */
#define RULE(key, condition, ...)                                                                  \
    if (condition) deck_mistake(d, m, key, __VA_ARGS__)
#define N PRId64

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

static bool is(const char *a, const char *b) {
    return !strcmp(a, b);
}

/* A name that every terminal can show. */
static bool is_plain(const char *text) {
    size_t n = strlen(text);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p < ' ' || *p == 127) return false;
    char *repaired = utf8_repair(text, &n);
    bool plain = n == strlen(text) && !memcmp(repaired, text, n);
    free(repaired);
    return plain;
}

/* What a run writes must be possible before anything is computed. */
static void check_place(const struct deck *d, struct mistakes *m, const char *key,
                        const char *path) {
    char *problem = path_problem(path);
    RULE(key, !is_plain(path), "holds control characters, or bytes that are no UTF-8 text");
    RULE(key, problem, "%s", problem);
    free(problem);
}

static void check_generate(const struct deck *d, struct mistakes *m) {
    const struct deck_generate *g = &d->generate;
    const char *from = d->model.from;
    int given = !!*g->prompt + !!*g->prompts + (g->prompt_ids.n > 0);
    RULE("run.mode", !given,
         "mode generate needs generate.prompt (a text), generate.prompts (a file) or "
         "generate.prompt_ids");
    RULE(*g->prompts ? "generate.prompts" : "generate.prompt", given > 1,
         "give one of generate.prompt, prompts and prompt_ids");
    RULE("run.output", *from && *d->run.output && file_same(from, d->run.output),
         "is the folder that the model is read from, and what is there would be replaced; give "
         "another");
    RULE("generate.prompts",
         *g->prompts && !is(g->prompts, "-") && !ends_with(g->prompts, ".txt") &&
             !ends_with(g->prompts, ".jsonl"),
         "%.200s ends in neither .txt (a prompt a line) nor .jsonl", g->prompts);
    for (int i = 0; i < g->prompt_ids.n; i++)
        RULE("generate.prompt_ids", g->prompt_ids.v[i] != (double)(int64_t)g->prompt_ids.v[i],
             "entry %d is no whole number", i + 1);
    for (int i = 0; i < g->stop.n; i++)
        RULE("generate.stop", !*g->stop.v[i], "entry %d is empty", i + 1);
}

void deck_check(const struct deck *d, struct mistakes *m) {
    const char *mode = d->run.mode, *from = d->model.from;
    bool train = is(mode, "train"), compare = is(mode, "compare"), convert = is(mode, "convert");
    bool tokens = convert && is(d->convert.what, "tokens");
    bool evaluate = is(mode, "evaluate"), text = (train || evaluate) && is(d->data.kind, "text");
    const struct deck_optimizer *o = &d->optimizer;
    const struct deck_schedule *s = &d->schedule;

    RULE("run.name", strchr(d->run.name, '/') || is(d->run.name, ".") || is(d->run.name, ".."),
         "'%.60s' cannot name a folder", d->run.name);
    RULE("run.walltime", *d->run.walltime && stop_seconds(d->run.walltime) < 0,
         "'%.60s' is no time; write hours:minutes:seconds (minutes and seconds up to 59), or "
         "days-hours:minutes:seconds",
         d->run.walltime);
    recompute_check(d, m);
    check_place(d, m, "run.output", d->run.output);
    RULE("run.output", file_exists(d->run.output) && !file_is_folder(d->run.output),
         "is there, and is no folder");
    if (convert && *d->convert.to) check_place(d, m, "convert.to", d->convert.to);
    RULE("run.name", !is_plain(d->run.name),
         "holds control characters, or bytes that are no UTF-8 text");
    if (is(mode, "generate")) check_generate(d, m);
    RULE("compare.reference", compare && !*d->compare.reference,
         "mode compare needs the safetensors file to compare with");
    RULE("convert.to", convert && !*d->convert.to, "mode convert needs the %s to write",
         tokens ? "file" : "folder");
    RULE("model.from", convert && !tokens && !*from, "mode convert needs the folder of a model");
    RULE("data.path", tokens && !d->data.path.n,
         "convert.what tokens needs files with a JSON string in each line");
    RULE("convert.to", convert && *from && *d->convert.to && file_same(from, d->convert.to),
         "is the folder that is read; give another");
    RULE("model.from", evaluate && !*from, "mode evaluate needs the folder of a model");
    RULE("evaluate.samples", evaluate && !text && !d->evaluate.samples,
         "mock data has no end; say how many sequences");
    RULE("train.validation_interval", train && d->train.validation_interval && d->data.split <= 0,
         "nothing is held out to validate on; give data.split, 0.01 for instance");
    RULE("data.split", train && !text && d->data.split > 0, "only text can be held out");
    RULE("train.epochs", train && !text && d->train.epochs > 0,
         "mock data has no end; give train.steps");
    RULE("schedule.wsd_decay_steps", train && is(s->kind, "wsd") && !s->wsd_decay_steps,
         "wsd needs the length of its decay");
    RULE("schedule.warmup_fraction", train && s->warmup_steps && s->warmup_fraction > 0,
         "warmup_steps is given too; one of the two");
    RULE("data.path", train && !text && d->data.path.n,
         "is given, but data.kind is mock; say data.kind: text");
    RULE("compare.dump", compare && *d->compare.dump && !ends_with(d->compare.dump, ".safetensors"),
         "must end in .safetensors");
    RULE("compare.dump",
         compare && *d->compare.dump && *d->compare.reference &&
             file_same(d->compare.dump, d->compare.reference),
         "is the reference itself; give another name");
    RULE("compare.dump", compare && file_is_folder(d->compare.dump),
         "is a folder; give a file's name");
    RULE("data.path", text && !d->data.path.n,
         "data.kind text needs files, folders or patterns to read");
    for (int i = 0; i < d->data.path.n; i++)
        RULE("data.path", text && !*d->data.path.v[i], "entry %d is empty", i + 1);
    RULE("train.micro_batch", d->train.micro_batch * d->train.sequence_length > INT32_MAX,
         "%" N " sequences of %" N " tokens at once are more tokens than can be numbered; at most "
         "%" N " such sequences",
         d->train.micro_batch, d->train.sequence_length, INT32_MAX / d->train.sequence_length);
    RULE("moe.capacity", d->moe.capacity > 0 && d->moe.capacity < 1,
         "%g would drop tokens even where loads are even; give at least 1, or 0 to drop none",
         d->moe.capacity);
    double weights = 0;
    for (int i = 0; i < d->data.blend.n; i++) weights += d->data.blend.v[i];
    RULE("data.blend", text && d->data.blend.n && d->data.blend.n != d->data.path.n,
         "%d weight%s for %d path%s; give one for each, or none", d->data.blend.n,
         d->data.blend.n == 1 ? "" : "s", d->data.path.n, d->data.path.n == 1 ? "" : "s");
    RULE("data.blend", text && d->data.blend.n && weights <= 0,
         "all weights are 0; at least one must be more");
    if (text) check_place(d, m, "data.cache", d->data.cache);
    RULE("data.cache", text && !*d->data.cache, "is empty; leave it out for cache");
    RULE("optimizer.min_learning_rate", train && o->min_learning_rate > o->learning_rate,
         "%g is above learning_rate, %g", o->min_learning_rate, o->learning_rate);
    RULE("schedule.warmup_steps",
         train && !is(s->kind, "constant") && s->decay_steps > 0 &&
             s->warmup_steps >= s->decay_steps,
         "%" N " leaves nothing of decay_steps, %" N "; %" N " is the most", s->warmup_steps,
         s->decay_steps, s->decay_steps - 1);
}

/* ---------------------------------------------------------------- ranks */

/* What splits over the tensor ranks: heads only as wholes; what heads share may also be held by
 * several neighbours. */
struct split {
    char kind;
    int64_t n;
    bool shared;
    const char *what;
};

static bool splits(const struct split *s, int64_t tensor) {
    return s->n % tensor == 0 || (s->shared && tensor % s->n == 0);
}

/* How many stages a rank holds. */
static int64_t chunks_of(const struct deck_parallel *p) {
    return is(p->schedule, "zbv") ? 2 : p->virtual_stages;
}

/* Whether the stages' pattern without its bars is the model's. */
static bool same_layers(const char *stages, const char *layers) {
    for (; *stages; stages++)
        if (*stages != '|' && *stages != *layers++) return false;
    return !*layers;
}

/* Heads across context ranks: what is left of them after tensor is split again. */
static void check_context(const struct deck *d, struct mistakes *m) {
    const struct deck_parallel *p = &d->parallel;
    const char *mode = d->run.mode;
    int64_t pieces = 2 * p->context, length = d->train.sequence_length,
            below = length / pieces * pieces;
    bool cuts = is(mode, "train") || is(mode, "evaluate") || is(mode, "bench");
    char hint[64];
    if (p->context == 1) return;
    if (below) snprintf(hint, sizeof hint, "%" N " or %" N, below, below + pieces);
    else snprintf(hint, sizeof hint, "%" N, pieces);
    RULE("train.sequence_length", cuts && length % pieces,
         "%" N " is no multiple of 2 x parallel.context = 2 x %" N "; %s would do", length,
         p->context, hint);
    RULE("parallel.context_attention",
         is(p->context_attention, "heads") && !context_has_heads(d, '*'),
         "heads: %" N " ranks along context cannot share %" N " heads with %" N
         " key and value heads on %" N " tensor ranks alike; ring would do",
         p->context, d->model.num_attention_heads, d->model.num_key_value_heads, p->tensor);
    RULE("parallel.context_mamba", is(p->context_mamba, "heads") && !context_has_heads(d, 'M'),
         "heads: %" N " ranks along context cannot share %" N " Mamba heads in %" N " groups on %" N
         " tensor ranks alike; state would do",
         p->context, d->model.mamba_num_heads, d->model.n_groups, p->tensor);
}

static void check_pipeline(const struct deck *d, struct mistakes *m) {
    const struct deck_parallel *p = &d->parallel;
    int64_t stages = p->pipeline * chunks_of(p), bars = 0;
    for (const char *s = p->stages; *s; s++) bars += *s == '|';
    RULE("parallel.virtual_stages",
         p->virtual_stages > 1 && deck_given(d, "parallel.schedule") &&
             (is(p->schedule, "1f1b") || is(p->schedule, "zero-bubble")),
         "%" N ", but schedule %s has one stage a rank; give 1, or parallel.schedule: interleaved",
         p->virtual_stages, p->schedule);
    RULE("parallel.virtual_stages",
         is(p->schedule, "zbv") && p->virtual_stages != 1 && p->virtual_stages != 2,
         "%" N ", but schedule zbv has 2 stages a rank; give 2, or leave it out",
         p->virtual_stages);
    bool interleaved = is(p->schedule, "interleaved") ||
                       (p->virtual_stages > 1 && !deck_given(d, "parallel.schedule"));
    RULE("parallel.micro_batch_group", p->micro_batch_group && !interleaved,
         "%" N ", but only schedule interleaved takes micro-batches in groups",
         p->micro_batch_group);
    if (!*p->stages) return;
    RULE("parallel.stages", bars + 1 != stages,
         "has %" N " stages; pipeline %" N " x %" N " stage%s a rank needs %" N ", %" N
         " of | between them",
         bars + 1, p->pipeline, chunks_of(p), chunks_of(p) == 1 ? "" : "s", stages, stages - 1);
    RULE("parallel.stages", !same_layers(p->stages, d->model.hybrid_override_pattern),
         "without its bars must be the model's layers, %.200s", d->model.hybrid_override_pattern);
}

/* The values of parallel.tensor next to t, below and above, that all splits allow. */
static void tensor_hint(const struct split *s, int n, int64_t t, char *to, size_t size) {
    int64_t near[2] = {0, 0};
    for (int up = 0; up < 2; up++) {
        for (int64_t x = up ? t + 1 : t - 1; x >= 1 && x <= 65536 && !near[up]; x += up ? 1 : -1) {
            bool all = true;
            for (int i = 0; i < n; i++) all = all && splits(&s[i], x);
            if (all) near[up] = x;
        }
    }
    if (near[1]) snprintf(to, size, "%" N " or %" N " would do", near[0], near[1]);
    else snprintf(to, size, "%" N " would do", near[0]);
}

static void check_tensor(const struct deck *d, struct mistakes *m) {
    const struct deck_model *k = &d->model;
    const struct split all[] = {
        {'*', k->num_attention_heads, false,
         "attention heads (model.num_attention_heads) are no multiple of it"},
        {'M', k->mamba_num_heads, false,
         "Mamba heads (model.mamba_num_heads) are no multiple of it"},
        {'*', k->num_key_value_heads, true,
         "key and value heads (model.num_key_value_heads) are neither a multiple nor a divisor of "
         "it"},
        {'M', k->n_groups, true,
         "groups of Mamba heads (model.n_groups) are neither a multiple nor a divisor of it"},
    };
    struct split here[4];
    int n = 0;
    int64_t tensor = d->parallel.tensor;
    char hint[64];
    for (int i = 0; i < 4; i++)
        if (strchr(k->hybrid_override_pattern, all[i].kind)) here[n++] = all[i];
    tensor_hint(here, n, tensor, hint, sizeof hint);
    for (int i = 0; i < n; i++)
        RULE("parallel.tensor", !splits(&here[i], tensor), "%" N ": %" N " %s; %s", tensor,
             here[i].n, here[i].what, hint);
}

static void check_experts(const struct deck *d, struct mistakes *m) {
    const struct deck_parallel *p = &d->parallel;
    const struct deck_model *k = &d->model;
    bool some = strchr(k->hybrid_override_pattern, 'E') != NULL;
    RULE("parallel.expert", p->expert > 1 && !some, "%" N ", but the model has no experts",
         p->expert);
    RULE("parallel.expert", some && k->n_routed_experts % p->expert,
         "%" N ": %" N " experts (model.n_routed_experts) are no multiple of it", p->expert,
         k->n_routed_experts);
    /* A rank numbers the choices of its tokens; and for room, those of whole sequences. */
    const int64_t own = d->train.sequence_length / (d->moe.capacity > 0 ? 1 : p->context),
                  each = own * k->num_experts_per_tok;
    RULE("train.micro_batch",
         some && d->train.micro_batch * each > INT32_MAX &&
             d->train.micro_batch * d->train.sequence_length <= INT32_MAX,
         "%" N " sequences at once, %" N " tokens of each on a rank, and %" N " experts for each "
         "of these are more choices than can be numbered; at most %" N " such sequences",
         d->train.micro_batch, own, k->num_experts_per_tok, INT32_MAX / each);
    RULE("plan.routing", *d->plan.routing && !some, "is given, but the model has no experts");
    RULE("plan.routing", *d->plan.routing && some && is(d->moe.balance, "forced"),
         "is given, but with moe.balance: forced experts are taken in turn; one of the two");
    RULE("moe.aux_kind",
         some && is(d->moe.aux_kind, "global") && d->moe.aux_coefficient > 0 &&
             d->train.global_batch * d->train.sequence_length > INT32_MAX,
         "global: %" N " sequences of %" N " tokens a step are more tokens than can be counted; "
         "sequence or batch would do",
         d->train.global_batch, d->train.sequence_length);
}

/* Data ranks that make the stage a multiple of what experts need. */
static int64_t least_data(const struct deck_parallel *p) {
    int64_t experts = p->expert * (p->expert_tensor ? p->expert_tensor : 1), data = 1;
    while (data < experts && p->tensor * p->context * data % experts) data++;
    return data;
}

/* mesh_complete knows no files: what it says of a key is told at that key's place. */
static int complete(const struct deck *d, struct mesh_shape *out, int ranks, struct mistakes *m) {
    struct mistakes found = {0};
    int result = mesh_complete(out, ranks, &found);
    for (int i = 0; i < found.n; i++) {
        const char *text = found.text[i], *colon = strchr(text, ':');
        char key[32] = "";
        if (colon && colon - text < 32) memcpy(key, text, (size_t)(colon - text));
        if (!strncmp(key, "parallel.", 9) && deck_table_find("parallel", key + 9) >= 0)
            deck_mistake(d, m, key, "%s", colon + 2);
        else mistake(m, d->path, 0, "%s", text);
    }
    mistakes_free(&found);
    return result;
}

void deck_mesh(const struct deck *d, int ranks_started, struct mesh_shape *out,
               struct mistakes *m) {
    const struct deck_parallel *p = &d->parallel;
    int64_t ranks = ranks_started ? ranks_started : d->run.ranks;
    if (!ranks) ranks = p->tensor * p->pipeline * p->context * (p->data ? p->data : least_data(p));
    RULE("run.ranks", ranks_started && d->run.ranks && d->run.ranks != ranks_started,
         "the deck is for %" N " ranks, but %d were started", d->run.ranks, ranks_started);
    RULE("parallel.data", ranks > INT32_MAX, "%" N " ranks are more than there can be", ranks);
    *out = (struct mesh_shape){.pipeline = (int)p->pipeline,
                               .data = (int)p->data,
                               .context = (int)p->context,
                               .tensor = (int)p->tensor,
                               .expert = (int)p->expert,
                               .expert_tensor = (int)p->expert_tensor};
    check_tensor(d, m);
    check_pipeline(d, m);
    check_context(d, m);
    if (ranks > INT32_MAX || complete(d, out, (int)ranks, m)) return;
    check_experts(d, m);
    const struct deck_train *t = &d->train;
    int64_t unit = t->micro_batch * out->data, below = t->global_batch / unit * unit;
    char hint[64];
    if (below) snprintf(hint, sizeof hint, "%" N " or %" N, below, below + unit);
    else snprintf(hint, sizeof hint, "%" N, unit);
    RULE("train.global_batch", t->global_batch % unit,
         "%" N " is no multiple of micro_batch x data = %" N " x %d; %s would do", t->global_batch,
         t->micro_batch, out->data, hint);
}

int64_t deck_micro_batches(const struct deck *d, const struct mesh_shape *s) {
    return d->train.global_batch / (d->train.micro_batch * s->data);
}
