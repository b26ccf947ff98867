#include "io/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"

enum { TEXT_LIMIT = 100000000, CONFIG_LIMIT = 1 << 24, NAMED = 8, BLOCK_UNIT = 64 };

struct entry {                  /* of the index */
    const char *tensor, *shard; /* borrowed from its JSON */
};

static int by_shard(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->shard, ((const struct entry *)b)->shard);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct stored_tensor *)a)->name, ((const struct stored_tensor *)b)->name);
}

static const char *file_name(const struct safetensors *s) {
    const char *slash = strrchr(s->path, '/');
    return slash ? slash + 1 : s->path;
}

/* Opens one more file. A closed one stays in its place, so that numbers hold. */
static int file_add(struct checkpoint *c, const char *path, struct mistakes *m) {
    unsigned long n = (unsigned long)c->n_files + 1;
    c->file = die_realloc(c->file, n * sizeof *c->file);
    return safetensors_open(&c->file[c->n_files++], path, m);
}

/* All files' tensors in one table. */
static int table_make(struct checkpoint *c, struct mistakes *m) {
    unsigned long n = 0;
    for (int f = 0; f < c->n_files; f++) n += (unsigned long)c->file[f].n;
    c->tensor = die_alloc(n * sizeof *c->tensor);
    for (int f = 0; f < c->n_files; f++)
        for (int i = 0; i < c->file[f].n; i++) {
            struct stored_tensor *t = &c->tensor[c->n++];
            *t = c->file[f].tensor[i];
            t->name = die_strdup(t->name);
            t->file = c->file[f].tensor[i].file = f;
        }
    if (c->n) qsort(c->tensor, (size_t)c->n, sizeof *c->tensor, by_name);
    int twice = 0;
    for (int i = 1; i < c->n; i++) {
        const struct stored_tensor *a = &c->tensor[i - 1], *b = &c->tensor[i];
        char buf[SHOWN_BYTES];
        if (strcmp(a->name, b->name) != 0 || twice++ >= NAMED) continue;
        mistake(m, c->folder, 0, "tensor %s is in two shards, %s and %s", shown(a->name, buf),
                file_name(&c->file[a->file]), file_name(&c->file[b->file]));
    }
    return twice ? -1 : 0;
}

const struct stored_tensor *checkpoint_find(const struct checkpoint *c, const char *name) {
    struct stored_tensor key = {.name = (char *)(uintptr_t)name};
    return c->n ? bsearch(&key, c->tensor, (size_t)c->n, sizeof key, by_name) : NULL;
}

static bool shard_name_is_plain(const char *name) {
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 256;
}

/* The index's entries sorted by shard; NULL after telling. */
static struct entry *index_entries(const json_t *root, const char *path, int *n,
                                   struct mistakes *m) {
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        mistake(m, path, 0, "has no weight_map, an object {tensor: file}");
        return NULL;
    }
    struct entry *entry = die_alloc(json_object_size(map) * sizeof *entry);
    const char *key;
    json_t *value;
    char name[SHOWN_BYTES], shard[SHOWN_BYTES];
    int bad = 0;
    *n = 0;
    json_object_foreach(map, key, value) {
        const char *text = json_string_value(value);
        if (text && shard_name_is_plain(text)) {
            entry[(*n)++] = (struct entry){key, text};
        } else if (bad++ < NAMED) {
            if (!text) mistake(m, path, 0, "tensor %s: its file is not a text", shown(key, name));
            else
                mistake(m, path, 0, "tensor %s: %s is not the plain name of a file in this folder",
                        shown(key, name), shown(text, shard));
        }
    }
    if (!bad && *n == 0) mistake(m, path, 0, "its weight_map names no tensor");
    if (!bad && *n) {
        qsort(entry, (size_t)*n, sizeof *entry, by_shard);
        return entry;
    }
    free(entry);
    return NULL;
}

/* Opens each shard the index names, once. */
static int shards_open(struct checkpoint *c, const struct entry *entry, int n, struct mistakes *m) {
    int failed = 0;
    for (int i = 0, end; i < n; i = end) {
        for (end = i; end < n && strcmp(entry[end].shard, entry[i].shard) == 0;) end++;
        char *path = die_format("%s/%s", c->folder, entry[i].shard), name[SHOWN_BYTES];
        if (!file_exists(path)) {
            mistake(m, path, 0, "is absent; the index says it holds %d tensors, %s among them",
                    end - i, shown(entry[i].tensor, name));
            failed = 1;
        } else {
            failed |= file_add(c, path, m);
        }
        free(path);
    }
    return failed ? -1 : 0;
}

