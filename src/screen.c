#include "src/screen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"
#include "kernels/cpu/table.h"
#include "kernels/die.h"
#include "src/deck_table.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/machine.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/rate.h"
#include "src/units.h"
#include "version.inc"

enum { COLUMNS_MOST = 100, LABEL = 8 };

void say_wrapped(const struct output *o, const char *label, const char *words) {
    const int room = COLUMNS_MOST - LABEL - 2;
    for (const char *p = words; *p || p == words;) {
        int n = (int)strlen(p);
        if (n > room) {
            for (n = room; n > 0 && p[n] != ' ';) n--;
            if (n == 0) n = room;
        }
        say(o, "%-*s  %.*s", LABEL, p == words ? label : "", n, p);
        p += n;
        while (*p == ' ') p++;
        if (!*p) break;
    }
}

/* ---------------------------------------------------------------- what runs where */

void screen_title(const struct output *o, const struct run *r) {
    const struct deck *d = r->engine->deck;
    say(o, "mestar %s trains %s on %d rank%s", BUILD_VERSION, d->path, r->comm->size,
        r->comm->size == 1 ? "" : "s");
}

/* The text up to the first of these characters. */
static char *until(const char *text, const char *stop) {
    return die_format("%.*s", (int)strcspn(text, stop), text);
}

/* "node07", or "node07 x8, node08 x8 and 14 more" */
static char *host_list(const struct machine *h) {
    char *list = die_strdup(h->hosts == 1 ? h->rank[0].name : "");
    for (int i = 0; i < h->hosts && i < 3 && h->hosts > 1; i++)
        text_add(&list, "%s%s x%d", i ? ", " : "", h->rank[h->first[i]].name,
                 machine_host_ranks(h, i));
    if (h->hosts > 3) text_add(&list, " and %d more", h->hosts - 3);
    return list;
}

static char *job_text(void) {
    const char *id = getenv("SLURM_JOB_ID"), *end = getenv("SLURM_JOB_END_TIME");
    char left[UNIT_TEXT];
    if (!id) return NULL;
    if (!end) return die_strdup(id);
    return die_format("%s, %s left", id, duration_text(atof(end) - wall_now(), left));
}

/* Of the tokenizer, where the run reads text. */
static char *tokenizer_text(const struct vocabulary *v) {
    if (!v->tokenizer) return NULL;
    if (v->end < 0) return die_format("%s, %d ids", v->name, tokenizer_size(v->tokenizer));
    return die_format("%s, %d ids, %d ends a document", v->name, tokenizer_size(v->tokenizer),
                      v->end);
}

/* What the share of the peak that is reached (mfu) refers to. */
static char *peak_text(const struct deck *d, const struct machine *h) {
    const enum dtype format = machine_format(d);
    const double given = format == BF16 ? d->machine.peak_bf16 : d->machine.peak_fp32;
    return die_format("%.1f GFLOP/s a rank, %s", 1e-9 * h->rank[0].flops,
                      given > 0 ? "as the deck says" : "measured now");
}

/* By which instructions, and whose products. */
static char *kernels_text(const struct deck *d, int level) {
    const enum dtype format = machine_format(d);
    if (format == F64) return die_strdup("plain C, in double");
    const bool there = strncmp(BUILD_PRODUCTS, "none", 4) != 0;
    return die_format("%s, products by %s", cpu_level_name(level),
                      there && cpu_library_multiplies(level, format) ? BUILD_PRODUCTS : "our own");
}

/* Which cores this rank may use, and how near its memory is. */
static char *cores_fact(const struct cores *c) {
    const int here = cores_count(c), all = cores_of_host();
    int of_host;
    const int nodes = cores_nodes(c, &of_host);
    char *list = cores_text(c),
         *memory =
             of_host > 1 ? die_format(", %d of %d memory nodes", nodes, of_host) : die_strdup("");
    char *text = here < all ? die_format("%d of the host's %d (%s)%s", here, all, list, memory)
                            : die_format("all %d of the host%s", all, memory);
    free(list);
    free(memory);
    return text;
}

