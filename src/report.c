#include "src/report.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/comm.h"
#include "src/chart.h"
#include "src/engine.h"
#include "src/loads.h"
#include "src/modes.h"
#include "src/screen.h"
#include "src/show.h"
#include "src/timetable.h"
#include "src/units.h"

static const char style[] =
    ":root{color-scheme:light "
    "dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2330;--dim:#667085;--line:#e3e6eb;"
    "--c1:#2f6fdb;--c2:#e07b1a;--c3:#2a9d63;--c4:#8b5fd0;--c5:#d1495b;--c6:#0f9fb0;--c7:#b08900;--"
    "c8:#6b7a90;--c9:#c05ca8;--c10:#8d6e53;"
    "--c11:#c9ced6}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1a1f28;--ink:#e6e9ef;--dim:#"
    "98a2b3;--line:#2c333f;"
    "--c1:#6ea2ff;--c2:#f5a454;--c3:#58c88d;--c4:#b592f0;--c5:#f07a8a;--c6:#4fcbd9;--c7:#dcb84a;--"
    "c8:#93a1b5;--c9:#e48ccf;--c10:#c3a184;"
    "--c11:#4a5464}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 "
    "system-ui,sans-serif}\n"
    "main{max-width:1320px;margin:auto;padding:24px}h1{font-size:24px;margin:0}h2{font-size:17px;"
    "margin:0 0 10px}\n"
    ".sub{color:var(--dim);margin:2px 0 18px}.card{background:var(--card);border:1px solid "
    "var(--line);border-radius:10px;"
    "padding:14px 16px;margin:0}\n"
    ".grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:"
    "16px;margin-bottom:16px}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin-"
    "bottom:16px}\n"
    ".tiles .card b{display:block;font-size:21px;font-variant-numeric:tabular-nums}.tiles "
    "span,.unit{color:var(--dim);font-size:13px}\n"
    "section.card{margin-bottom:16px;overflow-x:auto}figcaption{margin-bottom:6px}.key{color:var(--"
    "dim);font-size:13px;margin:0 0 8px}\n"
    "figcaption .key{float:right}.key "
    "i{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 5px 0 12px}\n"
    ".key i.stroke{width:3px;height:14px;background:var(--ink);vertical-align:-2px}.key "
    "span{white-space:nowrap}\n"
    "svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font:12px "
    "system-ui,sans-serif;font-variant-numeric:tabular-nums}\n"
    ".grid{stroke:var(--line)}.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.thin{stroke-"
    "width:1.2;stroke-dasharray:4 3}\n"
    ".band{opacity:.22}.mark{stroke:var(--ink);stroke-width:2.5}\n"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:3px "
    "12px 3px 0;text-align:right;"
    "border-top:1px solid "
    "var(--line);font-weight:400}th{color:var(--dim);border:0;font-size:13px}\n"
    "td:first-child,th:first-child,.facts td{text-align:left}tr.sum td{font-weight:600}.facts "
    "td:first-child{color:var(--dim);width:110px}\n"
    "pre{overflow:auto;font:13px/1.45 ui-monospace,monospace;margin:10px 0 "
    "0}summary{cursor:pointer}\n";

/* ---------------------------------------------------------------- the metrics */

enum { TOKENS, LOSS, NORM, RATE, SPEED, VALIDATION, IMBALANCE, BALANCE, N_SERIES };
static const char *const series_key[N_SERIES] = {
    "tokens",     "loss",      "grad_norm",   "learning_rate", "tokens_per_second",
    "validation", "imbalance", "loss_balance"};

struct series {
    int n, room;
    double *v[N_SERIES];
};

static void take_line(struct series *s, const char *line) {
    json_t *object = json_loads(line, 0, NULL);
    if (!object) return; /* the line being written */
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        for (int k = 0; k < N_SERIES; k++)
            s->v[k] = die_realloc(s->v[k], (size_t)s->room * sizeof(double));
    }
    for (int k = 0; k < N_SERIES; k++) {
        const json_t *x = json_object_get(object, series_key[k]);
        s->v[k][s->n] = json_is_number(x) ? json_number_value(x) : NAN;
    }
    s->n++;
    json_decref(object);
}

static void read_metrics(struct series *s, const char *folder) {
    char *path = die_format("%s/metrics.jsonl", folder), *line = NULL;
    size_t room = 0;
    *s = (struct series){0};
    FILE *f = fopen(path, "r");
    while (f && getline(&line, &room, f) > 0) take_line(s, line);
    if (f) fclose(f);
    free(line);
    free(path);
}

