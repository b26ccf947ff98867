#include "io/safetensors.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"

enum { HEADER_LIMIT = 100000000, LENGTH_BYTES = 8, MISTAKES_OF_A_FILE = 20, DATA_ALIGNMENT = 64 };

struct reading {
    struct safetensors *s;
    struct mistakes *m;
    int told;
};

__attribute__((format(printf, 3, 4))) static void wrong(struct reading *r, const char *tensor,
                                                        const char *fmt, ...) {
    if (r->told++ >= MISTAKES_OF_A_FILE) return;
    char text[512], buf[SHOWN_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (tensor) mistake(r->m, r->s->path, 0, "tensor %s: %s", shown(tensor, buf), text);
    else mistake(r->m, r->s->path, 0, "%s", text);
}

/* Numbers beyond 2^63 are no JSON to our reader, so it cannot say whose they are. Returns whether
 * there are such. */
static bool told_too_large(struct reading *r, const char *text, size_t length) {
    int before = r->told;
    json_t *root = json_loadb(text, length, JSON_DECODE_INT_AS_REAL, NULL), *entry;
    const char *name;
    json_object_foreach(root, name, entry) {
        static const char *const lists[] = {"shape", "data_offsets"};
        for (int k = 0; k < 2; k++) {
            json_t *list = json_object_get(entry, lists[k]), *x;
            bool large = false;
            size_t i;
            json_array_foreach(list, i, x) large |= fabs(json_number_value(x)) >= 0x1p63;
            if (large) wrong(r, name, "its %s has a number too large for any file", lists[k]);
        }
    }
    json_decref(root);
    return r->told > before;
}

/* The header's JSON, or NULL after telling. Leaves data_begin. */
static json_t *header_read(struct reading *r) {
    struct safetensors *s = r->s;
    if (s->size < LENGTH_BYTES) {
        wrong(r, NULL, "has %lld bytes, too few for a safetensors file; it was cut short",
              (long long)s->size);
        return NULL;
    }
    unsigned char b[LENGTH_BYTES];
    if (file_read_at(s->fd, b, LENGTH_BYTES, 0) != 0) {
        wrong(r, NULL, "cannot be read: %s", strerror(errno));
        return NULL;
    }
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | b[i];
    if (length > HEADER_LIMIT) {
        wrong(
            r, NULL,
            "says its header has %llu bytes, more than the format's limit of %d: not a safetensors "
            "file, or damaged",
            (unsigned long long)length, HEADER_LIMIT);
        return NULL;
    }
    if ((int64_t)length > s->size - LENGTH_BYTES) {
        wrong(r, NULL,
              "says its header has %llu bytes, but the file has only %lld: it was cut short",
              (unsigned long long)length, (long long)s->size);
        return NULL;
    }
    s->data_begin = LENGTH_BYTES + (int64_t)length;
    char *text = die_alloc(length + 1), why[WHY_BYTES];
    json_t *root = NULL;
    if (file_read_at(s->fd, text, (int64_t)length, LENGTH_BYTES) != 0)
        wrong(r, NULL, "cannot be read: %s", strerror(errno));
    else if (!(root = json_read(text, length, why)) && !told_too_large(r, text, length))
        wrong(r, NULL, "its header %s", why);
    free(text);
    if (root && !json_is_object(root)) {
        wrong(r, NULL, "its header is not a JSON object of tensors");
        json_decref(root);
        root = NULL;
    }
    return root;
}

static int shape_read(struct reading *r, struct stored_tensor *t, const json_t *shape) {
    if (!json_is_array(shape)) {
        wrong(r, t->name, "has no list of integers as shape");
        return -1;
    }
    if (json_array_size(shape) > TENSOR_DIMS) {
        wrong(r, t->name, "has %zu dimensions; at most %d are read", json_array_size(shape),
              TENSOR_DIMS);
        return -1;
    }
    t->n_dims = (int)json_array_size(shape);
    t->elements = 1;
    int overflow = 0, empty = 0;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) {
            wrong(r, t->name, "dimension %d of its shape is not a whole number of at least 0", i);
            return -1;
        }
        t->dim[i] = json_integer_value(d);
        empty |= t->dim[i] == 0;
        overflow |= __builtin_mul_overflow(t->elements, t->dim[i], &t->elements);
    }
    /* [2^40, 2^40, 0] has no elements, yet no program can index it. */
    overflow |= __builtin_mul_overflow(t->elements, (int64_t)dtype_size(t->dtype), &t->bytes);
    if (overflow) {
        wrong(r, t->name, "its shape has more elements than can be counted%s",
              empty ? " before the 0 among its dimensions" : "");
        return -1;
    }
    return 0;
}