int screen_facts(const struct run *r, const struct machine *h, struct fact *f, int room) {
    const struct deck *d = r->engine->deck;
    char started[UNIT_TEXT], *compiler = until(BUILD_COMPILER, ""), *mpi = until(BUILD_MPI, "("),
                             *hosts = host_list(h), *job = job_text();
    char *distribution = strchr(compiler, '('),
         *close = distribution ? strchr(distribution, ')') : NULL;
    if (close) memmove(distribution, close + 2, strlen(close + 2) + 1);
    int threads = engine_threads(d, r->comm->host_cores, r->comm->host_ranks), n = 0;
    size_t mpi_end = strlen(mpi);
    while (mpi_end && mpi[mpi_end - 1] == ' ') mpi[--mpi_end] = '\0';
    const struct fact all[] = {
        {"source", die_strdup(BUILD_REVISION)},
        {"build", die_format("%s", compiler)},
        {"ranks", die_format("%d on %s", h->ranks, hosts)},
        {"mpi", die_strdup(h->ranks == 1 ? "none, one process" : mpi)},
        {"device", die_format("cpu, %d thread%s a rank, %s", threads, threads == 1 ? "" : "s",
                              d->precision.recipe)},
        {"cores", cores_fact(&r->comm->cores)},
        {"kernels", kernels_text(d, h->level)},
        {"peak", peak_text(d, h)},
        {"deck", r->argc > 2 ? die_format("%s + %d override%s", d->path, r->argc - 2,
                                          r->argc == 3 ? "" : "s")
                             : die_strdup(d->path)},
        {"output", die_strdup(d->run.output)},
        {"tokens", tokenizer_text(&r->engine->config->vocabulary)},
        {"started", die_strdup(moment_text(h->started, started))},
        {"job", job},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].text && n < room) f[n++] = all[i];
        else free(all[i].text);
    free(compiler);
    free(mpi);
    free(hosts);
    return n;
}

/* Two facts a line where both fit. */
void screen_run(const struct output *o, const struct run *r, const struct machine *h) {
    enum { ROOM = 16, LEFT = 42 };
    struct fact f[ROOM];
    int n = screen_facts(r, h, f, ROOM);
    for (int i = 0; i < n; i++) {
        bool pair = i + 1 < n && strlen(f[i].text) <= LEFT &&
                    strlen(f[i + 1].text) + LEFT + 2 * LABEL + 6 <= COLUMNS_MOST;
        if (pair)
            say(o, "  %-*s %-*s  %-*s %s", LABEL, f[i].label, LEFT, f[i].text, LABEL,
                f[i + 1].label, f[i + 1].text);
        else say(o, "  %-*s %s", LABEL, f[i].label, f[i].text);
        i += pair;
    }
    for (int i = 0; i < n; i++) free(f[i].text);
}

/* ---------------------------------------------------------------- keys */

static bool differs(const struct deck *d, const struct deck_key *k, const char *text) {
    const void *value = (const char *)d + k->at;
    if (k->type == 'r') return *(const double *)value != strtod(k->def, NULL);
    if (k->type == 't' || k->type == 'c') return strcmp(*(const char *const *)value, k->def) != 0;
    return strcmp(text, k->def) != 0;
}

/* The end of a text that is too long matters more in a place, the beginning in a value. */
static const char *shortened(const char *text, int room, bool keep_end, char *to) {
    int n = (int)strlen(text);
    if (n <= room) return text;
    if (keep_end) snprintf(to, (size_t)room + 1, "...%s", text + n - room + 3);
    else snprintf(to, (size_t)room + 1, "%.*s...", room - 3, text);
    return to;
}

