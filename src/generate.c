#include "src/generate.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/stop.h"

int generation_prepare(struct generation *g, struct engine *e, struct group *group,
                       struct mistakes *m) {
    const struct deck *d = e->deck;
    int before = m->n;
    memset(g, 0, sizeof *g);
    g->engine = e;
    text_init(&g->text, e->config, m);
    g->ending = (struct ending){&g->text, d->generate.max_new_tokens, d->generate.stop.n,
                                d->generate.stop.v};
    if (d->generate.stop.n && !text_known(&g->text))
        deck_mistake(d, m, "generate.stop",
                     "needs a tokenizer (model.tokenizer), and the model has none");
    if (!group && !strcmp(d->generate.prompts, "-"))
        deck_mistake(d, m, "generate.prompts", "standard input is read by a run only; give a file");
    else prompts_read(&g->prompts, d, &g->text, group, m);
    return m->n > before ? -1 : 0;
}

void generation_free(struct generation *g) {
    text_free(&g->text);
    prompts_free(&g->prompts);
    memset(g, 0, sizeof *g);
}

/* ---- rounds ---- */

/* The prompts of one round, and this rank's part of them. */
struct round {
    int64_t first, n;
    int64_t own_first, own_n;
};

/* The round that begins with prompt `first`, as the ranks of a data coordinate see it. The first
 * get the rows: a single prompt is rank 0's. */
static struct round round_of(const struct generation *g, int64_t first, int at) {
    const struct engine *e = g->engine;
    int64_t data = e->shape.data, left = g->prompts.n - first,
            most = e->deck->generate.batch * data;
    struct round r = {.first = first, .n = left < most ? left : most};
    int64_t rows = (r.n + data - 1) / data, before = at * rows;
    r.own_first = first + before;
    r.own_n = before >= r.n ? 0 : r.n - before < rows ? r.n - before : rows;
    return r;
}

static struct round round_at(const struct generation *g, int64_t first) {
    return round_of(g, first, g->engine->parallel.at.data);
}

/* What every data rank begins the round with. */
static struct decoder_rows *rows_of_all(const struct generation *g, const struct round *r) {
    const int data = g->engine->shape.data;
    struct decoder_rows *all = die_alloc((unsigned long)data * sizeof *all);
    for (int i = 0; i < data; i++) {
        const struct round its = round_of(g, r->first, i);
        all[i].rows = its.own_n;
        for (int64_t k = 0; k < its.own_n; k++) {
            const int64_t n = g->prompts.prompt[its.own_first + k].n;
            if (n > all[i].longest) all[i].longest = n;
        }
    }
    return all;
}

/* Prefill of this rank's prompts of a round; or its part in others'. */
static void begin_round(const struct generation *g, struct decoder *d, const struct round *r) {
    int32_t **ids = die_alloc((unsigned long)r->own_n * sizeof *ids + 1);
    int64_t *n = die_alloc((unsigned long)r->own_n * sizeof *n + 1);
    struct decoder_rows *all = rows_of_all(g, r);
    for (int64_t i = 0; i < r->own_n; i++) {
        ids[i] = g->prompts.prompt[r->own_first + i].ids;
        n[i] = g->prompts.prompt[r->own_first + i].n;
    }
    decoder_begin(d, r->own_n, ids, n, all);
    free(all);
    free(ids);
    free(n);
}

/* Memory for the largest round, which is the first. */
static void make_decoder(const struct generation *g, struct decoder *d) {
    const struct deck_generate *k = &g->engine->deck->generate;
    struct round r = round_at(g, 0);
    decoder_init(d, g->engine, r.own_n, g->prompts.longest, k->max_new_tokens - 1,
                 k->prefill_chunk);
}

/* Whether this rank takes part where it has no tokens. */
static bool takes_part(const struct generation *g) {
    return mesh_experts_join_data(&g->engine->shape);
}

/* A step of decoding, or this rank's part in it. */
static void step(const struct generation *g, struct decoder *d, const struct round *r,
                 const int32_t *ids) {
    if (r->own_n) decoder_next(d, ids);
    else if (takes_part(g)) decoder_idle(d);
}

/* Of the steps of a round the last takes most memory, if not the first: what is cached
 * only grows, and answers only end. */
