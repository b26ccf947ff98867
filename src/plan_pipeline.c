#include "src/plan_pipeline.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/mesh.h"
#include "parallel/schedule_picture.h"
#include "parallel/schedule_store.h"
#include "src/config.h"
#include "src/deck.h"
#include "src/deck_rules.h"
#include "src/staging.h"

enum { PICTURE_WIDTH = 96 };

struct view {
    struct staging stages;
    const struct schedule *schedule; /* the store's */
    struct schedule_times times;
};

static bool view_init(struct view *v, const struct deck *d, const struct config *c,
                      const struct mesh_shape *shape, struct schedule_store *schedules) {
    staging_init(&v->stages, d, c, shape);
    if (v->stages.n == 1) {
        staging_free(&v->stages);
        return false;
    }
    int64_t of_rank = deck_micro_batches(d, shape);
    struct schedule_wish wish = staging_wish(&v->stages, (int)of_rank);
    v->schedule = schedule_store_get(schedules, &wish);
    schedule_time(&v->times, v->schedule, &v->stages.costs, NULL);
    return true;
}

static void view_free(struct view *v) {
    schedule_times_free(&v->times);
    staging_free(&v->stages);
}

static const char *ends(const struct stage *s) {
    return s->embeds && s->heads ? " with embedding and head"
           : s->embeds           ? " with the embedding"
           : s->heads            ? " with the head"
                                 : "";
}

void plan_pipeline_text(FILE *f, const struct deck *d, const struct config *c,
                        const struct mesh_shape *shape, struct schedule_store *schedules) {
    struct view v;
    if (!view_init(&v, d, c, shape, schedules)) return;
    fprintf(f,
            "\nstages: work of a micro-batch in GFLOP on one rank, and of a step's time the share "
            "in %%\n"
            "%6s %8s %10s %10s %10s %8s %7s %7s  %s\n",
            "stage", "pipeline", "forward", "input", "weight", "forward", "input", "weight",
            "layers");
    const double length = (double)v.times.length / (double)v.schedule->shape.micro_batches;
    for (int i = 0; i < v.stages.n; i++) {
        const struct stage_work *w = &v.stages.work[i];
        struct stage s = staging_stage(&v.stages, i);
        fprintf(f, "%6d %8d %10.3f %10.3f %10.3f %8.1f %7.1f %7.1f  %.*s%s\n", i,
                staging_rank(&v.stages, i), 1e-9 * w->forward.work, 1e-9 * w->input.work,
                1e-9 * w->weight.work, 100 * (double)v.stages.forward[i] / length,
                100 * (double)v.stages.input[i] / length, 100 * (double)v.stages.weight[i] / length,
                s.end - s.first, c->kinds + s.first, ends(&s));
    }
    fprintf(f, "\nschedule %s, %d micro-batches (ticks of planned time)\n",
            schedule_kind_name(v.schedule->shape.kind), v.schedule->shape.micro_batches);
    schedule_picture(f, v.schedule, &v.times, PICTURE_WIDTH);
    view_free(&v);
}

static void write_lines(FILE *f, const char *text) {
    for (; *text; text++)
        if (*text == '\n') fputs("\\n", f);
        else if (*text == '"' || *text == '\\') fprintf(f, "\\%c", *text);
        else fputc(*text, f);
}

void plan_pipeline_json(FILE *f, const struct deck *d, const struct config *c,
                        const struct mesh_shape *shape, struct schedule_store *schedules) {
    struct view v;
    char *picture;
    size_t bytes;
    if (!view_init(&v, d, c, shape, schedules)) return;
    fprintf(f, ",\n  \"pipeline\": {\"schedule\": \"%s\", \"micro_batches\": %d, \"idle\": %.6g,\n",
            schedule_kind_name(v.schedule->shape.kind), v.schedule->shape.micro_batches,
            v.times.idle);
    fprintf(f, "    \"idle_of\": [");
    for (int r = 0; r < v.times.ranks; r++) fprintf(f, "%s%.6g", r ? ", " : "", v.times.idle_of[r]);
    fprintf(f, "],\n    \"stages\": [");
    for (int i = 0; i < v.stages.n; i++) {
        const struct stage_work *w = &v.stages.work[i];
        struct stage s = staging_stage(&v.stages, i);
        fprintf(f,
                "%s\n      {\"pipeline\": %d, \"layers\": \"%.*s\", \"forward\": %.0f, "
                "\"input\": %.0f, \"weight\": %.0f}",
                i ? "," : "", staging_rank(&v.stages, i), s.end - s.first, c->kinds + s.first,
                w->forward.work, w->input.work, w->weight.work);
    }
    FILE *p = open_memstream(&picture, &bytes);
    if (!p) die("no memory for a picture");
    schedule_picture(p, v.schedule, &v.times, PICTURE_WIDTH);
    fclose(p);
    fprintf(f, "],\n    \"picture\": \"");
    write_lines(f, picture);
    fprintf(f, "\"}");
    free(picture);
    view_free(&v);
}

double plan_pipeline_idle(const struct deck *d, const struct config *c,
                          const struct mesh_shape *shape) {
    struct schedule_store schedules = {0};
    struct view v;
    double idle = 0;
    if (view_init(&v, d, c, shape, &schedules)) {
        idle = v.times.idle;
        view_free(&v);
    }
    schedule_store_free(&schedules);
    return idle;
}