static void say_key(const struct output *o, const struct deck *d, int row, const char *value) {
    enum { KEY = 32, VALUE = 26, DEFAULT = 12, WHERE = 24 };
    const struct deck_key *k = &deck_table[row];
    const char *where = deck_origin_text(d, row);
    size_t path = strlen(d->path);
    char *key = die_format("%s.%s", k->section, k->name), *line = NULL;
    char v[VALUE + 1], w[WHERE + 1];
    if (!strncmp(where, d->path, path) && where[path] == ':')
        line = die_format("line %s", where + path + 1);
    say(o, "  %-*s %-*s %-*s %s", KEY, key, VALUE, shortened(value, VALUE, false, v), DEFAULT,
        *k->def ? k->def : "-", shortened(line ? line : where, WHERE, true, w));
    free(key);
    free(line);
}

/* A model of one's own has many keys, which the table of the model shows too: they share lines. */
static bool shares_a_line(const struct deck *d, const struct deck_key *k) {
    return !strcmp(k->section, "model") && !*d->model.preset && !*d->model.from;
}

void screen_keys(const struct output *o, const struct run *r) {
    enum { MOST = 13 };
    const struct deck *d = r->engine->deck;
    int n = 0, left_out = 0;
    char *model = die_strdup("");
    say(o, "\n%-34s %-26s %-12s %s", "Differs from the defaults", "value", "default", "given in");
    for (int i = 0; i < deck_table_n; i++) {
        const struct deck_key *k = &deck_table[i];
        char *name = die_format("%s.%s", k->section, k->name);
        char *value = deck_value_text(k, (const char *)d + k->at);
        bool elsewhere = !strcmp(name, "run.output") || !strcmp(name, "run.name");
        bool shown = deck_given(d, name) && differs(d, k, value) && !elsewhere;
        if (shown && shares_a_line(d, k))
            text_add(&model, "%s%s %s", *model ? ", " : "", k->name, value);
        else if (shown && (n++ < MOST || !strcmp(deck_origin_text(d, i), "command line")))
            say_key(o, d, i, value);
        else left_out += shown;
        free(name);
        free(value);
    }
    if (*model) say_wrapped(o, "  model", model);
    if (left_out) say(o, "  and %d more, with all others in used.yaml", left_out);
    free(model);
}

/* ---------------------------------------------------------------- the work */

enum fate { DECAYED, NOT_DECAYED, FROZEN };

static enum fate fate_of(const struct param_block *b) {
    return !b->p.trained ? FROZEN : b->decay ? DECAYED : NOT_DECAYED;
}

static bool any_of(const struct params *s, const char *name, enum fate fate) {
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        if (t->block >= 0 && !strcmp(t->row->name, name) && fate_of(&s->block[t->block]) == fate)
            return true;
    }
    return false;
}

/* Names of the tensors of one fate, each once, without what the names of all have in common; a star
 * where others of the name decay. */
static char *names_of(const struct params *s, enum fate fate) {
    char *list = die_strdup("");
    for (int i = 0; i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        if (t->block < 0 || t->row->may & BUFFER || fate_of(&s->block[t->block]) != fate) continue;
        const char *name = t->row->name;
        const char *whole = name;
        if (!strncmp(name, "mixer.", 6)) name += 6;
        if (!strncmp(name, "backbone.", 9)) name += 9;
        int n = (int)strlen(name);
        if (n > 7 && !strcmp(name + n - 7, ".weight")) n -= 7;
        char *padded = die_format(" %s ", list), *word = die_format(" %.*s ", n, name);
        char *starred = die_format(" %.*s* ", n, name);
        if (!strstr(padded, word) && !strstr(padded, starred))
            text_add(&list, "%s%.*s%s", *list ? " " : "", n, name,
                     fate != DECAYED && any_of(s, whole, DECAYED) ? "*" : "");
        free(padded);
        free(word);
        free(starred);
    }
    return list;
}