void generation_plan(struct generation *g) {
    const int64_t more = g->engine->deck->generate.max_new_tokens - 1;
    struct decoder d;
    make_decoder(g, &d);
    for (int64_t first = 0; first < g->prompts.n;) {
        struct round r = round_at(g, first);
        int32_t *ids = die_alloc((unsigned long)r.own_n * sizeof *ids + 1);
        if (r.own_n || takes_part(g)) begin_round(g, &d, &r);
        for (int64_t i = 0; i < more; i += i + 1 < more ? more - 1 : 1) {
            d.past = d.read + i;
            step(g, &d, &r, ids);
        }
        free(ids);
        first += r.n;
    }
    decoder_free(&d);
}

/* ---- answers ---- */

/* Tokens and seconds of prefill and of decoding. */
struct pace {
    int64_t begun, prompt_tokens, new_tokens, not_finite;
    double prefill, decode;
};

struct work {
    struct generation *g;
    struct decoder decoder;
    struct sampler sampler;
    struct answer *answer; /* of this rank's rows */
    int32_t *next;         /* their next tokens */
    bool streams;          /* shows the one answer as it comes */
    struct stop stop;
    enum stop_wish wish; /* why not all prompts are answered; the same on every rank */
    int64_t written;     /* answers; known where they are written */
};

/* A part of a text, as far as it is UTF-8. */
static void show(const char *s, size_t n) {
    char *good = utf8_repair(s, &n);
    fwrite(good, 1, n, stdout);
    fflush(stdout);
    free(good);
}

static void show_answer(struct work *w, struct answer *a) {
    const char *from;
    if (!text_known(&w->g->text)) {
        printf(" %d", a->n_ids ? a->ids[a->n_ids - 1] : -1);
        fflush(stdout);
        return;
    }
    size_t n = answer_show(a, &w->g->ending, &from);
    if (n) show(from, n);
}

static void show_prompt(const struct work *w) {
    const struct prompt *p = w->g->prompts.prompt;
    putchar('\n');
    if (p->text) show(p->text, p->bytes);
    else
        for (int64_t i = 0; i < p->n; i++) printf(i ? " %d" : "%d", p->ids[i]);
    fflush(stdout);
}

/* The next token of every row that goes on; false when none does. */
static bool choose(struct work *w, const struct round *r, struct pace *pace) {
    uint64_t seed = (uint64_t)w->g->engine->deck->run.seed;
    const enum dtype real = w->g->engine->real;
    const size_t row = (size_t)w->sampler.vocabulary * dtype_size(real);
    bool on = false;
    for (int64_t i = 0; i < r->own_n; i++) {
        struct answer *a = &w->answer[i];
        if (a->stop) continue; /* its row is computed on, and nobody reads it */
        double u = sampler_uniform(seed, r->own_first + i, a->n_ids);
        int32_t id =
            sampler_choose(&w->sampler, (const char *)w->decoder.logits + (size_t)i * row, real, u);
        answer_add(a, &w->g->ending, id);
        w->next[i] = id < 0 ? 0 : id;
        pace->new_tokens += id >= 0;
        pace->not_finite += id < 0;
        if (w->streams) show_answer(w, a);
        on |= !a->stop;
    }
    return on;
}

/* The first token of this rank's rows, of which there may be none; false if none goes on. */
static bool begin(struct work *w, const struct round *r, struct pace *pace) {
    double began = seconds_now();
    for (int64_t i = 0; i < r->own_n; i++) {
        const struct prompt *p = &w->g->prompts.prompt[r->own_first + i];
        answer_init(&w->answer[i], &w->g->ending, p->ids, p->n);
        pace->prompt_tokens += p->n;
        pace->begun++;
    }
    if (w->streams) show_prompt(w);
    begin_round(w->g, &w->decoder, r);
    pace->prefill = seconds_now() - began;
    return choose(w, r, pace);
}

/* After a token that took so long: does any rank go on, and does nobody wish to stop? Ranks whose
 * rows have ended wait here for the others, as they would at the end of the round. */
static bool agree(struct work *w, struct comm *c, bool on, double seconds) {
    on = comm_max(c->world, on);
    if (on) w->wish = stop_agree(&w->stop, c, seconds);
    return on && !w->wish;
}