static bool any_finite(int n, const double *x) {
    for (int i = 0; i < n; i++)
        if (isfinite(x[i])) return true;
    return false;
}

static void write_charts(FILE *f, const struct series *s) {
    double *const *v = s->v;
    struct chart charts[] = {
        {"Loss",
         "",
         "tokens",
         false,
         false,
         2,
         {{"training", 1, s->n, v[TOKENS], v[LOSS], false},
          {"validation", 2, s->n, v[TOKENS], v[VALIDATION], true}}},
        {"Throughput",
         "tokens a second",
         "tokens",
         false,
         true,
         1,
         {{"", 3, s->n, v[TOKENS], v[SPEED], false}}},
        {"Gradient norm",
         "before clipping",
         "tokens",
         true,
         true,
         1,
         {{"", 4, s->n, v[TOKENS], v[NORM], false}}},
        {"Learning rate", "", "tokens", false, true, 1, {{"", 6, s->n, v[TOKENS], v[RATE], false}}},
        {"Balance of experts",
         "1 is even",
         "tokens",
         true,
         false,
         2,
         {{"fullest over mean, worst layer", 5, s->n, v[TOKENS], v[IMBALANCE], false},
          {"balance loss", 7, s->n, v[TOKENS], v[BALANCE], false}}},
    };
    size_t shown = sizeof charts / sizeof *charts - !any_finite(s->n, v[IMBALANCE]);
    /* Validation is measured now and then: only those points. */
    double *x = die_alloc((size_t)(s->n + 1) * sizeof *x),
           *y = die_alloc((size_t)(s->n + 1) * sizeof *y);
    struct curve *c = &charts[0].curve[1];
    c->n = 0;
    for (int i = 0; i < s->n; i++)
        if (isfinite(v[VALIDATION][i])) x[c->n] = v[TOKENS][i], y[c->n++] = v[VALIDATION][i];
    c->x = x;
    c->y = y;
    fputs("<div class=\"grid2\">\n", f);
    for (size_t i = 0; i < shown; i++) chart_write(f, &charts[i]);
    fputs("</div>\n", f);
    free(x);
    free(y);
}

/* ---------------------------------------------------------------- the head */

static void tile(FILE *f, const char *name, const char *value) {
    fprintf(f, "<div class=\"card\"><b>%s</b><span>%s</span></div>\n", value, name);
}

static void write_head(FILE *f, const struct show *s, bool running, const char *why) {
    const struct deck *d = s->run->engine->deck;
    char text[64], more[UNIT_TEXT];
    double took = seconds_now() - s->began_s;
    fputs("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
          "content=\"width=device-width\">\n",
          f);
    if (running) fputs("<meta http-equiv=\"refresh\" content=\"60\">\n", f);
    fputs("<title>", f);
    html_text(f, d->run.name);
    fprintf(f, " - mestar</title>\n<style>\n%s</style>\n<main>\n<h1>", style);
    html_text(f, d->run.name);
    fputs("</h1>\n<p class=\"sub\">", f);
    if (running) fputs("running", f);
    else if (strcmp(why, "finished")) fputs("stopped: ", f);
    html_text(f, why);
    fprintf(f, ", %s</p>\n<div class=\"tiles\">\n", moment_text(wall_now(), more));
    char *of = die_format("of %ld steps", (long)s->total);
    snprintf(text, sizeof text, "%ld", (long)s->last.step);
    tile(f, of, text);
    free(of);
    tile(f, "tokens", count_text((double)s->last.tokens, text));
    if (s->steps) snprintf(text, sizeof text, "%.4f", s->last.loss), tile(f, "loss", text);
    if (isfinite(s->validation))
        snprintf(text, sizeof text, "%.4f", s->validation), tile(f, "validation loss", text);
    double tokens = (double)s->steps * (double)(d->train.global_batch * d->train.sequence_length);
    if (s->steps) tile(f, "tokens a second", count_text(tokens / took, text));
    tile(f, "time", duration_text(took, text));
    tile(f, "peak of a rank", bytes_text((double)s->last.peak_bytes, text));
    fputs("</div>\n", f);
}

/* ---------------------------------------------------------------- time and memory */

enum { MOST_BARS = 16 };

static void seconds_text(double s, char text[32]) {
    snprintf(text, 32, s < 10 ? "%.2f s" : "%.0f s", s);
}

static void memory_text(double bytes, char text[32]) {
    bytes_text(bytes, text);
}

/* Names of the first bars of ranks. */
static char **rank_names(const struct machine *h, int n) {
    char **name = die_alloc((size_t)n * sizeof *name);
    for (int r = 0; r < n; r++) name[r] = die_format("rank %d %.12s", r, h->rank[r].name);
    return name;
}

