#include "src/show.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/comm.h"
#include "parallel/timer.h"
#include "src/engine.h"
#include "src/feed.h"
#include "src/loads.h"
#include "src/modes.h"
#include "src/report.h"
#include "src/screen.h"
#include "src/timetable.h"
#include "src/units.h"

static const struct deck *deck_of(const struct show *s) {
    return s->run->engine->deck;
}

/* ---------------------------------------------------------------- before the first step */

int show_open(struct show *s, const struct run *r, struct mistakes *m) {
    const struct engine *e = r->engine;
    *s = (struct show){.run = r, .validation = NAN};
    s->before = (struct output){.speaks = r->comm->rank == 0, .folder = e->deck->run.output};
    if (s->before.speaks && !(s->before.log = open_memstream(&s->early, &s->early_size)))
        die("no memory for the log");
    screen_title(&s->before, r);
    if (machine_find(&s->machine, r->comm, e->deck, e->config, r->shape, m)) return -1;
    screen_run(&s->before, r, &s->machine);
    screen_keys(&s->before, r);
    screen_model(&s->before, r);
    screen_layout(&s->before, r, &s->machine);
    return 0;
}

static void end_early(struct show *s, FILE *log) {
    if (!s->before.log) return;
    fclose(s->before.log);
    s->before.log = NULL;
    if (log && s->early_size) fwrite(s->early, 1, s->early_size, log);
    free(s->early);
    s->early = NULL;
}

static void step_begins(struct show *s) {
    struct timer *t = s->run->comm->timer;
    s->begun_ns = timer_total_ns(t);
    s->begun_waited_ns = timer_waited_ns(t);
}

void show_begin(struct show *s, struct output *o, const struct feed *feed, int64_t done,
                int64_t total) {
    s->output = o;
    s->done = s->since_step = s->last.step = done;
    s->total = total;
    s->last.tokens = done * feed->global_batch * feed->length;
    end_early(s, o->log);
    screen_work(o, s->run, feed, total);
    screen_notes(o, s->run, &s->machine, feed, total);
    if (o->speaks && deck_of(s)->log.tensorboard)
        events_open(&s->events, o->folder, done > 0 ? done : -1);
    s->began_s = s->reported_s = seconds_now();
    timer_leave(s->run->comm->timer); /* start-up, which main entered */
    step_begins(s);
}

/* ---------------------------------------------------------------- steps */

void show_stepped(struct show *s) {
    struct timer *t = s->run->comm->timer;
    s->ran_ns += timer_total_ns(t) - s->begun_ns;
    s->waited_ns += timer_waited_ns(t) - s->begun_waited_ns;
}

void show_step(struct show *s, const struct step_metrics *k) {
    s->since_s += k->step_seconds;
    s->last = *k;
    s->steps++;
    s->shares += k->mfu;
    if (k->validated) s->validation = k->validation;
    output_metrics(s->output, k);
    struct event_value v[9] = {{"loss", k->loss},
                               {"grad_norm", k->grad_norm},
                               {"learning_rate", k->learning_rate},
                               {"tokens_per_second", k->tokens_per_second},
                               {"step_seconds", k->step_seconds}};
    int n = 5;
    if (k->loads) v[n++] = (struct event_value){"imbalance", loads_worst(k->loads)};
    if (k->balances) v[n++] = (struct event_value){"loss_balance", k->loss_balance};
    if (k->squares) v[n++] = (struct event_value){"loss_z", k->loss_z};
    if (k->validated) v[n++] = (struct event_value){"validation", k->validation};
    events_write(&s->events, wall_now(), k->step, n, v);
}

void show_did(struct show *s, char letter, const char *fmt, ...) {
    size_t n = strlen(s->did), at = strlen(s->words);
    if (n + 1 < sizeof s->did && !strchr(s->did, letter)) s->did[n] = letter, s->did[n + 1] = '\0';
    if (letter == 's') s->skipped++;
    if (!fmt) return;
    if (at && at + 2 < sizeof s->words) s->words[at++] = ' ', s->words[at] = '\0';
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->words + at, sizeof s->words - at, fmt, ap);
    va_end(ap);
}

/* Sums over ranks of the time in steps, and of the waiting in it. */
static double idle_share(struct show *s) {
    int64_t sums[2] = {s->ran_ns, s->waited_ns};
    struct group *g = s->run->comm->world;
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(g, 2, I64));
    comm_sum_start(g, sums, 2, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
    return sums[0] > 0 ? (double)sums[1] / (double)sums[0] : 0;
}

