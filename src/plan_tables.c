#include "src/plan_tables.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/groups.h"
#include "parallel/schedule_store.h"
#include "src/costs.h"
#include "src/deck.h"
#include "src/engine.h"
#include "src/machine.h"
#include "src/plan_choices.h"
#include "src/plan_pipeline.h"
#include "src/planning.h"

/* All ranks of a mesh, and their costs together. */
struct plan {
    const struct deck *deck;
    struct config *config;
    const struct mesh_shape *shape;
    bool trains;
    struct speed speed;
    double network; /* bytes a second */
    int ranks;
    struct rank_plan *rank;
    struct costs *costs;
    struct costs sum;
    struct schedule_store *schedules;
};

/* The ranks are taken to share this host evenly, as they would if they ran on it. */
static void find_speed(struct plan *p) {
    const struct deck *d = p->deck;
    int cores = omp_get_num_procs(), threads = engine_threads(d, cores, p->ranks);
    p->speed = machine_speed(d, threads, threads * p->ranks, cores, true);
    if (!d->machine.memory_bandwidth) p->speed.memory /= p->ranks;
    p->network =
        d->machine.network_bandwidth > 0 ? d->machine.network_bandwidth : p->speed.memory / 2;
}

static double seconds_of(const struct plan *p, int rank) {
    return plan_seconds(&p->costs[rank], p->network);
}

static struct plan_setting setting_of(const struct plan *p) {
    return (struct plan_setting){p->deck, p->config, p->shape, &p->speed, p->network, p->schedules};
}

static double step_seconds(const struct plan *p) {
    double most = 0;
    for (int r = 0; r < p->ranks; r++)
        if (seconds_of(p, r) > most) most = seconds_of(p, r);
    return most;
}

/* ---------------------------------------------------------------- text */

static void print_memory(FILE *f, const struct plan *p) {
    const double mib = 1048576;
    fprintf(f, "memory in MiB\n%6s %8s %6s %7s %7s %12s %12s %12s %12s %12s %12s %12s\n", "rank",
            "pipeline", "data", "context", "tensor", "parameters", "gradients", "moments", "states",
            "activations", "scratch", "all");
    for (int r = 0; r < p->ranks; r++) {
        const struct rank_plan *k = &p->rank[r];
        struct mesh_coords c = mesh_coords(p->shape, r);
        fprintf(f, "%6d %8d %6d %7d %7d %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f\n", r,
                c.pipeline, c.data, c.context, c.tensor, (double)k->parameters / mib,
                (double)k->gradients / mib, (double)k->moments / mib, (double)k->states / mib,
                (double)k->activations / mib, (double)k->scratch / mib,
                (double)plan_bytes(k) / mib);
    }
}

static void print_step(FILE *f, const struct plan *p) {
    const enum dtype format = machine_format(p->deck);
    fprintf(f,
            "\na step: work in GFLOP, memory traffic and messages in MB, least time in ms\n"
            "%6s %12s %12s %12s %12s %12s\n",
            "rank", "work", "of the model", "traffic", "sent", "time");
    for (int r = 0; r < p->ranks; r++) {
        const struct op_count all = costs_total(&p->costs[r]);
        fprintf(f, "%6d %12.3f %12.3f %12.1f %12.3f %12.2f\n", r, 1e-9 * all.work,
                1e-9 * p->rank[r].work, 1e-6 * all.bytes, 1e-6 * (double)costs_sent(&p->costs[r]),
                1e3 * seconds_of(p, r));
    }
    const double s = step_seconds(p),
                 tokens = (double)(p->deck->train.global_batch * p->deck->train.sequence_length);
    fprintf(f,
            "no step is shorter than %.4g s, no rate higher than %.0f tokens/s, at these speeds of "
            "a rank:\n"
            "%.1f GFLOP/s in %s%s, %.1f GB/s of memory%s, %.1f GB/s to other ranks%s\n",
            s, tokens / s, 1e-9 * speed_of(&p->speed, format), dtype_name(format),
            (format == BF16 ? p->deck->machine.peak_bf16 : p->deck->machine.peak_fp32) > 0
                ? " (deck)"
                : " (measured here)",
            1e-9 * p->speed.memory,
            p->deck->machine.memory_bandwidth > 0 ? " (deck)" : " (measured here)",
            1e-9 * p->network, p->deck->machine.network_bandwidth > 0 ? " (deck)" : " (as copies)");
}