/* The exceptions are fewer than the rule: norms, biases and the like do not decay. */
static void say_decay(const struct output *o, const struct run *r) {
    const struct params *s = &r->engine->model.params;
    char decay[32], *not = names_of(s, NOT_DECAYED), *frozen = names_of(s, FROZEN),
                    *all = names_of(s, DECAYED);
    deck_real_text(r->engine->deck->optimizer.weight_decay, decay);
    char *text = *all ? die_format("%s on all but %s", decay, *not ? not : "nothing")
                      : die_strdup("nothing decays");
    if (*frozen) text_add(&text, "; not trained: %s", frozen);
    say_wrapped(o, "Decay", text);
    free(text);
    free(not );
    free(frozen);
    free(all);
}

static void say_rate(const struct output *o, const struct deck *d, int64_t steps) {
    const struct deck_schedule *s = &d->schedule;
    char high[32], low[32], fall[96] = "", warm[48] = "";
    int64_t warmup = rate_warmup(d, steps), end = s->decay_steps ? s->decay_steps : steps;
    deck_real_text(d->optimizer.learning_rate, high);
    deck_real_text(d->optimizer.min_learning_rate, low);
    if (!strcmp(s->kind, "inverse-sqrt")) snprintf(fall, sizeof fall, ", never below %s", low);
    else if (!strcmp(s->kind, "wsd"))
        snprintf(fall, sizeof fall, ", and over the last %ld steps to %s (%s)",
                 (long)s->wsd_decay_steps, low, s->wsd_shape);
    else if (strcmp(s->kind, "constant"))
        snprintf(fall, sizeof fall, " to %s at step %ld", low, (long)end);
    if (warmup) snprintf(warm, sizeof warm, ", after %ld steps of warm-up", (long)warmup);
    char *text = die_format("%s: %s%s%s; %s", s->kind, high, fall, warm, d->optimizer.kind);
    say_wrapped(o, "Rate", text);
    free(text);
}

/* How often the run reads its data; 0 where they have no end. */
static double passes_of(const struct feed *f, int64_t steps) {
    return f->corpus.samples < INT64_MAX && f->corpus.samples > 0
               ? (double)steps * (double)f->global_batch / (double)f->corpus.samples
               : 0;
}

void screen_work(const struct output *o, const struct run *r, const struct feed *f, int64_t steps) {
    const struct deck_train *k = &r->engine->deck->train;
    int64_t tokens = f->global_batch * f->length;
    char a[UNIT_TEXT], b[UNIT_TEXT], passes[UNIT_TEXT] = "";
    if (passes_of(f, steps) > 0)
        snprintf(passes, sizeof passes, "; %.2g passes", passes_of(f, steps));
    char *batch =
        die_format("%ld sequence%s x %ld = %s tokens a step (data %d x %d in turn x %ld at once); "
                   "%ld steps, %s in all",
                   (long)f->global_batch, f->global_batch == 1 ? "" : "s", (long)f->length,
                   grouped_text(tokens, a), r->shape->data, f->micro_batches, (long)k->micro_batch,
                   (long)steps, count_text((double)steps * (double)tokens, b));
    char *corpus = die_format("%s%s", corpus_describe(&f->corpus), passes);
    say(o, "%s", "");
    say_wrapped(o, "Batch", batch);
    say_wrapped(o, "Data", corpus);
    say_rate(o, r->engine->deck, steps);
    say_decay(o, r);
    free(batch);
    free(corpus);
}

/* ---------------------------------------------------------------- notes */

static void note_weights(const struct output *o, const struct engine *e) {
    const struct config *c = e->config;
    struct param_counts n = params_count(&e->model.params);
    if (c->folder) {
        char *text = die_format("weights come from %s", c->folder);
        for (int i = 0; i < c->n_unused; i++)
            text_add(
                &text, "%s%s",
                i ? ", " : "; of its config.json these are not used, and kept: ", c->unused[i]);
        if (e->weights.n_unused)
            text_add(&text, "; %d tensors there are not used, and kept", e->weights.n_unused);
        say_wrapped(o, "NOTE", text);
        free(text);
    } else if (c->n_mtp) {
        char *text = die_format("multi-token prediction is not trained: its %ld parameters are "
                                "left out of what is saved",
                                (long)n.mtp);
        say_wrapped(o, "NOTE", text);
        free(text);
    }
}