/* Memory is in one unit throughout: GiB if any rank plans that much. */
static double memory_unit(const struct show *s) {
    for (int r = 0; r < s->machine.ranks; r++)
        if (plan_bytes(&s->machine.rank[r].plan) >= 1 << 30) return 1073741824.0;
    return 1048576.0;
}

static void say_heads(struct show *s) {
    if (s->headed) return;
    s->headed = true;
    say(s->output, "\ns/step, tokens/s and idle: means since the line before. "
                   "what: e evaluated, c saved, s skipped");
    if (s->last.loads) say(s->output, "load: tokens of the fullest expert over the mean of all");
    say(s->output, "%8s %11s %7s %8s %8s %6s %8s %5s %7s %8s%s %s", "step", "tokens", "loss",
        "norm", "rate", "s/step", "tokens/s", "idle%", memory_unit(s) > 1e9 ? "GiB" : "MiB", "ETA",
        s->last.loads ? " load" : "", "what");
}

void show_line(struct show *s, bool always) {
    const struct deck *d = deck_of(s);
    const struct step_metrics *k = &s->last;
    bool due = always || *s->did || k->step == s->done + 1 || k->step % d->log.interval == 0 ||
               k->step == s->total;
    if (due && s->steps) {
        char eta[UNIT_TEXT];
        double idle = idle_share(s), took = s->since_s / (double)(k->step - s->since_step);
        double tokens = (double)(d->train.global_batch * d->train.sequence_length);
        double a_step = (seconds_now() - s->began_s) / (double)s->steps;
        char fullest[UNIT_TEXT] = "";
        if (k->loads) snprintf(fullest, sizeof fullest, " %4.1f", loads_worst(k->loads));
        say_heads(s);
        say(s->output, "%8ld %11ld %7.4f %8.3g %8.2e %6.3f %8.0f %5.1f %7.2f %8s%s%s%s%s%s",
            (long)k->step, (long)k->tokens, k->loss, k->grad_norm, k->learning_rate, took,
            tokens / took, 100 * idle, (double)k->peak_bytes / memory_unit(s),
            duration_text(a_step * (double)(s->total - k->step), eta), fullest, *s->did ? " " : "",
            s->did, *s->words ? " " : "", s->words);
        s->since_step = k->step;
        s->since_s = 0;
        s->ran_ns = s->waited_ns = 0;
        *s->did = *s->words = '\0';
        double now = seconds_now();
        if (s->output->speaks && now - s->reported_s > 30 + 20 * s->report_cost_s) {
            report_write(s, NULL, "");
            s->reported_s = seconds_now();
            s->report_cost_s = s->reported_s - now;
        }
    }
    step_begins(s);
}

/* ---------------------------------------------------------------- the end */

/* What the newest step took on every rank: as planned, or something is wrong. */
static void costs_yaml(const struct comm *c, const struct costs *all, FILE *f) {
    if (!all) return;
    fprintf(
        f,
        "step:                # the newest, by rank: work, memory traffic, bytes sent by group\n");
    for (int r = 0; r < c->size; r++) {
        fprintf(f, "  - ");
        costs_print(&all[r], f);
        fprintf(f, "\n");
    }
}

/* The costs of the newest step of all ranks (malloc'd), NULL before the first. Collective over the
 * world. */
static struct costs *gather_costs(const struct show *s) {
    struct comm *c = s->run->comm;
    if (!s->steps) return NULL;
    struct costs *all = die_alloc((size_t)c->size * sizeof *all);
    int64_t *ones = die_alloc((size_t)c->size * sizeof *ones);
    struct request r;
    for (int i = 0; i < c->size; i++) ones[i] = 1;
    comm_gather_start(c->world, &s->costs, all, ones, sizeof *all, &r);
    comm_wait(&r);
    free(ones);
    return all;
}

/* Share of the time in passes that ranks waited for another stage. */
static double waited_for_stages(const struct timetable *t) {
    static const enum range passes[] = {RANGE_FORWARD, RANGE_BACKWARD, RANGE_EXCHANGE,
                                        RANGE_PIPELINE};
    int64_t all = 0, waited = 0;
    for (int r = 0; r < t->ranks; r++) {
        for (int i = 0; i < 4; i++) all += t->rank[r].spent_ns[passes[i]];
        waited += t->rank[r].spent_ns[RANGE_PIPELINE];
    }
    return all ? (double)waited / (double)all : 0;
}

