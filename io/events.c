#include "io/events.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/die.h"

/* Bit by bit: a few hundred bytes a step need no table. */
uint32_t crc32c(const void *data, size_t bytes) {
    uint32_t crc = 0xffffffff;
    for (const unsigned char *p = data, *end = p + bytes; p < end; p++) {
        crc ^= *p;
        for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

uint32_t crc32c_masked(const void *data, size_t bytes) {
    uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8;
}

/* ---------------------------------------------------------------- writing */

/* Bytes of a message in the making. */
struct text {
    size_t n, room;
    unsigned char *p;
};

static void put(struct text *t, const void *bytes, size_t n) {
    if (t->n + n > t->room) {
        t->room = 2 * (t->n + n);
        t->p = die_realloc(t->p, t->room);
    }
    if (n) memcpy(t->p + t->n, bytes, n);
    t->n += n;
}

/* The n low bytes, lowest first. */
static void put_fixed(struct text *t, uint64_t x, int n) {
    for (int i = 0; i < n; i++, x >>= 8) put(t, &(unsigned char){(unsigned char)x}, 1);
}

static void put_varint(struct text *t, uint64_t x) {
    for (; x >= 128; x >>= 7) put_fixed(t, x | 128, 1);
    put_fixed(t, x, 1);
}

/* Protobuf's field number and kind of value. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_FILE_VERSION = 3, EVENT_SUMMARY = 5 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2 };

static void put_key(struct text *t, int field, int kind) {
    put_varint(t, (uint64_t)(field << 3 | kind));
}

static void put_bytes(struct text *t, int field, const void *bytes, size_t n) {
    put_key(t, field, BYTES);
    put_varint(t, n);
    put(t, bytes, n);
}

static void put_double(struct text *t, int field, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    put_key(t, field, FIXED64);
    put_fixed(t, bits, 8);
}

static void put_float(struct text *t, int field, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    put_key(t, field, FIXED32);
    put_fixed(t, bits, 4);
}

/* One record goes out in one write, so that whoever reads beside us sees whole ones. */
static void write_record(struct events *e, const struct text *event) {
    struct text record = {0};
    put_fixed(&record, event->n, 8);
    put_fixed(&record, crc32c_masked(record.p, 8), 4);
    put(&record, event->p, event->n);
    put_fixed(&record, crc32c_masked(event->p, event->n), 4);
    if (fwrite(record.p, 1, record.n, e->f) != record.n || fflush(e->f))
        die("cannot write %s: %s; is the disk full?", e->path, strerror(errno));
    free(record.p);
}

void events_write(struct events *e, double wall, int64_t step, int n,
                  const struct event_value *values) {
    struct text event = {0}, summary = {0}, value = {0};
    if (!e->f) return;
    for (int i = 0; i < n; i++) {
        value.n = 0;
        put_bytes(&value, VALUE_TAG, values[i].tag, strlen(values[i].tag));
        put_float(&value, VALUE_SIMPLE, (float)values[i].value);
        put_bytes(&summary, SUMMARY_VALUE, value.p, value.n);
    }
    put_double(&event, EVENT_WALL_TIME, wall);
    put_key(&event, EVENT_STEP, VARINT);
    put_varint(&event, (uint64_t)step);
    put_bytes(&event, EVENT_SUMMARY, summary.p, summary.n);
    write_record(e, &event);
    free(event.p);
    free(summary.p);
    free(value.p);
}

static void write_version(struct events *e, double wall) {
    static const char version[] = "brain.Event:2";
    struct text event = {0};
    put_double(&event, EVENT_WALL_TIME, wall);
    put_bytes(&event, EVENT_FILE_VERSION, version, sizeof version - 1);
    write_record(e, &event);
    free(event.p);
}

/* ---------------------------------------------------------------- going back */

static uint64_t get_fixed(const unsigned char *p, int n) {
    uint64_t x = 0;
    for (int i = n - 1; i >= 0; i--) x = x << 8 | p[i];
    return x;
}

/* Reads a varint at *p; false past the end. */
static bool get_varint(const unsigned char **p, const unsigned char *end, uint64_t *x) {
    *x = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        unsigned char byte = *(*p)++;
        *x |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

/* The step of an Event; 0 if it names none, -1 if this is no message. */
static int64_t event_step(const unsigned char *p, size_t n) {
    const unsigned char *end = p + n;
    int64_t step = 0;
    while (p < end) {
        uint64_t key, x;
        if (!get_varint(&p, end, &key)) return -1;
        int kind = (int)(key & 7);
        if (kind == FIXED64 || kind == FIXED32) x = kind == FIXED64 ? 8 : 4;
        else if (!get_varint(&p, end, &x)) return -1;
        if (key == (EVENT_STEP << 3 | VARINT)) step = (int64_t)x;
        if (kind == VARINT) continue;
        if (x > (uint64_t)(end - p)) return -1;
        p += x;
    }
    return step;
}

/* Bytes of the whole records of steps up to `step`, from the start. */
static long keep_until(FILE *f, int64_t step) {
    enum { HEAD = 12, TAIL = 4, MOST = 1 << 24 };
    unsigned char head[HEAD], *data = NULL;
    long at = 0;
    while (fread(head, 1, HEAD, f) == HEAD) {
        uint64_t n = get_fixed(head, 8);
        if (n > MOST || get_fixed(head + 8, 4) != crc32c_masked(head, 8)) break;
        data = die_realloc(data, n + TAIL);
        if (fread(data, 1, n + TAIL, f) != n + TAIL) break;
        if (get_fixed(data + n, TAIL) != crc32c_masked(data, n)) break;
        int64_t of = event_step(data, n);
        if (of < 0 || of > step) break;
        at += HEAD + (long)n + TAIL;
    }
    free(data);
    return at;
}

int events_truncate(const char *path, int64_t step) {
    FILE *f = fopen(path, "rb");
    if (!f) return -1;
    long keep = keep_until(f, step);
    int bad = ferror(f);
    fclose(f);
    return bad || truncate(path, keep) ? -1 : 0;
}

/* ---------------------------------------------------------------- files */

static const char prefix[] = "events.out.tfevents.";

static char *new_path(const char *folder) {
    char host[256] = "";
    if (gethostname(host, sizeof host - 1) || !*host) strcpy(host, "host");
    return die_format("%s/%s%010ld.%s.%ld.0", folder, prefix, (long)time(NULL), host,
                      (long)getpid());
}

/* Goes through the files of former parts: cuts or removes each, and returns the newest (malloc'd)
 * or NULL. */
static char *go_through(const char *folder, int64_t after) {
    char *newest = NULL;
    DIR *d = opendir(folder);
    if (!d) die("cannot read the folder %s: %s", folder, strerror(errno));
    for (struct dirent *entry; (entry = readdir(d));) {
        if (strncmp(entry->d_name, prefix, sizeof prefix - 1)) continue;
        char *path = die_format("%s/%s", folder, entry->d_name);
        if (after < 0 ? unlink(path) : events_truncate(path, after))
            die("cannot %s %s: %s", after < 0 ? "remove" : "cut", path, strerror(errno));
        /* Names differ in the time they were begun. */
        if (after >= 0 && (!newest || strcmp(path, newest) > 0)) {
            char *former = newest;
            newest = path;
            path = former;
        }
        free(path);
    }
    closedir(d);
    return newest;
}

void events_open(struct events *e, const char *folder, int64_t after) {
    *e = (struct events){.path = go_through(folder, after)};
    if (!e->path) e->path = new_path(folder);
    e->f = fopen(e->path, "ab");
    if (!e->f || fseek(e->f, 0, SEEK_END)) die("cannot write %s: %s", e->path, strerror(errno));
    if (ftell(e->f) == 0) write_version(e, (double)time(NULL));
}

void events_close(struct events *e) {
    if (e->f && fclose(e->f)) die("cannot write %s: %s", e->path, strerror(errno));
    free(e->path);
    *e = (struct events){0};
}
