#include "parallel/schedule_picture.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

static char letter(const struct action *a) {
    switch (a->kind) {
    case ACTION_FORWARD: return (char)('A' + a->micro_batch % 26);
    case ACTION_BACKWARD_WEIGHT: return (char)('0' + a->micro_batch % 10);
    default: return (char)('a' + a->micro_batch % 26);
    }
}

/* The longest column in which all computing begins and ends at a border. */
static int64_t common_measure(const struct schedule *s, const struct schedule_times *t) {
    int64_t measure = t->length;
    for (int r = 0; r < s->shape.ranks; r++)
        for (int i = 0; i < s->rank[r].n; i++) {
            if (!action_computes(s->rank[r].action[i].kind)) continue;
            for (int64_t b = t->rank[r][i].start; b;) {
                int64_t rest = measure % b;
                measure = b;
                b = rest;
            }
        }
    return measure ? measure : 1;
}

static void row(const struct schedule *s, const struct schedule_times *t, int rank, int columns,
                char *text) {
    memset(text, '.', (unsigned long)columns);
    text[columns] = 0;
    int c = 0;
    for (int i = 0; i < s->rank[rank].n && c < columns; i++) {
        if (!action_computes(s->rank[rank].action[i].kind)) continue;
        const struct action_time *at = &t->rank[rank][i];
        for (; c < columns; c++) {
            double middle = (c + 0.5) * (double)t->length / columns;
            if (middle >= (double)at->end) break;
            if (middle >= (double)at->start) text[c] = letter(&s->rank[rank].action[i]);
        }
    }
}

void schedule_picture(FILE *f, const struct schedule *s, const struct schedule_times *t,
                      int width) {
    int64_t whole = t->length / common_measure(s, t), most = 0;
    int columns = whole <= width ? (int)whole : width,
        digits = snprintf(NULL, 0, "%d", s->shape.ranks - 1);
    char *text = die_alloc((unsigned long)columns + 1);
    for (int r = 0; r < s->shape.ranks; r++) {
        row(s, t, r, columns, text);
        fprintf(f, "rank %*d |%s| idle %4.1f %%\n", digits, r, text, 100 * t->idle_of[r]);
        if (t->most_held[r] > most) most = t->most_held[r];
    }
    fprintf(f, "%s: length %lld, idle %.1f %%, at most %lld held; A forward, a backward%s\n",
            schedule_kind_name(s->shape.kind), (long long)t->length, 100 * t->idle, (long long)most,
            s->shape.kind >= SCHEDULE_ZERO_BUBBLE ? ", 0 its weight half" : "");
    free(text);
}

static void event(FILE *f, const struct schedule *s, const struct schedule_times *t, int rank,
                  int index, double us) {
    const struct action *a = &s->rank[rank].action[index];
    const struct action_time *at = &t->rank[rank][index];
    bool arrives = action_receives(a->kind) && !action_waits(a->kind);
    if (!action_computes(a->kind) && !arrives && at->end == at->start) return;
    if (!action_computes(a->kind) && !arrives && !action_waits(a->kind)) return;
    fprintf(f,
            ",\n{\"name\": \"%s %d\", \"ph\": \"X\", \"pid\": %d, \"tid\": %d, \"ts\": %.3f, "
            "\"dur\": %.3f, \"args\": {\"stage\": %d, \"chunk\": %d, \"micro_batch\": %d, "
            "\"held\": %lld}}",
            action_name(a->kind), a->micro_batch, rank, arrives, (double)at->start * us,
            (double)(at->end - at->start) * us, schedule_stage(&s->shape, rank, a->chunk), a->chunk,
            a->micro_batch, (long long)at->held);
}

void schedule_write_trace(FILE *f, const struct schedule *s, const struct schedule_times *t,
                          double us) {
    fprintf(f, "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [");
    for (int r = 0; r < s->shape.ranks; r++) {
        fprintf(f,
                "%s\n{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": %d, \"tid\": 0, "
                "\"args\": {\"name\": \"pipeline rank %d\"}}",
                r ? "," : "", r, r);
        for (int i = 0; i < s->rank[r].n; i++) event(f, s, t, r, i, us);
    }
    fprintf(f, "\n]}\n");
}
