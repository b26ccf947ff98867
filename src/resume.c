#include "src/resume.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck_table.h"
#include "src/engine.h"
#include "src/output.h"

enum { MOST_TEXT = 16 << 20 };

/* ---- finding ---- */

static bool step_number(const char *name, int64_t *step) {
    int used = 0;
    long n;
    if (sscanf(name, "step-%ld%n", &n, &used) != 1 || name[used]) return false;
    *step = n;
    return true;
}

/* The newest of all checkpoints; a folder has such a name only once it is whole. */
static char *newest_folder(const char *output) {
    char *folder = die_format("%s/checkpoints", output), *newest = NULL;
    int64_t step, most = -1;
    DIR *d = opendir(folder);
    for (struct dirent *x; d && (x = readdir(d));) {
        if (!step_number(x->d_name, &step) || step <= most) continue;
        most = step;
        free(newest);
        newest = die_format("%s/%s", folder, x->d_name);
    }
    if (d) closedir(d);
    free(folder);
    return newest;
}

/* The folder that the first line of checkpoints/latest names. Where that names none, as after a
 * kill just before it was written, the newest: what was computed is not thrown away. */
static char *latest_folder(const char *output) {
    char why[WHY_BYTES], *path = die_format("%s/checkpoints/latest", output), *folder = NULL;
    int64_t bytes;
    char *text = file_exists(path) ? file_text(path, 4096, &bytes, why) : NULL;
    if (text) {
        text[strcspn(text, "\r\n")] = 0;
        if (*text && !strchr(text, '/') && *text != '.')
            folder = die_format("%s/checkpoints/%s", output, text);
    }
    if (folder && !file_exists(folder)) {
        free(folder);
        folder = NULL;
    }
    free(text);
    free(path);
    return folder ? folder : newest_folder(output);
}

static int read_state(struct resume *r, struct mistakes *m) {
    char why[WHY_BYTES], *path = die_format("%s/resume/state.json", r->folder);
    int64_t bytes;
    char *text = file_text(path, MOST_TEXT, &bytes, why);
    json_t *j = text ? json_loads(text, 0, NULL) : NULL, *step = json_object_get(j, "step");
    int bad = !json_is_integer(step) || json_integer_value(step) < 0;
    if (!text) mistake(m, path, 0, "%s; checkpoint.resume: never starts anew", why);
    else if (bad) mistake(m, path, 0, "is damaged; checkpoint.resume: never starts anew");
    else r->step = json_integer_value(step);
    const char *data = json_string_value(json_object_get(j, "data"));
    if (data) r->data = strtoull(data, NULL, 16);
    json_decref(j);
    free(text);
    free(path);
    return bad ? -1 : 0;
}

/* Keys that decide what is computed must be those that the checkpoint was made with. */
static void compare_decks(const struct resume *r, const struct deck *d, struct mistakes *m) {
    char *path = die_format("%s/resume/used.yaml", r->folder);
    struct deck old;
    struct mistakes of_old = {0};
    deck_read(&old, path, 0, NULL, &of_old);
    if (of_old.n)
        mistake(m, path, 0, "cannot be read (%s); checkpoint.resume: never starts anew",
                of_old.text[0]);
    for (int i = 0; i < deck_table_n && !of_old.n; i++) {
        const struct deck_key *k = &deck_table[i];
        if (!k->fixed) continue;
        char *was = deck_value_text(k, (const char *)&old + k->at),
             *is = deck_value_text(k, (const char *)d + k->at);
        char *name = die_format("%s.%s", k->section, k->name);
        if (strcmp(was, is))
            deck_mistake(d, m, name,
                         "is %s, but the run in %s was begun with %s; it cannot change on the way",
                         is, d->run.output, was);
        free(was);
        free(is);
        free(name);
    }
    mistakes_free(&of_old);
    deck_free(&old);
    free(path);
}

int resume_find(struct resume *r, const struct deck *d, struct mistakes *m) {
    int before = m->n;
    *r = (struct resume){0};
    if (!strcmp(d->checkpoint.resume, "never")) return 0;
    r->folder = latest_folder(d->run.output);
    if (!r->folder) {
        if (!strcmp(d->checkpoint.resume, "must"))
            deck_mistake(d, m, "checkpoint.resume", "must, but %s holds no checkpoint",
                         d->run.output);
        return m->n > before ? -1 : 0;
    }
    r->found = true;
    if (!read_state(r, m)) compare_decks(r, d, m);
    return m->n > before ? -1 : 0;
}

/* ---- the tensors beside the model ---- */

struct extra {
    const char *suffix;
    enum part part;
};
static const struct extra extras[] = {
    {".master", PART_VALUES}, {".moment1", PART_MOMENT_1}, {".moment2", PART_MOMENT_2}};
enum { EXTRAS = 3 };

static bool wants_extra(const struct engine *e, const struct param_tensor *t, int x) {
    if (t->block < 0) return false;
    const struct param_block *b = &e->model.params.block[t->block];
    if (extras[x].part == PART_VALUES) return t->stored != (b->mastered ? e->real : b->p.dtype);
    return b->p.trained;
}