static struct pace run_round(struct work *w, struct comm *c, const struct round *r) {
    struct pace pace = {0};
    double began = seconds_now();
    bool on = (r->own_n || takes_part(w->g)) && begin(w, r, &pace);
    while (agree(w, c, on, seconds_now() - began)) {
        began = seconds_now();
        if (!on) {
            if (takes_part(w->g)) decoder_idle(&w->decoder);
            continue;
        }
        decoder_next(&w->decoder, w->next);
        on = choose(w, r, &pace);
        pace.decode += seconds_now() - began;
    }
    if (w->streams) printf("\n\n");
    return pace;
}

/* ---- collecting ---- */

/* What a rank sends of a round: its pace, and then of each answer that has
 * ended four numbers, ids and bytes. */
enum { NUMBERS = 4 };

static char *pack(const struct work *w, const struct round *r, const struct pace *pace,
                  int64_t *bytes) {
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) die("no memory for the answers");
    const struct mesh_coords *at = &w->g->engine->parallel.at;
    if (at->tensor == 0 && at->context == 0 && at->pipeline == 0 && r->own_n) {
        fwrite(pace, sizeof *pace, 1, f);
        for (int64_t i = 0; i < r->own_n; i++) {
            const struct answer *a = &w->answer[i];
            int64_t number[NUMBERS] = {r->own_first + i, a->n_ids, a->n_bytes, a->stop};
            if (!a->stop) continue; /* the run is stopping */
            fwrite(number, sizeof number, 1, f);
            fwrite(a->ids, sizeof *a->ids, (size_t)a->n_ids, f);
            if (a->n_bytes) fwrite(a->bytes, 1, (size_t)a->n_bytes, f);
        }
    }
    if (fclose(f)) die("no memory for the answers");
    *bytes = (int64_t)size;
    return text;
}

/* All ranks' parts, one after the other; their sizes in bytes[]. Collective over the world. */
static char *collect(struct comm *c, const char *own, int64_t own_bytes, int64_t *bytes) {
    struct request r;
    int64_t *ones = die_alloc((size_t)c->size * sizeof *ones), all = 0;
    for (int i = 0; i < c->size; i++) ones[i] = 1;
    comm_gather_start(c->world, &own_bytes, bytes, ones, sizeof *bytes, &r);
    comm_wait(&r);
    free(ones);
    for (int i = 0; i < c->size; i++) all += bytes[i];
    char *texts = die_alloc((size_t)all + 1);
    comm_gather_start(c->world, own, texts, bytes, 1, &r);
    comm_wait(&r);
    return texts;
}

static json_t *text_json(const char *s, size_t n) {
    char *good = utf8_repair(s, &n);
    json_t *v = json_stringn(good, n);
    free(good);
    return v;
}

