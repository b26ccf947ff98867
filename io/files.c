#include "io/files.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/die.h"

enum { TRANSFER = 1 << 30 }; /* Linux moves at most 2 GiB less a page at once */
enum { SUFFIX_BYTES = 16 };  /* room for .part, .old-2 and the like behind a name */

int file_open(const char *path, int64_t *size, char *why) {
    /* Without O_NONBLOCK a pipe with no writer would hold the program here for good. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        snprintf(why, WHY_BYTES, "cannot be opened: %s", strerror(errno));
        return -1;
    }
    struct stat s;
    if (fstat(fd, &s) != 0) {
        snprintf(why, WHY_BYTES, "cannot be examined: %s", strerror(errno));
    } else if (S_ISDIR(s.st_mode)) {
        snprintf(why, WHY_BYTES, "is a folder, not a file");
    } else if (!S_ISREG(s.st_mode)) {
        snprintf(why, WHY_BYTES, "is not a regular file");
    } else {
        *size = s.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

int file_read_at(int fd, void *to, int64_t n, int64_t at) {
    unsigned char *p = to;
    while (n > 0) {
        ssize_t k = pread(fd, p, (size_t)(n < TRANSFER ? n : TRANSFER), at);
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = ENODATA;
        if (k <= 0) return -1;
        p += k;
        n -= k;
        at += k;
    }
    return 0;
}

int file_write_at(int fd, const void *from, int64_t n, int64_t at) {
    const unsigned char *p = from;
    while (n > 0) {
        ssize_t k = pwrite(fd, p, (size_t)(n < TRANSFER ? n : TRANSFER), at);
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = EIO;
        if (k <= 0) return -1;
        p += k;
        n -= k;
        at += k;
    }
    return 0;
}

char *file_text(const char *path, int64_t limit, int64_t *bytes, char *why) {
    int64_t size = 0;
    int fd = file_open(path, &size, why);
    if (fd < 0) return NULL;
    char *text = NULL;
    if (size > limit) {
        snprintf(why, WHY_BYTES, "has %lld bytes, more than the %lld that are read of such a file",
                 (long long)size, (long long)limit);
    } else {
        text = die_alloc((unsigned long)size + 1);
        if (file_read_at(fd, text, size, 0) != 0) {
            snprintf(why, WHY_BYTES, "cannot be read: %s", strerror(errno));
            free(text);
            text = NULL;
        }
        *bytes = size;
    }
    close(fd);
    return text;
}

int file_make(const char *path, const void *text, int64_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return -1;
    int failed = file_write_at(fd, text, bytes, 0) != 0 || fsync(fd) != 0;
    int reason = errno;
    if (close(fd) != 0 && !failed) return -1;
    errno = reason;
    return failed ? -1 : 0;
}

int file_replace(const char *path, const char *part, const void *text, int64_t bytes) {
    unlink(part); /* of one that was killed */
    if (file_make(part, text, bytes) == 0 && rename(part, path) == 0) return 0;
    int reason = errno;
    unlink(part);
    errno = reason;
    return -1;
}

bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

bool file_is_folder(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

bool file_same(const char *a, const char *b) {
    char *real_a = realpath(a, NULL), *real_b = realpath(b, NULL);
    bool same = strcmp(a, b) == 0 || (real_a && real_b && strcmp(real_a, real_b) == 0);
    free(real_a);
    free(real_b);
    return same;
}

char *path_problem(const char *path) {
    char *copy = die_strdup(path), *problem = NULL;
    if (strlen(path) >= PATH_MAX - NAME_MAX) problem = die_strdup("is too long for a path");
    for (char *part = copy, *end; !problem && *part; part = end + 1) {
        end = part + strcspn(part, "/");
        char was = *end;
        *end = 0;
        if (end - part > NAME_MAX - SUFFIX_BYTES)
            problem = die_format("has a name of %d bytes; the longest are %d", (int)(end - part),
                                 NAME_MAX - SUFFIX_BYTES);
        else if (was && file_exists(copy) && !file_is_folder(copy))
            problem = die_format("cannot be made: %s is no folder", copy);
        if (!was) break;
        *end = was;
    }
    free(copy);
    return problem;
}

int folder_make_above(const char *path) {
    char *copy = die_strdup(path);
    int failed = 0;
    for (char *p = copy + 1; *copy && *p && !failed; p++) {
        if (*p != '/') continue;
        *p = 0;
        failed = mkdir(copy, 0777) != 0 && errno != EEXIST;
        *p = '/';
    }
    int reason = errno;
    free(copy);
    errno = reason;
    return failed ? -1 : 0;
}

int folder_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int failed = fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EBADF;
    int reason = errno;
    close(fd);
    errno = reason;
    return failed ? -1 : 0;
}

int folder_sync_above(const char *path) {
    char *copy = die_strdup(path);
    char *slash = strrchr(copy, '/');
    if (slash == copy) slash[1] = 0;
    else if (slash) *slash = 0;
    int result = folder_sync(slash ? copy : ".");
    int reason = errno;
    free(copy);
    errno = reason;
    return result;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *f) {
    (void)s;
    (void)type;
    (void)f;
    return remove(path);
}

int folder_remove(const char *path) {
    return nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) == 0 ? 0 : -1;
}

char *name_aside(const char *path) {
    struct stat s;
    char *aside = die_format("%s.old", path);
    for (int i = 2; lstat(aside, &s) == 0; i++) {
        free(aside);
        aside = die_format("%s.old-%d", path, i);
    }
    return aside;
}

int folder_replace(const char *fresh, const char *path, bool *was_there) {
    struct stat s;
    *was_there = lstat(path, &s) == 0;
    if (!*was_there) return rename(fresh, path);
    if (renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE) == 0) return 0;
    char *aside = name_aside(path);
    int failed = rename(path, aside) != 0, reason = errno;
    if (!failed && rename(fresh, path) != 0) {
        failed = 1;
        reason = errno;
        rename(aside, path);
    } else if (!failed) {
        rename(aside, fresh);
    }
    free(aside);
    errno = reason;
    return failed ? -1 : 0;
}

const char *shown(const char *name, char *buf) {
    int n = 0;
    for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
        if (n > SHOWN_BYTES - 8) return strcpy(buf + n, "..."), buf;
        buf[n++] = *p < 32 || *p == 127 ? '?' : (char)*p;
    }
    buf[n] = 0;
    return buf;
}
