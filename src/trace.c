#include "src/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/die.h"
#include "parallel/comm.h"
#include "src/deck.h"
#include "src/engine.h"
#include "src/output.h"

enum { GAP_NS = 1000000 }; /* between traced steps in the file */

static FILE *lines; /* this rank's events of the step that is traced; NULL: none is */
static char *text;
static size_t text_bytes;
static int64_t zero, shift;      /* the step's beginning, here and in the file */
static int own_rank, own_column; /* column: what else talks along the pipeline stands apart */
static int64_t own_step;
static int own_pass; /* of the step: a diagnosis takes its micro-batches through the stages again */
static char *whole;  /* on rank 0: the events of all traced steps */

static int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool chosen(const struct deck *d, int64_t step) {
    for (int i = 0; i < d->log.trace_steps.n; i++)
        if ((int64_t)d->log.trace_steps.v[i] == step) return true;
    return false;
}

static void span(const char *name, const char *args, int64_t from, int64_t to) {
    fprintf(lines,
            ",\n{\"name\": \"%s\", \"ph\": \"X\", \"pid\": 0, \"tid\": %d, \"ts\": %.3f, "
            "\"dur\": %.3f, \"args\": {%s}}",
            name, own_rank, 1e-3 * (double)(from - zero + shift), 1e-3 * (double)(to - from), args);
}

static void on_waited(const struct group *g, int64_t from) {
    trace_span("wait", g->name, from);
}

/* The ranks of a host have one clock, so one zero, or an arrow could go back in time. */
static int64_t common_zero(struct comm *c) {
    int64_t own[2] = {c->host, clock_ns()}, latest = own[1];
    int64_t *counts = die_alloc((size_t)c->size * sizeof *counts);
    int64_t *all = die_alloc((size_t)c->size * sizeof own);
    struct request r;
    for (int i = 0; i < c->size; i++) counts[i] = 1;
    comm_gather_start(c->world, own, all, counts, sizeof own, &r);
    comm_wait(&r);
    for (int i = 0; i < c->size; i++)
        if (all[2 * i] == c->host && all[2 * i + 1] > latest) latest = all[2 * i + 1];
    free(counts);
    free(all);
    return latest;
}

void trace_begin(const struct engine *e, int64_t step) {
    if (!chosen(e->deck, step)) return;
    struct comm *c = e->comm;
    const struct mesh_coords *at = &e->parallel.at;
    own_rank = c->rank;
    own_column = (at->data * e->shape.context + at->context) * e->shape.tensor + at->tensor;
    own_step = step;
    own_pass = 0;
    lines = open_memstream(&text, &text_bytes);
    if (!lines) die("no memory for the trace");
    if (!shift)
        fprintf(lines,
                ",\n{\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 0, \"tid\": %d, \"args\": "
                "{\"name\": \"rank %d: pipeline %d, data %d, context %d, tensor %d\"}}",
                c->rank, c->rank, at->pipeline, at->data, at->context, at->tensor);
    comm_barrier(c->world);
    zero = common_zero(c);
    comm_on_waited = on_waited;
    comm_clock = clock_ns;
}

void trace_pass(void) {
    own_pass++;
}

int64_t trace_now(void) {
    return lines ? clock_ns() : 0;
}

void trace_span(const char *name, const char *group, int64_t from) {
    char args[64] = "";
    if (!lines) return;
    if (group) snprintf(args, sizeof args, "\"group\": \"%s\"", group);
    span(name, args, from, clock_ns());
}

/* An end of the arrow of a message, which the stage that sends it names. */
static void arrow(const struct action *a, int stage, int64_t at) {
    bool ends = action_receives(a->kind);
    const char *what = action_of_gradient(a->kind) ? "gradient" : "activation";
    fprintf(lines,
            ",\n{\"name\": \"%s\", \"cat\": \"message\", \"ph\": \"%s\", \"id\": "
            "\"%s %ld.%d.%d.%d.%d\", \"pid\": 0, \"tid\": %d, \"ts\": %.3f%s}",
            what, ends ? "f" : "s", what, (long)own_step, own_pass, own_column,
            ends ? a->peer : stage, a->micro_batch, own_rank, 1e-3 * (double)(at - zero + shift),
            ends ? ", \"bp\": \"e\"" : "");
}

void trace_action(const struct action *a, int stage, int64_t from) {
    char args[64];
    if (!lines) return;
    int64_t to = clock_ns();
    snprintf(args, sizeof args, "\"chunk\": %d, \"micro_batch\": %d", a->chunk, a->micro_batch);
    span(action_name(a->kind), args, from, to);
    /* Within the span, for a viewer to find it. */
    if (a->kind == ACTION_SEND_ACTIVATION || a->kind == ACTION_SEND_GRADIENT) arrow(a, stage, from);
    if (action_waits(a->kind) && action_receives(a->kind)) arrow(a, stage, to);
}

/* All ranks' events, in rank order; malloc'd. */
static char *gather(struct comm *c) {
    int64_t *counts = die_alloc((size_t)c->size * sizeof *counts), all = 0,
            own = (int64_t)text_bytes;
    int64_t *one = die_alloc((size_t)c->size * sizeof *one);
    struct request r;
    for (int i = 0; i < c->size; i++) one[i] = 1;
    comm_gather_start(c->world, &own, counts, one, sizeof own, &r);
    comm_wait(&r);
    for (int i = 0; i < c->size; i++) all += counts[i];
    char *to = die_alloc((size_t)all + 1);
    comm_gather_start(c->world, text, to, counts, 1, &r);
    comm_wait(&r);
    to[all] = 0;
    free(counts);
    free(one);
    return to;
}

void trace_end(const struct engine *e, const struct output *o) {
    if (!lines) return;
    struct comm *c = e->comm;
    comm_on_waited = NULL;
    fclose(lines);
    lines = NULL;
    shift += comm_max(c->world, clock_ns() - zero) + GAP_NS;
    char *events = gather(c);
    if (o->speaks) {
        char *more = die_format("%s%s", whole ? whole : "", events);
        free(whole);
        whole = more;
        char *file = die_format("{\"traceEvents\": [%s\n]}\n", whole + 1); /* without a comma */
        output_text(o, "trace.json", file);
        free(file);
    }
    free(events);
    free(text);
    text = NULL;
}

void trace_free(void) {
    free(whole);
    whole = NULL;
    shift = 0;
}