/* Every tensor of the index must be in the shard it names. */
static int index_check(const struct checkpoint *c, const char *path, const struct entry *entry,
                       int n, struct mistakes *m) {
    int bad = 0;
    for (int i = 0; i < n; i++) {
        const struct stored_tensor *t = checkpoint_find(c, entry[i].tensor);
        const char *in = t ? file_name(&c->file[t->file]) : NULL;
        char name[SHOWN_BYTES];
        if ((in && strcmp(in, entry[i].shard) == 0) || bad++ >= NAMED) continue;
        if (in)
            mistake(m, path, 0, "tensor %s is said to be in %s, but it is in %s",
                    shown(entry[i].tensor, name), entry[i].shard, in);
        else
            mistake(m, path, 0, "tensor %s is said to be in %s, which does not hold it",
                    shown(entry[i].tensor, name), entry[i].shard);
    }
    if (bad > NAMED) mistake(m, path, 0, "and %d more such tensors", bad - NAMED);
    return bad ? -1 : 0;
}

/* And every tensor of a shard in the index: transformers would read one that is not. */
static int index_complete(const struct checkpoint *c, const char *path, const json_t *map,
                          struct mistakes *m) {
    int bad = 0;
    for (int i = 0; i < c->n; i++) {
        char name[SHOWN_BYTES];
        if (json_object_get(map, c->tensor[i].name) || bad++ >= NAMED) continue;
        mistake(m, path, 0, "does not name tensor %s, which %s holds",
                shown(c->tensor[i].name, name), file_name(&c->file[c->tensor[i].file]));
    }
    if (bad > NAMED) mistake(m, path, 0, "and %d more such tensors", bad - NAMED);
    return bad ? -1 : 0;
}

static int shards_read(struct checkpoint *c, const char *path, struct mistakes *m) {
    char why[WHY_BYTES];
    int64_t bytes;
    char *text = file_text(path, TEXT_LIMIT, &bytes, why);
    json_t *root = text ? json_read(text, (size_t)bytes, why) : NULL;
    free(text);
    if (!root) {
        mistake(m, path, 0, "%s", why);
        return -1;
    }
    int n, failed = -1;
    struct entry *entry = index_entries(root, path, &n, m);
    if (entry && shards_open(c, entry, n, m) == 0 && table_make(c, m) == 0)
        failed = index_check(c, path, entry, n, m) |
                 index_complete(c, path, json_object_get(root, "weight_map"), m);
    free(entry);
    json_decref(root);
    return failed;
}

/* What lies in a folder that has none of the forms we read, said as helpfully as its names allow.
 */
static void folder_explain(const char *folder, struct mistakes *m) {
    DIR *d = opendir(folder);
    if (!d) {
        mistake(m, folder, 0, "cannot be listed: %s", strerror(errno));
        return;
    }
    int pickled = 0, megatron = 0, other = 0;
    char found[SHOWN_BYTES] = "";
    for (struct dirent *e; (e = readdir(d));) {
        const char *end = strrchr(e->d_name, '.');
        if (!end) end = "";
        if (strcmp(end, ".bin") == 0 || strcmp(end, ".pt") == 0 || strcmp(end, ".pth") == 0)
            pickled++;
        if (strcmp(end, ".distcp") == 0 || strcmp(e->d_name, "common.pt") == 0 ||
            strcmp(e->d_name, "latest_checkpointed_iteration.txt") == 0)
            megatron++;
        if (strcmp(end, ".safetensors") == 0 && other++ == 0) shown(e->d_name, found);
        if (strcmp(e->d_name, "model.safetensors") == 0) {
            mistake(m, folder, 0, "its model.safetensors is a link to a file that is not there");
            closedir(d);
            return;
        }
    }
    closedir(d);
    if (other)
        mistake(m, folder, 0,
                "has neither model.safetensors nor model.safetensors.index.json (it has %d other "
                ".safetensors files, %s among them; one such file can be given by its own path)",
                other, found);
    else if (megatron)
        mistake(m, folder, 0,
                "is a Megatron checkpoint. These are pickled and refused: loading one runs code. "
                "Export it "
                "to a Hugging Face folder with Megatron Bridge first");
    else if (pickled)
        mistake(m, folder, 0,
                "holds a pickled checkpoint (.bin, .pt). These are refused: loading one runs code. "
                "Convert "
                "it where you trust it: AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(new_folder, safe_serialization=True)");
    else
        mistake(m, folder, 0,
                "holds no checkpoint: expected model.safetensors, or shards with "
                "model.safetensors.index.json");
}

/* checksums.json of one file, or nothing where it speaks of a file of another size. */
static int checksums_of(struct checksums *sums, const json_t *entry, const struct safetensors *s,
                        const char *path, struct mistakes *m) {
    if (!entry) return 0;
    const json_t *size = json_object_get(entry, "bytes"),
                 *unit = json_object_get(entry, "block_bytes");
    json_t *blocks = json_object_get(entry, "blocks"), *one;
    int64_t bytes = json_integer_value(size), block = json_integer_value(unit);
    int64_t n = (int64_t)json_array_size(blocks);
    size_t i;
    bool fine = json_is_integer(size) && json_is_array(blocks) && block >= BLOCK_UNIT &&
                block % BLOCK_UNIT == 0 && block <= 1 << 28 && bytes >= 0 &&
                n == bytes / block + (bytes % block != 0);
    if (fine && bytes != s->size) return 0;
    if (fine) {
        sums->hash = die_alloc((unsigned long)n * sizeof *sums->hash);
        sums->block_bytes = block;
        sums->n = n;
    }
    json_array_foreach(blocks, i, one) {
        const char *text = json_string_value(one);
        fine = fine && text && strlen(text) == 16 && strspn(text, "0123456789abcdef") == 16;
        if (fine) sums->hash[i] = strtoull(text, NULL, 16);
    }
    if (fine) return 0;
    mistake(m, path, 0,
            "what it says of %s cannot be understood; delete it to read without checksums",
            file_name(s));
    return -1;
}