/* Further lines of summary.yaml (malloc'd). */
static char *summary_lines(const struct show *s, const struct timetable *t, double took,
                           double speed, const struct costs *all) {
    char number[32], *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) die("no memory for the summary");
    fprintf(f, "steps: %ld\nfirst_step: %ld\ntokens: %ld\n", (long)s->last.step, (long)s->done + 1,
            (long)s->last.tokens);
    if (s->steps) fprintf(f, "loss: %s\n", number_text(s->last.loss, number));
    if (isfinite(s->validation)) fprintf(f, "validation: %s\n", number_text(s->validation, number));
    fprintf(f, "skipped_updates: %ld\nseconds: %.3f            # from the first step on\n",
            (long)s->skipped, took);
    fprintf(f, "tokens_per_second: %s\n", number_text(speed, number));
    fprintf(f, "mfu: %s           # mean over steps of work / (time x peak of all ranks)\n",
            number_text(s->shares / (double)s->steps, number));
    costs_yaml(s->run->comm, all, f);
    for (int i = 0; s->last.loads && i < s->last.loads->layers; i++)
        fprintf(f, "%s%s", i ? ", " : "imbalance: [",
                number_text(loads_imbalance(s->last.loads, i), number));
    if (s->last.loads)
        fprintf(f, "]      # the newest step's, by layer: fullest expert over mean\n");
    timetable_yaml(t, f);
    if (s->run->engine->stages.n > 1)
        fprintf(f, "pipeline: {idle_planned: %.4f, idle_measured: %.4f}   # shares of the passes\n",
                pipeline_idle(&s->run->engine->pipeline), waited_for_stages(t));
    fclose(f);
    return text;
}

static void say_end(const struct show *s, const struct timetable *t, double took, double speed,
                    const char *why, int code) {
    const struct output *o = s->output;
    char tokens[UNIT_TEXT], peak[UNIT_TEXT], plan[UNIT_TEXT], duration[UNIT_TEXT], skipped[48] = "";
    int64_t most = 0, planned = 0;
    const bool through = !strcmp(why, "finished");
    for (int r = 0; r < s->machine.ranks; r++)
        if (s->machine.rank[r].peak > most) {
            most = s->machine.rank[r].peak;
            planned = plan_bytes(&s->machine.rank[r].plan);
        }
    if (!s->steps && s->done && !code) {
        say(o,
            "\nAll %ld steps were finished before: nothing is left to do. More train.steps would "
            "go on",
            (long)s->total);
        return;
    }
    if (s->skipped) snprintf(skipped, sizeof skipped, ", %ld updates skipped", (long)s->skipped);
    say(o, "\n%s at step %ld of %ld after %s\n", through ? "Finished" : "Stopped",
        (long)s->last.step, (long)s->total, duration_text(took, duration));
    timetable_say(t, o, &s->machine);
    const struct engine *e = s->run->engine;
    if (e->stages.n > 1)
        say(o, "  pipeline %s: %.1f %% idle by plan, %.1f %% of the passes waited",
            schedule_kind_name(e->stages.shape.kind), 100 * pipeline_idle(&e->pipeline),
            100 * waited_for_stages(t));
    say(o, "  %s tokens/s, peak %s on a rank, %s by plan%s",
        s->steps ? grouped_text((int64_t)speed, tokens) : "no", bytes_text((double)most, peak),
        bytes_text((double)planned, plan), skipped);
    if (!through) say_wrapped(o, "  why", why);
}

int show_end(struct show *s, const char *why, int code) {
    const struct deck *d = deck_of(s);
    struct output *o = s->output;
    struct comm *c = s->run->comm;
    struct timetable t;
    double took = seconds_now() - s->began_s,
           tokens = (double)(s->steps * d->train.global_batch * d->train.sequence_length);
    double speed = s->steps ? tokens / took : NAN;
    timetable_gather(&t, c, c->timer);
    machine_measure(&s->machine, c, engine_peak_bytes(s->run->engine));
    say_end(s, &t, took, speed, why, code);
    struct costs *all = gather_costs(s);
    char *more = summary_lines(s, &t, took, speed, all);
    output_summary(o, c, why, code, engine_peak_bytes(s->run->engine), more);
    if (o->speaks && (s->steps || !s->done)) report_write(s, &t, why);
    say(o, "  everything is in %s; see report.html there", o->folder);
    free(more);
    free(all);
    timetable_free(&t);
    return code;
}

void show_free(struct show *s) {
    end_early(s, NULL);
    events_close(&s->events);
    machine_free(&s->machine);
}
