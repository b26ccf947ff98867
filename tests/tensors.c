/* tensors: looks at safetensors files without any of mestar's code, so that the runs have a second
 * opinion.
 *
 *   tensors list A                                 name, dtype and shape of each tensor
 *   tensors same A B                               the same tensors, bit for bit, whatever their
 *                                                  order and files
 *   tensors close A B LOGITS LOSS GRADIENTS        the largest differences of grad.*, logits and
 *                                                  loss, relative to each tensor's largest entry
 *                                                  (for grad.* at least 1e-6 of the largest
 *                                                  gradient of all); positions that B's
 *                                                  attention_mask hides do not count
 *   tensors ending A B WORD BOUND                  the same of all tensors whose names end so
 *
 * A and B are files or folders.  Exit code 0 yes, 1 no, 2 the files cannot be read. */
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct entry {
    char *name, dtype[8], shape[96];
    const unsigned char *bytes;
    int64_t size, width; /* bytes; last dimension */
};
struct file_set {
    int n;
    struct entry *e;
};

_Noreturn static void stop(const char *path, const char *what) {
    fprintf(stderr, "tensors: %s: %s\n", path, what);
    exit(2);
}

static void read_file(struct file_set *s, const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || st.st_size < 8) stop(path, "cannot be read");
    const unsigned char *m = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (m == MAP_FAILED) stop(path, "cannot be mapped");
    close(fd);
    uint64_t length;
    memcpy(&length, m, 8);
    if (length > (uint64_t)st.st_size - 8) stop(path, "header longer than the file");
    json_t *h = json_loadb((const char *)m + 8, length, 0, NULL), *v;
    const char *name;
    if (!json_is_object(h)) stop(path, "header is not JSON");
    json_object_foreach(h, name, v) {
        if (!strcmp(name, "__metadata__")) continue;
        s->e = realloc(s->e, (size_t)(s->n + 1) * sizeof *s->e);
        struct entry *e = &s->e[s->n++];
        *e = (struct entry){.name = strdup(name), .width = 1};
        const json_t *offsets = json_object_get(v, "data_offsets"),
                     *shape = json_object_get(v, "shape");
        int64_t begin = json_integer_value(json_array_get(offsets, 0));
        int64_t end = json_integer_value(json_array_get(offsets, 1));
        if (begin < 0 || end < begin || end > st.st_size - 8 - (int64_t)length) stop(path, name);
        snprintf(e->dtype, sizeof e->dtype, "%s", json_string_value(json_object_get(v, "dtype")));
        for (size_t i = 0; i < json_array_size(shape); i++) {
            e->width = json_integer_value(json_array_get(shape, i));
            size_t used = strlen(e->shape);
            snprintf(e->shape + used, sizeof e->shape - used, "%s%lld", i ? "x" : "",
                     (long long)e->width);
        }
        e->bytes = m + 8 + length + begin;
        e->size = end - begin;
    }
    json_decref(h);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static struct file_set read_all(const char *path) {
    struct file_set s = {0};
    DIR *d = opendir(path);
    if (d) {
        struct dirent *x;
        while ((x = readdir(d))) {
            const char *dot = strrchr(x->d_name, '.');
            char full[4096];
            snprintf(full, sizeof full, "%s/%s", path, x->d_name);
            if (dot && !strcmp(dot, ".safetensors")) read_file(&s, full);
        }
        closedir(d);
    } else read_file(&s, path);
    if (!s.n) stop(path, "no tensors");
    qsort(s.e, (size_t)s.n, sizeof *s.e, by_name);
    return s;
}

static void forget(struct file_set *s) {
    for (int i = 0; i < s->n; i++) free(s->e[i].name);
    free(s->e);
}

static const struct entry *find(const struct file_set *s, const char *name) {
    struct entry key = {.name = (char *)(uintptr_t)name};
    return bsearch(&key, s->e, (size_t)s->n, sizeof key, by_name);
}

static int same(const struct file_set *a, const struct file_set *b) {
    int bad = 0;
    for (int i = 0; i < a->n; i++) {
        const struct entry *x = &a->e[i], *y = find(b, x->name);
        const char *what = NULL;
        if (!y) what = "only in the first";
        else if (strcmp(x->dtype, y->dtype) || strcmp(x->shape, y->shape)) what = "dtype or shape";
        else if (x->size != y->size || memcmp(x->bytes, y->bytes, (size_t)x->size))
            what = "numbers";
        if (what && bad++ < 5) printf("%s: %s\n", x->name, what);
    }
    for (int i = 0; i < b->n; i++)
        if (!find(a, b->e[i].name) && bad++ < 5) printf("%s: only in the second\n", b->e[i].name);
    if (bad) printf("%d of %d tensors differ\n", bad, a->n);
    return bad != 0;
}

static double largest(const struct entry *e) {
    const float *p = (const float *)(const void *)e->bytes;
    double m = 0;
    for (int64_t i = 0; i < e->size / 4; i++) m = fmax(m, fabs(p[i]));
    return m;
}

/* The largest difference relative to scale; infinity where a number is not one. */
static double distance(const struct entry *x, const struct entry *y, const struct entry *mask,
                       double scale) {
    double worst = 0;
    const int64_t *keep = mask ? (const int64_t *)(const void *)mask->bytes : NULL;
    for (int64_t i = 0; i < x->size / 4; i++) {
        if (keep && !keep[i / x->width]) continue;
        float u, v;
        memcpy(&u, x->bytes + 4 * i, 4);
        memcpy(&v, y->bytes + 4 * i, 4);
        double d = fabs((double)u - v);
        worst = isfinite(d) ? fmax(worst, d) : INFINITY;
    }
    return scale > 0 ? worst / scale : worst > 0 ? INFINITY : 0;
}