static int by_least(const void *a, const void *b) {
    const struct op_count *x = *(const struct op_count *const *)a,
                          *y = *(const struct op_count *const *)b;
    return x->least_s < y->least_s ? 1 : x->least_s > y->least_s ? -1 : x < y ? -1 : x > y;
}

/* Operations of all ranks, those first that take longest at best. */
static void print_ops(FILE *f, const struct plan *p) {
    const struct op_count *op[N_OPS], all = costs_total(&p->sum);
    int n = 0;
    for (int i = 0; i < N_OPS; i++)
        if (p->sum.op[i].calls) op[n++] = &p->sum.op[i];
    qsort(op, (size_t)n, sizeof *op, by_least);
    fprintf(f, "\n%-24s %10s %12s %12s %12s\n", "operations, all ranks", "calls", "GFLOP", "MB",
            "% of time");
    for (int i = 0; i < n; i++)
        fprintf(f, "%-24s %10lld %12.3f %12.1f %12.1f\n",
                op_row((enum op)(op[i] - p->sum.op))->name, (long long)op[i]->calls,
                1e-9 * op[i]->work, 1e-6 * op[i]->bytes,
                all.least_s > 0 ? 100 * op[i]->least_s / all.least_s : 0);
}

static void print_groups(FILE *f, const struct plan *p) {
    const struct costs *c = &p->costs[0];
    if (!c->n_groups) return;
    fprintf(f, "\n%-24s %10s %12s %12s\n", "messages of rank 0", "ranks", "calls", "MB");
    for (int i = 0; i < c->n_groups; i++)
        fprintf(f, "%-24s %10d %12lld %12.3f\n", c->group[i].name, c->group[i].ranks,
                (long long)c->group[i].calls, 1e-6 * (double)c->group[i].bytes);
}

/* How many rows each rank's experts get is known before the run if they are taken in turn. */
static bool learned_routes(const struct plan *p) {
    bool home = p->shape->expert == 1 && p->shape->expert_tensor == p->shape->tensor;
    return strchr(p->config->kinds, 'E') && !home && strcmp(p->deck->moe.balance, "forced");
}

static const char *routes_of(const struct plan *p) {
    return !learned_routes(p) ? "known" : *p->deck->plan.routing ? "recorded" : "assumed even";
}

static void print_assumption(FILE *f, const struct plan *p) {
    if (learned_routes(p) && !*p->deck->plan.routing)
        fprintf(
            f,
            "\nassumed: every expert gets as many tokens as with moe.balance: forced. A rank whose "
            "experts get more\nneeds more memory and time; summary.yaml has the imbalance of a "
            "run, and with plan.routing\nthe loads of a run are taken instead.\n");
}

static void print_text(FILE *f, const struct plan *p) {
    const struct plan_setting setting = setting_of(p);
    print_memory(f, p);
    print_assumption(f, p);
    plan_loads_text(f, &setting);
    if (!p->trains) return;
    print_step(f, p);
    print_ops(f, p);
    print_groups(f, p);
    plan_choices_text(f, &setting);
    plan_pipeline_text(f, p->deck, p->config, p->shape, p->schedules);
}

/* ---------------------------------------------------------------- JSON */