static int offsets_read(struct reading *r, struct stored_tensor *t, const json_t *offsets) {
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e)) {
        wrong(r, t->name, "has no data_offsets [begin, end] of two integers");
        return -1;
    }
    int64_t begin = json_integer_value(b), end = json_integer_value(e);
    int64_t data = r->s->size - r->s->data_begin;
    if (begin < 0 || end < begin) {
        wrong(r, t->name, "its data_offsets [%lld, %lld] are not a range", (long long)begin,
              (long long)end);
        return -1;
    }
    if (end > data) {
        wrong(
            r, t->name,
            "its data_offsets [%lld, %lld] lie past the end of the file, which holds %lld bytes of "
            "data: it was cut short",
            (long long)begin, (long long)end, (long long)data);
        return -1;
    }
    if (end - begin != t->bytes) {
        wrong(r, t->name, "its data_offsets span %lld bytes, but its shape and dtype %s take %lld",
              (long long)(end - begin), dtype_name(t->dtype), (long long)t->bytes);
        return -1;
    }
    t->begin = r->s->data_begin + begin;
    return 0;
}

static int tensor_read(struct reading *r, struct stored_tensor *t, const json_t *entry) {
    if (!json_is_object(entry)) {
        wrong(r, t->name, "is not described by an object {dtype, shape, data_offsets}");
        return -1;
    }
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!json_is_string(dtype)) {
        wrong(r, t->name, "has no dtype");
        return -1;
    }
    int d = dtype_parse(json_string_value(dtype));
    if (d < 0) {
        char buf[SHOWN_BYTES];
        wrong(r, t->name, "its dtype %s is not one that is read here",
              shown(json_string_value(dtype), buf));
        return -1;
    }
    t->dtype = (enum dtype)d;
    if (shape_read(r, t, json_object_get(entry, "shape")) != 0) return -1;
    return offsets_read(r, t, json_object_get(entry, "data_offsets"));
}

static void metadata_read(struct reading *r, json_t *metadata) {
    const char *key;
    json_t *value;
    r->s->metadata = json_incref(metadata);
    if (!json_is_object(metadata)) wrong(r, NULL, "its __metadata__ is not an object of texts");
    json_object_foreach(metadata, key, value) {
        char buf[SHOWN_BYTES];
        if (!json_is_string(value))
            wrong(r, NULL, "its __metadata__ %s is not a text", shown(key, buf));
    }
}

static int by_begin(const void *a, const void *b) {
    const struct stored_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Every byte of the data belongs to exactly one tensor, as the format demands. */
static void bytes_check(struct reading *r) {
    struct safetensors *s = r->s;
    int64_t at = s->data_begin;
    for (int i = 0; i < s->n; i++) {
        const struct stored_tensor *t = &s->tensor[i];
        char buf[SHOWN_BYTES];
        if (t->begin > at)
            wrong(r, t->name, "%lld bytes before it belong to no tensor",
                  (long long)(t->begin - at));
        if (t->begin < at)
            wrong(r, t->name, "its bytes overlap those of %s",
                  i ? shown(s->tensor[i - 1].name, buf) : "the header");
        if (t->begin + t->bytes > at) at = t->begin + t->bytes;
    }
    if (at < s->size)
        wrong(r, NULL, "%lld bytes at the end of the file belong to no tensor",
              (long long)(s->size - at));
}

static void tensors_read(struct reading *r, json_t *root) {
    struct safetensors *s = r->s;
    s->tensor = die_alloc(json_object_size(root) * sizeof *s->tensor);
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            metadata_read(r, entry);
            continue;
        }
        struct stored_tensor *t = &s->tensor[s->n];
        t->name = die_strdup(name);
        if (tensor_read(r, t, entry) == 0) s->n++;
        else free(t->name);
    }
    if (r->told) return; /* places of the missing ones would look like holes */
    qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_begin);
    bytes_check(r);
}