static json_t *ids_json(const int32_t *ids, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* One line of generations.jsonl. A prompt without text is its ids; without a
 * tokenizer the answer has no text. */
static void write_answer(const struct generation *g, FILE *f, int64_t index,
                         const struct answer *a) {
    const struct prompt *p = &g->prompts.prompt[index];
    json_t *line = json_object();
    json_object_set_new(line, "index", json_integer(index));
    json_object_set_new(line, "prompt",
                        p->text ? text_json(p->text, p->bytes) : ids_json(p->ids, p->n));
    json_object_set_new(line, "ids", ids_json(a->ids, a->n_ids));
    json_object_set_new(
        line, "text", text_known(&g->text) ? text_json(a->bytes, (size_t)a->n_bytes) : json_null());
    json_object_set_new(line, "stop", json_string(stop_name(a->stop)));
    if (json_dumpf(line, f, 0) || fputc('\n', f) == EOF)
        die("cannot write generations.jsonl; is the disk full?");
    json_decref(line);
}

/* A line of the log: the beginning of the answer, on one line. */
static void say_answer(const struct generation *g, const struct output *o, int64_t index,
                       const struct answer *a) {
    size_t n = a->n_bytes < 60 ? (size_t)a->n_bytes : 60;
    char *text = utf8_repair(a->bytes, &n);
    text[n] = 0;
    for (char *s = text; s < text + n; s++)
        if ((unsigned char)*s < ' ' || *s == 127) *s = ' ';
    say(o, "%8ld %8ld %8ld  %-10s  %s%s", (long)index, (long)g->prompts.prompt[index].n,
        (long)a->n_ids, stop_name(a->stop), text, a->n_bytes > 60 ? "..." : "");
    free(text);
}

/* Writes the answers of one part and returns their number. Parts of later data ranks follow those
 * of earlier ones (parallel/mesh.h), so prompts stay in their order. */
static int64_t unpack(const struct generation *g, const struct output *o, FILE *f, const char *part,
                      int64_t bytes, struct pace *pace) {
    const char *end = part + bytes;
    int64_t n = 0;
    if (!bytes) return 0;
    memcpy(pace, part, sizeof *pace);
    for (part += sizeof *pace; part < end; n++) {
        int64_t number[NUMBERS];
        memcpy(number, part, sizeof number);
        struct answer a = {.n_ids = number[1], .n_bytes = number[2], .stop = (enum ended)number[3]};
        part += sizeof number;
        a.ids = memcpy(die_alloc((size_t)a.n_ids * sizeof *a.ids + 1), part,
                       (size_t)a.n_ids * sizeof *a.ids);
        part += (size_t)a.n_ids * sizeof *a.ids;
        a.bytes = (char *)part;
        part += a.n_bytes;
        write_answer(g, f, number[0], &a);
        if (g->prompts.n > 1) say_answer(g, o, number[0], &a);
        free(a.ids);
    }
    return n;
}

/* Brings a round's answers to rank 0, which writes them; adds the round to `sum`, each part lasting
 * as long as its slowest rank. Collective over the world. */
static void finish_round(struct work *w, struct comm *c, const struct output *o, FILE *f,
                         const struct round *r, const struct pace *pace, struct pace *sum) {
    int64_t own_bytes, *bytes = die_alloc((size_t)c->size * sizeof *bytes);
    char *own = pack(w, r, pace, &own_bytes), *all = collect(c, own, own_bytes, bytes), *part = all;
    double prefill = 0, decode = 0;
    for (int i = 0; i < c->size; part += bytes[i++]) {
        struct pace p = {0};
        if (f) w->written += unpack(w->g, o, f, part, bytes[i], &p);
        else if (bytes[i]) memcpy(&p, part, sizeof p);
        sum->begun += p.begun;
        sum->prompt_tokens += p.prompt_tokens;
        sum->new_tokens += p.new_tokens;
        sum->not_finite += p.not_finite;
        if (p.prefill > prefill) prefill = p.prefill;
        if (p.decode > decode) decode = p.decode;
    }
    sum->prefill += prefill;
    sum->decode += decode;
    if (f && fflush(f)) die("cannot write generations.jsonl; is the disk full?");
    for (int64_t i = 0; i < r->own_n; i++) answer_free(&w->answer[i]);
    free(own);
    free(all);
    free(bytes);
}

/* ---- the mode ---- */

static void say_beginning(const struct output *o, const struct generation *g) {
    const struct engine *e = g->engine;
    const struct deck_generate *k = &e->deck->generate;
    say(o, "model      %s, layers %s", e->config->folder, e->config->kinds);
    char *stages = e->shape.pipeline > 1 ? die_format("pipeline %d x ", e->shape.pipeline) : NULL;
    char *context = e->shape.context > 1 ? die_format("context %d x ", e->shape.context) : NULL;
    say(o, "ranks      %d = %sdata %d x %stensor %d, %d thread%s each on %s", mesh_ranks(&e->shape),
        stages ? stages : "", e->shape.data, context ? context : "", e->shape.tensor,
        e->device.threads, e->device.threads == 1 ? "" : "s", e->device.name);
    free(context);
    free(stages);
    if (k->temperature > 0)
        say(o, "sampling   temperature %g, top_p %g, top_k %ld, seed %ld", k->temperature, k->top_p,
            (long)k->top_k, (long)e->deck->run.seed);
    else say(o, "sampling   the likeliest token");
    if (g->prompts.n > 1)
        say(o, "%8s %8s %8s  %-10s  %s", "prompt", "tokens", "new", "ended by", "continued");
}

static double per_second(double n, double seconds) {
    return n > 0 && seconds > 0 ? n / seconds : 0;
}

static int say_end(const struct output *o, struct comm *c, const struct work *w,
                   const struct pace *p) {
    const struct generation *g = w->g;
    /* of each prompt that was begun, the first comes with the prefill */
    double read = per_second((double)p->prompt_tokens, p->prefill),
           made = per_second((double)(p->new_tokens + p->not_finite - p->begun), p->decode);
    int code = w->wish ? 3 : p->not_finite ? 4 : 0;
    char a[32], b[32],
        *why = w->wish
                   ? die_format("early, by %s; the same command starts over", stop_reason(w->wish))
                   : die_strdup(code ? "some logits were not finite" : "finished"),
        *more = die_format("prompts: %ld\nprompt_tokens: %ld\nnew_tokens: %ld\nprefill_seconds: "
                           "%.6f\ndecode_seconds: %.6f\n"
                           "prefill_tokens_per_second: %s\ndecode_tokens_per_second: %s\n",
                           (long)g->prompts.n, (long)p->prompt_tokens, (long)p->new_tokens,
                           p->prefill, p->decode, number_text(read, a), number_text(made, b));
    output_summary(o, c, why, code, engine_peak_bytes(g->engine), more);
    if (p->not_finite)
        say(o,
            "stopped    logits of %ld prompt%s were not finite: the weights or the model's keys "
            "are not right",
            (long)p->not_finite, p->not_finite == 1 ? "" : "s");
    say(o,
        "%s   %ld prompt%s: %ld tokens read at %.0f a second, %ld made at %.0f a second; "
        "everything is in %s",
        w->wish ? "answered" : "finished", (long)w->written, w->written == 1 ? "" : "s",
        (long)p->prompt_tokens, read, (long)p->new_tokens, made, o->folder);
    if (w->wish)
        say(o, "stopped    %s; %ld of %ld answers are written", why, (long)w->written,
            (long)g->prompts.n);
    free(why);
    free(more);
    return code;
}

static int run_rounds(struct run *run, struct generation *g, const struct stop *stop) {
    struct engine *e = run->engine;
    const struct deck_generate *k = &e->deck->generate;
    struct output o;
    struct pace sum = {0};
    struct work w = {.g = g, .streams = g->prompts.n == 1 && run->comm->rank == 0, .stop = *stop};
    struct round largest = round_at(g, 0);
    w.answer = die_alloc((size_t)(largest.own_n + 1) * sizeof *w.answer);
    w.next = die_alloc((size_t)(largest.own_n + 1) * sizeof *w.next);
    make_decoder(g, &w.decoder);
    sampler_init(&w.sampler, e->config->keys.vocab_size, k->temperature, k->top_k, k->top_p);
    output_begin(&o, e->deck, run->comm, run->argc, run->argv, -1);
    say_beginning(&o, g);
    char *path = die_format("%s/generations.jsonl", o.folder);
    FILE *f = o.speaks ? fopen(path, "w") : NULL;
    if (o.speaks && !f) die("cannot write %s", path);
    w.wish = stop_agree(&w.stop, run->comm, 0); /* asked while it was starting */
    for (int64_t first = 0; first < g->prompts.n && !w.wish;) {
        struct round r = round_at(g, first);
        struct pace pace = run_round(&w, run->comm, &r);
        finish_round(&w, run->comm, &o, f, &r, &pace, &sum);
        first += r.n;
        /* Rounds whose answers have one token have no step behind which they could be asked. */
        if (first < g->prompts.n && !w.wish) w.wish = stop_agree(&w.stop, run->comm, pace.prefill);
    }
    if (f && fclose(f)) die("cannot write %s; is the disk full?", path);
    int code = say_end(&o, run->comm, &w, &sum);
    if (w.wish && o.speaks) stop_clear(&w.stop);
    output_end(&o);
    sampler_free(&w.sampler);
    decoder_free(&w.decoder);
    free(w.answer);
    free(w.next);
    free(path);
    return code;
}

int mode_generate(struct run *run, struct mistakes *m) {
    struct engine *e = run->engine;
    struct generation g;
    struct stop stop;
    int code = 2;
    if (!e->has_weights)
        deck_mistake(e->deck, m, "model.from",
                     "mode generate needs the folder of a model, or of a run");
    int bad = generation_prepare(&g, e, run->comm->world, m);
    stop_init(&stop, e->deck); /* not before, so that Ctrl-C ends a person's typing of prompts */
    if (!bad && !m->n && !engine_init(e, run->comm, run->shape, false, false, false, m))
        code = run_rounds(run, &g, &stop);
    generation_free(&g);
    return code;
}