int resume_read(const struct resume *r, struct engine *e, struct mistakes *m) {
    struct checkpoint c;
    const struct params *s = &e->model.params;
    char *path = die_format("%s/resume", r->folder);
    int before = m->n, bad = checkpoint_open(&c, path, m);
    for (int x = 0; !bad && x < EXTRAS; x++) {
        int n, used = 0;
        struct box *boxes = params_boxes(s, e->real, extras[x].part, false, &n);
        boxes_to_host(&e->device, n, boxes);
        for (int i = 0; i < n; i++) {
            const struct param_tensor *t = &s->tensor[boxes[i].tensor];
            if (!wants_extra(e, t, x)) continue;
            char *name = die_format("%s%s", t->name, extras[x].suffix);
            const struct stored_tensor *f = checkpoint_find(&c, name);
            if (!f || f->elements != t->elements)
                mistake(
                    m, path, 0,
                    "tensor %s is missing or of another size; checkpoint.resume: never starts anew",
                    name);
            else boxes[used] = boxes[i], boxes[used++].tensor = (int)(f - c.tensor);
            free(name);
        }
        bad = comm_max(e->comm->world, m->n > before) ||
              checkpoint_read(&c, e->comm->world, used, boxes, m);
        free(boxes);
    }
    checkpoint_close(&c);
    free(path);
    params_round(&e->model.params, &e->device, e->stored);
    return bad ? -1 : 0;
}

static void write_extras(struct engine *e, const char *path, int64_t step, uint64_t data) {
    const struct params *s = &e->model.params;
    int most = EXTRAS * s->n_tensors + 1, n = 0, n_boxes = 0,
        *number = die_alloc(most * sizeof *number);
    struct new_tensor *tensors = die_alloc(most * sizeof *tensors);
    struct box *boxes = NULL;
    for (int x = 0; x < EXTRAS; x++) {
        int got;
        for (int i = 0; i < s->n_tensors; i++) {
            const struct param_tensor *t = &s->tensor[i];
            if (!wants_extra(e, t, x)) continue;
            number[i] = n;
            tensors[n] = (struct new_tensor){.name = die_format("%s%s", t->name, extras[x].suffix),
                                             .dtype = e->real,
                                             .n_dims = t->n_dims};
            memcpy(tensors[n++].dim, t->dim, sizeof t->dim);
        }
        struct box *more = params_boxes(s, e->real, extras[x].part, true, &got);
        boxes_to_host(&e->device, got, more);
        boxes = die_realloc(boxes, (n_boxes + got + 1) * sizeof *boxes);
        for (int i = 0; i < got; i++) {
            if (!wants_extra(e, &s->tensor[more[i].tensor], x)) continue;
            boxes[n_boxes] = more[i];
            boxes[n_boxes++].tensor = number[more[i].tensor];
        }
        free(more);
    }
    char *state =
             die_format("{\"step\": %ld, \"data\": \"%016lx\"}\n", (long)step, (unsigned long)data),
         *used;
    size_t bytes;
    FILE *f = open_memstream(&used, &bytes);
    deck_write_used(e->deck, f);
    fclose(f);
    const struct new_file files[] = {{"state.json", state, (int64_t)strlen(state)},
                                     {"used.yaml", used, (int64_t)bytes}};
    checkpoint_write(path, e->comm->world, n, tensors, n_boxes, boxes, 2, files, 0, NULL);
    for (int i = 0; i < n; i++) free((char *)tensors[i].name);
    free(tensors);
    free(number);
    free(boxes);
    free(state);
    free(used);
}

/* ---- saving ---- */

/* Oldest first are removed until `keep` are left; never the one just written. */
static void remove_oldest(const char *output, int64_t keep, int64_t newest) {
    char *folder = die_format("%s/checkpoints", output);
    for (;;) {
        DIR *d = opendir(folder);
        int64_t n = 0, oldest = newest, step;
        char *victim = NULL;
        for (struct dirent *x; d && (x = readdir(d));) {
            if (!step_number(x->d_name, &step)) continue;
            n++;
            if (step >= oldest) continue;
            oldest = step;
            free(victim);
            victim = die_format("%s/%s", folder, x->d_name);
        }
        if (d) closedir(d);
        if (n <= keep || !victim) {
            free(victim);
            break;
        }
        char *gone = die_format("%s.part",
                                victim); /* renamed first: a half removed one must not look whole */
        folder_remove(gone);
        int failed = rename(victim, gone) || folder_remove(gone);
        free(victim);
        free(gone);
        if (failed) break;
    }
    free(folder);
}

void resume_sweep(const char *output) {
    char *folder = die_format("%s/checkpoints", output);
    DIR *d = opendir(folder);
    for (struct dirent *x; d && (x = readdir(d));)
        if (!strncmp(x->d_name, "step-", 5) && strstr(x->d_name, ".part")) {
            char *path = die_format("%s/%s", folder, x->d_name);
            folder_remove(path);
            free(path);
        }
    if (d) closedir(d);
    free(folder);
}

double resume_save(struct engine *e, const struct output *o, int64_t step, uint64_t data) {
    double began = seconds_now();
    char *name = die_format("step-%08ld", (long)step),
         *folder = die_format("%s/checkpoints/%s", o->folder, name);
    char *part = die_format("%s.part", folder), *inside = die_format("%s/resume", part),
         *line = die_format("%s\n", name);
    if (o->speaks) folder_remove(part);
    comm_barrier(e->comm->world);
    engine_save(e, part, false);
    write_extras(e, inside, step, data);
    if (o->speaks) {
        bool was_there;
        if (folder_replace(part, folder, &was_there))
            die("cannot rename %s to %s: %s", part, folder, strerror(errno));
        if (was_there) folder_remove(part);
        folder_sync_above(folder);
        output_text(o, "checkpoints/latest", line);
        if (e->deck->checkpoint.keep) remove_oldest(o->folder, e->deck->checkpoint.keep, step);
    }
    comm_barrier(e->comm->world);
    double took = seconds_now() - began;
    free(name);
    free(folder);
    free(part);
    free(inside);
    free(line);
    return took;
}