static int checksums_read(struct checkpoint *c, struct mistakes *m) {
    char *path = die_format("%s/checksums.json", c->folder), why[WHY_BYTES];
    int failed = 0;
    if (file_exists(path)) {
        int64_t bytes;
        char *text = file_text(path, TEXT_LIMIT, &bytes, why);
        json_t *root = text ? json_read(text, (size_t)bytes, why) : NULL;
        const char *algorithm = json_string_value(json_object_get(root, "algorithm"));
        json_t *files = json_object_get(root, "files");
        if (!root) mistake(m, path, 0, "%s; delete it to read without checksums", why);
        else if (!algorithm || strcmp(algorithm, "XXH3-64") != 0 || !json_is_object(files))
            mistake(m, path, 0,
                    "is not a list of XXH3-64 checksums; delete it to read without them");
        failed = !root || !algorithm || strcmp(algorithm, "XXH3-64") != 0 || !json_is_object(files);
        for (int f = 0; f < c->n_files && !failed; f++)
            failed = checksums_of(&c->checksums[f], json_object_get(files, file_name(&c->file[f])),
                                  &c->file[f], path, m);
        free(text);
        json_decref(root);
    }
    free(path);
    return failed ? -1 : 0;
}

static int config_read(struct checkpoint *c, struct mistakes *m) {
    char *path = die_format("%s/config.json", c->folder), why[WHY_BYTES];
    int failed = 0;
    if (file_exists(path)) {
        int64_t bytes = 0;
        c->config = file_text(path, CONFIG_LIMIT, &bytes, why);
        failed = !c->config;
        if (failed) {
            mistake(m, path, 0, "%s", why);
        } else if ((int64_t)strlen(c->config) != bytes) {
            mistake(m, path, 0, "holds a NUL byte: not a JSON text");
            failed = 1;
        }
    }
    free(path);
    return failed ? -1 : 0;
}

static int folder_read(struct checkpoint *c, struct mistakes *m) {
    char *single = die_format("%s/model.safetensors", c->folder);
    char *index = die_format("%s/model.safetensors.index.json", c->folder);
    int failed = -1;
    /* Both: transformers takes the single file, and so do we. */
    if (file_exists(single)) failed = file_add(c, single, m) != 0 || table_make(c, m) != 0;
    else if (file_exists(index)) failed = shards_read(c, index, m);
    else folder_explain(c->folder, m);
    free(single);
    free(index);
    failed |= config_read(c, m);
    if (!failed) {
        c->checksums = die_alloc((unsigned long)c->n_files * sizeof *c->checksums);
        failed = checksums_read(c, m);
    }
    return failed ? -1 : 0;
}

int checkpoint_open(struct checkpoint *c, const char *path, struct mistakes *m) {
    memset(c, 0, sizeof *c);
    c->folder = die_strdup(path);
    for (size_t n = strlen(path); n > 1 && c->folder[n - 1] == '/';) c->folder[--n] = 0;
    struct stat s;
    int failed = -1;
    if (stat(c->folder, &s) != 0) {
        mistake(m, path, 0,
                "%s; expected a Hugging Face folder on this machine, or a .safetensors file",
                strerror(errno));
    } else if (S_ISDIR(s.st_mode)) {
        failed = folder_read(c, m);
    } else {
        failed = file_add(c, c->folder, m) != 0 || table_make(c, m) != 0;
        if (!failed) c->checksums = die_alloc(sizeof *c->checksums);
    }
    if (failed) checkpoint_close(c);
    return failed ? -1 : 0;
}

void checkpoint_close(struct checkpoint *c) {
    for (int f = 0; f < c->n_files; f++) safetensors_close(&c->file[f]);
    for (int f = 0; f < c->n_files && c->checksums; f++) free(c->checksums[f].hash);
    for (int i = 0; i < c->n; i++) free(c->tensor[i].name);
    free(c->checksums);
    free(c->file);
    free(c->tensor);
    free(c->config);
    free(c->folder);
    memset(c, 0, sizeof *c);
}

int checkpoint_read_whole(const struct checkpoint *c, const struct stored_tensor *t, void *to,
                          struct mistakes *m) {
    const struct safetensors *s = &c->file[t->file];
    if (file_read_at(s->fd, to, t->bytes, t->begin) == 0) return 0;
    char buf[SHOWN_BYTES];
    mistake(m, s->path, 0, "tensor %s cannot be read: %s", shown(t->name, buf), strerror(errno));
    return -1;
}