static void free_names(char **name, int n) {
    for (int i = 0; i < n; i++) free(name[i]);
    free(name);
}

static void write_time_table(FILE *f, const struct timetable *t) {
    struct time_row rows[N_RANGES + 1];
    int n = timetable_rows(t, 1000000, rows);
    fputs("<table><tr><th>range<th>calls<th>min s<th>mean s<th>max s<th>%<th>waiting "
          "s<th>slowest</tr>\n",
          f);
    for (int i = 0; i < n; i++) {
        const struct time_row *r = &rows[i];
        bool total = i == n - 1;
        fprintf(f, "<tr%s><td>%s<td>", total ? " class=\"sum\"" : "", r->name);
        if (r->calls) fprintf(f, "%lld", (long long)r->calls);
        fprintf(f, "<td>%.3f<td>%.3f<td>%.3f<td>%.1f<td>%.3f<td>", (double)r->min_ns * 1e-9,
                (double)r->mean_ns * 1e-9, (double)r->max_ns * 1e-9, r->share / 10.0,
                (double)r->waited_ns * 1e-9);
        if (!total) fprintf(f, "rank %d", r->slowest);
        fputs("</tr>\n", f);
    }
    fputs("</table>\n", f);
}

/* Parts in the order of a step; a colour each, `other` the last. */
static const enum range parts[] = {RANGE_FORWARD,  RANGE_BACKWARD,   RANGE_EXCHANGE,
                                   RANGE_PIPELINE, RANGE_GRADIENTS,  RANGE_OPTIMISER,
                                   RANGE_DATA,     RANGE_VALIDATION, RANGE_CHECKPOINT,
                                   RANGE_START,    RANGE_OTHER};
enum { N_PARTS = sizeof parts / sizeof *parts };

static void write_time(FILE *f, const struct show *s, const struct timetable *t) {
    struct timetable own = {1, die_alloc(sizeof *own.rank)};
    struct timer *timer = s->run->comm->timer;
    const char *names[N_PARTS];
    if (!t) { /* only this rank, so far */
        timer_total_ns(timer);
        memcpy(own.rank->spent_ns, timer->spent_ns, sizeof own.rank->spent_ns);
        memcpy(own.rank->waited_ns, timer->waited_ns, sizeof own.rank->waited_ns);
        memcpy(own.rank->calls, timer->calls, sizeof own.rank->calls);
        t = &own;
    }
    int n = t->ranks < MOST_BARS ? t->ranks : MOST_BARS;
    double *size = die_alloc((size_t)n * N_PARTS * sizeof *size);
    for (int p = 0; p < N_PARTS; p++) names[p] = range_name(parts[p]);
    for (int r = 0; r < n; r++)
        for (int p = 0; p < N_PARTS; p++)
            size[r * N_PARTS + p] = (double)t->rank[r].spent_ns[parts[p]] * 1e-9;
    char **rank = rank_names(&s->machine, n);
    fprintf(f, "<section class=\"card\"><h2>Where the time went%s</h2>\n",
            t == &own && s->machine.ranks > 1 ? " (rank 0 so far)" : "");
    bars_write(f, &(struct bars){"s", n, N_PARTS, rank, names, size, NULL, NULL, seconds_text});
    if (n < t->ranks)
        fprintf(f, "<p class=\"unit\">the first %d of %d ranks; the table has all</p>\n", n,
                t->ranks);
    write_time_table(f, t);
    fputs("</section>\n", f);
    free_names(rank, n);
    free(size);
    free(own.rank);
}

static void write_memory(FILE *f, const struct show *s) {
    static const char *const names[] = {"parameters", "gradients", "moments", "activations",
                                        "scratch"};
    const struct machine *h = &s->machine;
    int n = h->ranks < MOST_BARS ? h->ranks : MOST_BARS;
    double *size = die_alloc((size_t)n * 5 * sizeof *size),
           *peak = die_alloc((size_t)n * sizeof *peak);
    bool measured = false;
    for (int r = 0; r < n; r++) {
        const struct rank_plan *p = &h->rank[r].plan;
        const int64_t bytes[] = {p->parameters, p->gradients, p->moments, p->activations,
                                 p->scratch};
        for (int i = 0; i < 5; i++) size[5 * r + i] = (double)bytes[i];
        peak[r] = (double)h->rank[r].peak;
        measured |= peak[r] > 0;
    }
    char **rank = rank_names(h, n), need[UNIT_TEXT], have[UNIT_TEXT];
    fputs("<section class=\"card\"><h2>Memory of each rank</h2>\n", f);
    bars_write(f, &(struct bars){"bytes", n, 5, rank, names, size, measured ? peak : NULL,
                                 "measured peak", memory_text});
    fprintf(f, "<p class=\"unit\">planned; host ");
    html_text(f, h->rank[h->first[h->fullest]].name);
    fprintf(f, " needs %s of its %s%s</p></section>\n",
            bytes_text((double)machine_host_bytes(h, h->fullest), need),
            bytes_text((double)h->rank[h->first[h->fullest]].memory, have),
            n < h->ranks ? "; the first ranks are shown" : "");
    free_names(rank, n);
    free(size);
    free(peak);
}