static int near(const struct file_set *a, const struct file_set *b, char **tolerance) {
    static const char *const class_name[] = {"logits", "loss", "gradients"};
    double worst[3] = {0}, all = 0;
    const char *where[3] = {"", "", ""};
    int bad = 0, n[3] = {0};
    for (int i = 0; i < b->n; i++)
        if (!strncmp(b->e[i].name, "grad.", 5)) all = fmax(all, largest(&b->e[i]));
    for (int i = 0; i < b->n; i++) {
        const struct entry *y = &b->e[i], *x = find(a, y->name);
        int class = !strcmp(y->name, "logits")      ? 0
                    : !strcmp(y->name, "loss")      ? 1
                    : !strncmp(y->name, "grad.", 5) ? 2
                                                    : -1;
        if (class < 0) continue;
        if (!x || x->size != y->size || strcmp(x->dtype, "F32") || strcmp(y->dtype, "F32")) {
            printf("%s: %s\n", y->name, x ? "dtype or size" : "absent");
            bad = 1;
            continue;
        }
        double scale = class == 2 ? fmax(largest(y), 1e-6 * all) : largest(y);
        double d = distance(x, y, class ? NULL : find(b, "attention_mask"), scale);
        if (!(d <= worst[class])) worst[class] = d, where[class] = y->name;
        n[class]++;
    }
    for (int i = 0; i < a->n; i++)
        if (!strncmp(a->e[i].name, "grad.", 5) && !find(b, a->e[i].name))
            bad = 1, printf("%s: not expected\n", a->e[i].name);
    for (int c = 0; c < 3; c++) {
        if (!(worst[c] <= atof(tolerance[c])) || !n[c]) bad = 1;
        printf("%s%s %.1e%s%s", c ? ", " : "", class_name[c], worst[c], c == 2 ? " at " : "",
               c == 2 ? where[c] : "");
    }
    printf("\n");
    return bad;
}

/* Number i of a tensor in F32 or F64. */
static double number(const struct entry *e, int64_t i) {
    float f;
    double d;
    if (!strcmp(e->dtype, "F32")) return memcpy(&f, e->bytes + 4 * i, 4), f;
    return memcpy(&d, e->bytes + 8 * i, 8), d;
}

static bool ends_so(const char *name, const char *word) {
    size_t n = strlen(name), k = strlen(word);
    return n >= k && !strcmp(name + n - k, word);
}

static int ending(const struct file_set *a, const struct file_set *b, const char *word,
                  double bound) {
    double worst = 0, all = 0;
    const char *where = "";
    int n = 0;
    double *largest_of = calloc((size_t)b->n + 1, sizeof *largest_of);
    for (int i = 0; largest_of && i < b->n; i++) {
        const struct entry *y = &b->e[i], *x = find(a, y->name);
        if (!ends_so(y->name, word)) continue;
        n++;
        if (!x || x->size != y->size || strcmp(x->dtype, y->dtype) || *y->dtype != 'F') {
            printf("%s: %s\n", y->name, x ? "dtype or size" : "absent");
            free(largest_of);
            return 1;
        }
        for (int64_t k = 0; k < y->size / (y->dtype[1] == '3' ? 4 : 8); k++)
            largest_of[i] = fmax(largest_of[i], fabs(number(y, k)));
        all = fmax(all, largest_of[i]);
    }
    for (int i = 0; largest_of && i < b->n; i++) {
        const struct entry *y = &b->e[i], *x = find(a, y->name);
        const double scale = fmax(fmax(largest_of[i], 1e-6 * all), 1e-300);
        if (!ends_so(y->name, word)) continue;
        for (int64_t k = 0; k < y->size / (y->dtype[1] == '3' ? 4 : 8); k++) {
            const double d = fabs(number(x, k) - number(y, k)) / scale;
            if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY, where = y->name;
        }
    }
    free(largest_of);
    printf("%d tensors, %.1e at %s\n", n, worst, where);
    return !n || !(worst <= bound);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "list")) {
        struct file_set a = read_all(argv[2]);
        for (int i = 0; i < a.n; i++) printf("%s %s %s\n", a.e[i].name, a.e[i].dtype, a.e[i].shape);
        forget(&a);
        return 0;
    }
    if (argc == 6 && !strcmp(argv[1], "ending")) {
        struct file_set a = read_all(argv[2]), b = read_all(argv[3]);
        int no = ending(&a, &b, argv[4], atof(argv[5]));
        forget(&a);
        forget(&b);
        return no;
    }
    if ((argc == 4 && !strcmp(argv[1], "same")) || (argc == 7 && !strcmp(argv[1], "close"))) {
        struct file_set a = read_all(argv[2]), b = read_all(argv[3]);
        int no = argc == 4 ? same(&a, &b) : near(&a, &b, argv + 4);
        forget(&a);
        forget(&b);
        return no;
    }
    fprintf(stderr, "tensors: list A | same A B | close A B LOGITS LOSS GRADIENTS | "
                    "ending A B WORD BOUND\n");
    return 2;
}