int safetensors_open(struct safetensors *s, const char *path, struct mistakes *m) {
    memset(s, 0, sizeof *s);
    struct reading r = {s, m, 0};
    char why[WHY_BYTES];
    s->path = die_strdup(path);
    s->fd = file_open(path, &s->size, why);
    if (s->fd < 0) {
        wrong(&r, NULL, "%s", why);
    } else {
        json_t *root = header_read(&r);
        if (root) tensors_read(&r, root);
        json_decref(root);
    }
    if (!r.told) return 0;
    if (r.told > MISTAKES_OF_A_FILE)
        mistake(m, path, 0, "and %d more mistakes", r.told - MISTAKES_OF_A_FILE);
    safetensors_close(s);
    return -1;
}

void safetensors_close(struct safetensors *s) {
    for (int i = 0; i < s->n; i++) free(s->tensor[i].name);
    free(s->tensor);
    if (s->path && s->fd >= 0) close(s->fd);
    free(s->path);
    json_decref(s->metadata);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

/* One tensor's entry; tensors that were too large to count would be a mistake of ours. */
static json_t *entry_new(struct stored_tensor *t, int64_t *at) {
    json_t *shape = json_array(), *offsets = json_array(), *entry = json_object();
    t->elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(t->elements, t->dim[i], &t->elements))
            bug("tensor %s is too large", t->name);
        json_array_append_new(shape, json_integer(t->dim[i]));
    }
    if (__builtin_mul_overflow(t->elements, (int64_t)dtype_size(t->dtype), &t->bytes))
        bug("tensor %s is too large", t->name);
    t->begin = *at;
    *at += t->bytes;
    json_array_append_new(offsets, json_integer(t->begin));
    json_array_append_new(offsets, json_integer(*at));
    json_object_set_new(entry, "dtype", json_string(dtype_name(t->dtype)));
    json_object_set_new(entry, "shape", shape);
    json_object_set_new(entry, "data_offsets", offsets);
    return entry;
}

char *safetensors_header(int n, struct stored_tensor *tensor, const json_t *metadata,
                         int64_t *length) {
    json_t *root = json_object(),
           *about = metadata ? json_copy((json_t *)(uintptr_t)metadata) : json_object();
    /* transformers refuses a file that does not say which framework's tensors it holds. */
    json_object_set_new(about, "format", json_string("pt"));
    json_object_set_new(root, "__metadata__", about);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        json_t *entry = entry_new(&tensor[i], &at);
        if (json_object_set_new(root, tensor[i].name, entry) != 0)
            bug("tensor name %s is not UTF-8", tensor[i].name);
    }
    if (json_object_size(root) != (size_t)n + 1) bug("two tensors of one name in a file");
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text) die("cannot write a safetensors header: out of memory");
    int64_t used = (int64_t)strlen(text);
    int64_t whole = (LENGTH_BYTES + used + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT;
    if (whole - LENGTH_BYTES > HEADER_LIMIT) bug("a header of %lld bytes", (long long)whole);
    char *header = die_alloc((unsigned long)whole);
    for (int i = 0; i < LENGTH_BYTES; i++)
        header[i] = (char)((uint64_t)(whole - LENGTH_BYTES) >> (8 * i) & 255);
    memcpy(header + LENGTH_BYTES, text, (size_t)used);
    memset(header + LENGTH_BYTES + used, ' ', (size_t)(whole - LENGTH_BYTES - used));
    free(text);
    for (int i = 0; i < n; i++) tensor[i].begin += whole;
    *length = whole;
    return header;
}
