#include "io/checkpoint_plan.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "io/json.h"
#include "kernels/die.h"

static int64_t tensor_bytes(const struct new_tensor *t) {
    int64_t bytes = (int64_t)dtype_size(t->dtype);
    if (t->n_dims < 0 || t->n_dims > TENSOR_DIMS)
        bug("tensor %s has %d dimensions", t->name, t->n_dims);
    for (int i = 0; i < t->n_dims; i++)
        if (t->dim[i] < 0 || __builtin_mul_overflow(bytes, t->dim[i], &bytes))
            bug("tensor %s is too large", t->name);
    if (!t->from) return bytes;
    const struct stored_tensor *s = &t->from->tensor[t->from_tensor];
    const bool other = s->dtype != t->dtype;
    if (other && !(dtype_is_real(s->dtype) && dtype_is_real(t->dtype)))
        bug("tensor %s cannot be converted from what it is copied from", t->name);
    if (s->elements != bytes / (int64_t)dtype_size(t->dtype))
        bug("tensor %s is not the size of what it is copied from", t->name);
    return bytes;
}

static int by_width(const void *a, const void *b) {
    const struct stored_tensor *x = a, *y = b;
    size_t p = dtype_size(x->dtype), q = dtype_size(y->dtype);
    if (p != q) return p > q ? -1 : 1;
    return x->file - y->file; /* still the caller's number */
}

static void file_plan(struct planned_file *f, int first, int n, const struct new_tensor *tensors,
                      const json_t *metadata) {
    *f = (struct planned_file){.n = n};
    f->tensor = die_alloc((unsigned long)n * sizeof *f->tensor);
    f->given = die_alloc((unsigned long)n * sizeof *f->given);
    for (int i = 0; i < n; i++) {
        const struct new_tensor *t = &tensors[first + i];
        struct stored_tensor *s = &f->tensor[i];
        s->name = (char *)(uintptr_t)t->name;
        s->dtype = t->dtype;
        s->n_dims = t->n_dims;
        memcpy(s->dim, t->dim, sizeof s->dim);
        s->file = first + i;
    }
    if (n) qsort(f->tensor, (size_t)n, sizeof *f->tensor, by_width);
    for (int i = 0; i < n; i++) f->given[i] = f->tensor[i].file;
    f->header = safetensors_header(n, f->tensor, metadata, &f->header_bytes);
    f->size = n ? f->tensor[n - 1].begin + f->tensor[n - 1].bytes : f->header_bytes;
}

static void names_check(int n, const struct new_tensor *tensors) {
    json_t *seen = json_object();
    for (int i = 0; i < n; i++)
        if (json_object_set_new(seen, tensors[i].name, json_true()) != 0)
            bug("tensor name %s is not UTF-8", tensors[i].name);
    if (json_object_size(seen) != (size_t)n) bug("two new tensors have the same name");
    json_decref(seen);
}

void plan_make(struct plan *p, int n, const struct new_tensor *tensors, int64_t shard_bytes,
               const json_t *metadata) {
    *p = (struct plan){.n = n};
    names_check(n, tensors);
    p->place = die_alloc((unsigned long)n * sizeof *p->place);
    int first = 0;
    int64_t in_file = 0;
    for (int i = 0; i <= n; i++) {
        int64_t bytes = i < n ? tensor_bytes(&tensors[i]) : 0;
        bool full = shard_bytes > 0 && i > first && in_file > shard_bytes - bytes;
        if (i == n || full) {
            p->file = die_realloc(p->file, ((unsigned long)p->n_files + 1) * sizeof *p->file);
            file_plan(&p->file[p->n_files++], first, i - first, tensors, metadata);
            first = i;
            in_file = 0;
        }
        in_file += bytes;
        p->total_bytes += bytes;
    }
    for (int f = 0; f < p->n_files; f++) {
        struct planned_file *file = &p->file[f];
        if (p->n_files == 1) strcpy(file->name, "model.safetensors");
        else
            snprintf(file->name, sizeof file->name, "model-%05d-of-%05d.safetensors", f + 1,
                     p->n_files);
        for (int i = 0; i < file->n; i++) {
            file->tensor[i].file = f;
            p->place[file->given[i]] = &file->tensor[i];
        }
    }
}

void plan_free(struct plan *p) {
    for (int f = 0; f < p->n_files; f++) {
        free(p->file[f].tensor);
        free(p->file[f].given);
        free(p->file[f].header);
    }
    free(p->file);
    free(p->place);
}

uint64_t plan_fingerprint(const struct plan *p) {
    uint64_t h = (uint64_t)p->n_files;
    for (int f = 0; f < p->n_files; f++)
        h = XXH3_64bits_withSeed(p->file[f].header, (size_t)p->file[f].header_bytes, h);
    return h;
}

char *plan_index(const struct plan *p) {
    json_t *map = json_object();
    for (int i = 0; i < p->n; i++)
        json_object_set_new(map, p->place[i]->name, json_string(p->file[p->place[i]->file].name));
    json_t *root = json_pack("{s:{s:I},s:o}", "metadata", "total_size", (json_int_t)p->total_bytes,
                             "weight_map", map);
    char *text = json_write(root, 1);
    json_decref(root);
    return text;
}

char *plan_checksums(const struct plan *p, int64_t block_bytes, const uint64_t *hash) {
    json_t *files = json_object();
    for (int f = 0; f < p->n_files; f++) {
        json_t *blocks = json_array();
        for (int64_t at = 0; at < p->file[f].size; at += block_bytes) {
            char text[20];
            snprintf(text, sizeof text, "%016llx", (unsigned long long)*hash++);
            json_array_append_new(blocks, json_string(text));
        }
        json_object_set_new(files, p->file[f].name,
                            json_pack("{s:I,s:I,s:o}", "bytes", (json_int_t)p->file[f].size,
                                      "block_bytes", (json_int_t)block_bytes, "blocks", blocks));
    }
    json_t *root = json_pack("{s:s,s:o}", "algorithm", "XXH3-64", "files", files);
    char *text = json_write(root, 0);
    json_decref(root);
    return text;
}