static void print_json_rank(FILE *f, const struct plan *p, int r) {
    const struct rank_plan *k = &p->rank[r];
    struct mesh_coords c = mesh_coords(p->shape, r);
    fprintf(f,
            "    {\"rank\": %d, \"pipeline\": %d, \"data\": %d, \"context\": %d, \"tensor\": %d, "
            "\"expert_data\": %d, "
            "\"expert\": %d, \"expert_tensor\": %d, \"arena_bytes\": %ld, "
            "\"parameters_bytes\": %ld, \"gradients_bytes\": %ld, \"moments_bytes\": %ld, "
            "\"states_bytes\": %ld, \"activations_bytes\": %ld, \"scratch_bytes\": %ld",
            r, c.pipeline, c.data, c.context, c.tensor, c.expert_data, c.expert, c.expert_tensor,
            (long)plan_bytes(k), (long)k->parameters, (long)k->gradients, (long)k->moments,
            (long)k->states, (long)k->activations, (long)k->scratch);
    if (p->trains) {
        fprintf(f, ", \"model_work\": %.0f, \"least_seconds\": %.6g, \"step\": ", k->work,
                seconds_of(p, r));
        costs_print(&p->costs[r], f);
    }
    fprintf(f, "}%s\n", r == p->ranks - 1 ? "" : ",");
}

static void print_json(FILE *f, const struct plan *p) {
    const struct plan_setting setting = setting_of(p);
    bool first = true;
    fprintf(f, "{\n  \"ranks\": [\n");
    for (int r = 0; r < p->ranks; r++) print_json_rank(f, p, r);
    fprintf(f, "  ],\n  \"routes\": \"%s\"", routes_of(p));
    plan_loads_json(f, &setting);
    if (p->trains) {
        fprintf(f,
                ",\n  \"step_seconds\": %.6g,\n  \"machine\": {\"peak_fp32\": %.4g, "
                "\"peak_bf16\": %.4g, \"memory_bandwidth\": %.4g, \"network_bandwidth\": %.4g},\n"
                "  \"operations\": {",
                step_seconds(p), p->speed.fp32, p->speed.bf16, p->speed.memory, p->network);
        for (int i = 0; i < N_OPS; i++) {
            const struct op_count *k = &p->sum.op[i];
            if (!k->calls) continue;
            fprintf(f,
                    "%s\n    \"%s\": {\"calls\": %lld, \"work\": %.0f, \"bytes\": %.0f, "
                    "\"least_seconds\": %.6g}",
                    first ? "" : ",", op_row((enum op)i)->name, (long long)k->calls, k->work,
                    k->bytes, k->least_s);
            first = false;
        }
        fprintf(f, "\n  }");
        plan_choices_json(f, &setting);
        plan_pipeline_json(f, p->deck, p->config, p->shape, p->schedules);
    }
    fprintf(f, "\n}\n");
}

int plan_run(const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json,
             struct mistakes *m) {
    struct schedule_store schedules = {0};
    struct plan p = {.deck = d,
                     .config = c,
                     .shape = shape,
                     .ranks = mesh_ranks(shape),
                     .schedules = &schedules};
    p.trains = !strcmp(d->run.mode, "train");
    if (!p.trains && strcmp(d->run.mode, "generate")) {
        deck_mistake(d, m, "run.mode", "is %s; plans are made of train and generate", d->run.mode);
        return 2;
    }
    p.rank = die_alloc((size_t)p.ranks * sizeof *p.rank);
    p.costs = die_alloc((size_t)p.ranks * sizeof *p.costs);
    if (p.trains) find_speed(&p);
    for (int r = 0; r < p.ranks && !m->n; r++)
        if (!plan_rank(d, c, shape, r, &p.speed, &schedules, &p.rank[r], &p.costs[r], m))
            costs_add(&p.sum, &p.costs[r], 1);
    if (!m->n && json) print_json(stdout, &p);
    else if (!m->n) print_text(stdout, &p);
    schedule_store_free(&schedules);
    free(p.rank);
    free(p.costs);
    return m->n ? 2 : 0;
}
