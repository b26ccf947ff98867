/* main: the command line. What a run does is told by its deck; this file reads it, checks it, and
 * hands it over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/cores.h"
#include "parallel/timer.h"
#include "src/deck_rules.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/plan_tables.h"
#include "src/planning.h"

static const char help[] =
    "mestar trains hybrid Mamba-2, attention, MLP and mixture-of-experts language models, as one "
    "YAML deck says.\n"
    "\n"
    "  mpirun -n N mestar DECK [section.key=value ...]     run the deck (run.mode says what to "
    "do)\n"
    "  mestar check DECK [section.key=value ...]           every rule of the deck; counts "
    "parameters and tensors\n"
    "  mestar plan DECK [section.key=value ...] [--json]   memory, work, traffic and least time of "
    "a step\n"
    "  mestar keys [SECTION|SECTION.KEY] [--markdown]      what a deck may say\n"
    "  mestar --version, mestar --help\n"
    "\n"
    "Exit codes: 0 finished, 1 failed, 2 the input is wrong, 3 stopped early (the same command "
    "continues),\n"
    "4 the verdict is no.\n";

static int wrong_words(const char *what) {
    fprintf(stderr, "mestar: %s\n\n%s", what, help);
    return 2;
}

static int report(const struct mistakes *m) {
    mistakes_print(m, stderr);
    fprintf(stderr, "%d mistake%s; nothing was run\n", m->n, m->n == 1 ? "" : "s");
    return 2;
}

static int run_keys(int argc, char **argv) {
    const char *which = NULL;
    bool markdown = false;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--markdown")) markdown = true;
        else if (which) return wrong_words("keys takes one section or key");
        else which = argv[i];
    }
    return deck_keys(stdout, which, markdown) ? 2 : 0;
}

/* What can be worked out once the mesh is known, so that used.yaml shows it. */
static void work_out(struct deck *d, const struct mesh_shape *shape) {
    if (d->parallel.virtual_stages > 1 && !deck_given(d, "parallel.schedule"))
        deck_set(d, "parallel.schedule", "interleaved", "parallel.virtual_stages");
    if (d->train.global_batch) return;
    char text[32];
    snprintf(text, sizeof text, "%ld", (long)(d->train.micro_batch * shape->data));
    deck_set(d, "train.global_batch", text, "train.micro_batch x data");
}

/* check and plan: one process, any mesh. */
static int run_dry(int argc, char **argv) {
    bool plan = !strcmp(argv[1], "plan"), json = false;
    const char *path = NULL;
    char **overrides = die_alloc(argc * sizeof *overrides);
    int n = 0, code = 2;
    struct mistakes m = {0};
    for (int i = 2; i < argc; i++) {
        if (plan && !strcmp(argv[i], "--json")) json = true;
        else if (!path) path = argv[i];
        else overrides[n++] = argv[i];
    }
    if (!path) {
        free(overrides);
        return wrong_words("name a deck");
    }
    struct deck d;
    struct config c = {0};
    struct mesh_shape shape;
    deck_read(&d, path, n, overrides, &m);
    config_settle(&c, &d, &m);
    deck_check(&d, &m);
    deck_mesh(&d, 0, &shape, &m);
    if (!m.n) work_out(&d, &shape);
    if (!m.n) code = plan ? plan_run(&d, &c, &shape, json, &m) : plan_check(&d, &c, &shape, &m);
    if (m.n) code = report(&m);
    mistakes_free(&m);
    config_free(&c);
    deck_free(&d);
    free(overrides);
    return code;
}

/* Every rank checks the deck on its own; the first rank that finds something wrong speaks, and all
 * leave. */
static bool anyone_mistaken(struct comm *c, const struct mistakes *m, bool *mine) {
    int64_t first = comm_max(c->world, m->n ? c->size - c->rank : 0);
    *mine = first && c->rank == c->size - (int)first;
    return first != 0;
}

static int run_deck(struct comm *c, int argc, char **argv) {
    struct mistakes m = {0};
    struct deck d;
    struct config config = {0};
    struct engine e = {0};
    struct mesh_shape shape;
    struct run run = {&e, c, &shape, argc, argv};
    bool mine;
    int code = 2;
    deck_read(&d, argv[1], argc - 2, argv + 2, &m);
    config_settle(&config, &d, &m);
    deck_check(&d, &m);
    deck_mesh(&d, c->size, &shape, &m);
    engine_check_threads(&m);
    engine_check_level(&d, &m);
    if (!m.n) work_out(&d, &shape);
    if (!m.n) engine_open(&e, &d, &config, &m);
    if (!anyone_mistaken(c, &m, &mine)) {
        if (!strcmp(d.run.mode, "train")) code = mode_train(&run, &m);
        else if (!strcmp(d.run.mode, "evaluate")) code = mode_evaluate(&run, &m);
        else if (!strcmp(d.run.mode, "generate")) code = mode_generate(&run, &m);
        else if (!strcmp(d.run.mode, "compare")) code = mode_compare(&run, &m);
        else if (!strcmp(d.run.mode, "bench")) code = mode_bench(&run, &m);
        else code = mode_convert(&run, &m);
        anyone_mistaken(c, &m, &mine);
    }
    if (mine) report(&m);
    engine_free(&e);
    config_free(&config);
    deck_free(&d);
    mistakes_free(&m);
    return code;
}

int main(int argc, char **argv) {
    if (argc < 2) return wrong_words("name a deck");
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return printf("%s", help) < 0;
    if (!strcmp(argv[1], "--version")) return print_version(stdout), 0;
    if (!strcmp(argv[1], "keys")) return run_keys(argc, argv);
    if (!strcmp(argv[1], "check") || !strcmp(argv[1], "plan")) return run_dry(argc, argv);
    cores_wait_briefly(argv);
    struct mistakes m = {0};
    struct comm comm;
    struct timer timer;
    timer_start(&timer);
    timer_enter(&timer, RANGE_START);
    if (comm_init(&comm, &m)) return report(&m);
    comm.timer = &timer;
    die_set_rank(comm.rank);
    die_set_hooks(NULL, comm.size > 1 ? comm_abort : NULL);
    int code = run_deck(&comm, argc, argv);
    comm_end(&comm);
    return code;
}