/* ---------------------------------------------------------------- experts */

/* The loads of a layer's experts in the newest step, a step of the line each; the mean is half way
 * up, and what is above twice the mean is cut. */
static void draw_loads(FILE *f, const int64_t *load, int64_t experts, double mean) {
    enum { WIDE = 600, HIGH = 24 };
    fprintf(f,
            "<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=\"none\" "
            "style=\"height:%dpx\"><path class=\"grid\" d=\"M0 %d H%d\"/><path class=\"curve\" "
            "stroke=\"var(--c5)\" d=\"",
            WIDE, HIGH, HIGH, HIGH / 2, WIDE);
    for (int64_t e = 0; e < experts; e++) {
        double y = mean > 0 ? HIGH - HIGH / 2. * (double)load[e] / mean : HIGH;
        fprintf(f, "%c%.1f %.1fH%.1f", e ? 'L' : 'M', (double)(e * WIDE) / (double)experts,
                y > 0 ? y : 0, (double)((e + 1) * WIDE) / (double)experts);
    }
    fputs("\"/></svg>", f);
}

static void write_loads(FILE *f, const struct loads *l) {
    if (!l) return;
    fputs("<section class=\"card\"><h2>Tokens of each expert in the newest step</h2>"
          "<table><tr><th>layer<th>least<th>mean<th>most<th>most over mean<th></tr>\n",
          f);
    for (int i = 0; i < l->layers; i++) {
        const int64_t *n = l->n + i * l->experts;
        int64_t least = n[0], most = n[0], sum = 0;
        for (int64_t e = 0; e < l->experts; e++) {
            sum += n[e];
            if (n[e] < least) least = n[e];
            if (n[e] > most) most = n[e];
        }
        double mean = (double)sum / (double)l->experts;
        fprintf(f, "<tr><td>%d<td>%ld<td>%.1f<td>%ld<td>%.2f<td style=\"width:60%%\">", l->layer[i],
                (long)least, mean, (long)most, loads_imbalance(l, i));
        draw_loads(f, n, l->experts, mean);
        fputs("</tr>\n", f);
    }
    fputs("</table></section>\n", f);
}

/* ---------------------------------------------------------------- where it came from */

static void write_deck(FILE *f, const char *folder) {
    char *path = die_format("%s/used.yaml", folder), *line = NULL;
    size_t room = 0;
    FILE *deck = fopen(path, "r");
    fputs("<section class=\"card\"><details><summary><b>The deck as used</b>, every key with its "
          "value and where it came from</summary><pre>",
          f);
    while (deck && getline(&line, &room, deck) > 0) html_text(f, line);
    fputs("</pre></details></section>\n", f);
    if (deck) fclose(deck);
    free(line);
    free(path);
}

static void write_facts(FILE *f, const struct show *s) {
    enum { ROOM = 16 };
    struct fact fact[ROOM];
    int n = screen_facts(s->run, &s->machine, fact, ROOM);
    fputs("<section class=\"card\"><h2>Provenance</h2><table class=\"facts\">\n", f);
    for (int i = 0; i < n; i++) {
        fprintf(f, "<tr><td>%s<td>", fact[i].label);
        html_text(f, fact[i].text);
        fputs("</tr>\n", f);
        free(fact[i].text);
    }
    fputs("</table></section>\n", f);
}

void report_write(const struct show *s, const struct timetable *t, const char *why) {
    struct series series;
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) die("no memory for the report");
    read_metrics(&series, s->output->folder);
    write_head(f, s, !t, why);
    write_charts(f, &series);
    write_time(f, s, t);
    write_memory(f, s);
    write_loads(f, s->last.loads);
    write_facts(f, s);
    write_deck(f, s->output->folder);
    fputs("</main></html>\n", f);
    fclose(f);
    output_text(s->output, "report.html", text);
    free(text);
    for (int k = 0; k < N_SERIES; k++) free(series.v[k]);
}