/* The rank whose cores have most threads each, where that is more than one and the host's other
 * ranks have further cores; -1: none. */
static int most_crowded(const struct machine *h, int threads) {
    double most = 1;
    int found = -1;
    for (int r = 0; r < h->ranks; r++) {
        const struct rank_facts *f = &h->rank[r];
        const double crowd = (double)(f->sharing * threads) / (double)f->cores;
        if (crowd > most && f->host_cores > f->cores) most = crowd, found = r;
    }
    return found;
}

/* The first rank whose threads OpenMP binds to cores that other ranks are bound to as well; -1:
 * none. */
static int most_bound(const struct machine *h) {
    for (int r = 0; r < h->ranks; r++)
        if (h->rank[r].bound && h->rank[r].sharing > 1) return r;
    return -1;
}

void screen_notes(const struct output *o, const struct run *r, const struct machine *h,
                  const struct feed *f, int64_t steps) {
    const struct engine *e = r->engine;
    const struct deck *d = e->deck;
    int threads = engine_threads(d, r->comm->host_cores, r->comm->host_ranks);
    bool experts = strchr(e->config->kinds, 'E') != NULL;
    char text[256];
    note_weights(o, e);
#define NOTE(condition, ...)                                                                       \
    if (condition) snprintf(text, sizeof text, __VA_ARGS__), say_wrapped(o, "NOTE", text)
    const int ranks = r->comm->host_ranks, cores = r->comm->host_cores;
    NOTE(
        threads * ranks > cores,
        "%d rank%s x %d thread%s share %d core%s of a host: they take turns. run.threads, or fewer "
        "ranks",
        ranks, ranks == 1 ? "" : "s", threads, threads == 1 ? "" : "s", cores,
        cores == 1 ? "" : "s");
    const int tight = most_crowded(h, threads);
    NOTE(tight >= 0,
         "rank %d of host %s is one of %ld ranks x %d threads that are bound to the same %ld "
         "core%s, "
         "while others idle: bind each to its own or none (mpirun --bind-to, srun --cpu-bind)",
         tight, h->rank[tight].name, (long)h->rank[tight].sharing, threads,
         (long)h->rank[tight].cores, h->rank[tight].cores == 1 ? "" : "s");
    const int held = most_bound(h);
    NOTE(
        held >= 0,
        "OMP_PROC_BIND binds the threads of %ld ranks of host %s to the same cores, from the first "
        "one on: unset it, or give each rank cores of its own (mpirun --bind-to, srun --cpu-bind)",
        (long)h->rank[held].sharing, h->rank[held].name);
    int of_host;
    NOTE(cores_nodes(&r->comm->cores, &of_host) > 1,
         "the cores of a rank lie on several memory nodes: a rank a node, bound to it, is faster "
         "(mpirun --bind-to numa, srun --cpu-bind=ldoms)");
    double used =
        (double)machine_host_bytes(h, h->fullest) / (double)h->rank[h->first[h->fullest]].memory;
    NOTE(
        used > 0.85,
        "memory is %.0f %% taken. memory.recompute: full or a smaller train.micro_batch needs less",
        100 * used);
    NOTE(experts && !strcmp(d->moe.balance, "none"),
         "nothing keeps the experts evenly loaded. moe.balance: bias does");
    NOTE(!experts && (deck_given(d, "moe.balance") || deck_given(d, "moe.bias_rate")),
         "the model has no experts: keys of section moe have no effect");
    NOTE(!d->checkpoint.interval, "nothing will be saved: checkpoint.interval is 0");
    NOTE(passes_of(f, steps) > 4,
         "the data is read %.0f times over; more of it (data.path) or fewer train.steps",
         passes_of(f, steps));
    NOTE(d->run.debug, "run.debug checks everything and is slow");
#undef NOTE
}
