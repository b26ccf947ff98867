#include "parallel/cores.h"

#include <dirent.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/die.h"

enum { BITS = 8 * sizeof(unsigned long), MOST = CORES_WORDS * BITS };

static bool has(const struct cores *c, int i) {
    return i >= 0 && i < MOST && c->word[i / BITS] >> i % BITS & 1;
}

/* Where OpenMP binds threads (OMP_PROC_BIND, OMP_PLACES), the first of them is bound before main
 * begins: to a place of its own, the others of which are its brothers'. */
static void join_places(struct cores *c) {
    for (int p = 0; p < omp_get_num_places(); p++) {
        const int n = omp_get_place_num_procs(p);
        int *core = die_alloc((size_t)(n + 1) * sizeof *core);
        omp_get_place_proc_ids(p, core);
        for (int i = 0; i < n; i++)
            if (core[i] >= 0 && core[i] < MOST) c->word[core[i] / BITS] |= 1ul << core[i] % BITS;
        free(core);
    }
}

void cores_own(struct cores *c) {
    memset(c, 0, sizeof *c);
    if (sched_getaffinity(0, sizeof c->word, (cpu_set_t *)c->word) != 0) c->word[0] = 1;
    if (cores_bound_by_openmp()) join_places(c);
}

bool cores_bound_by_openmp(void) {
    return omp_get_proc_bind() != omp_proc_bind_false;
}

int cores_count(const struct cores *c) {
    int n = 0;
    for (int i = 0; i < CORES_WORDS; i++) n += __builtin_popcountl(c->word[i]);
    return n;
}

bool cores_within(const struct cores *a, const struct cores *b) {
    for (int i = 0; i < CORES_WORDS; i++)
        if (a->word[i] & ~b->word[i]) return false;
    return true;
}

void cores_join(struct cores *a, const struct cores *b) {
    for (int i = 0; i < CORES_WORDS; i++) a->word[i] |= b->word[i];
}

int cores_of_host(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

/* Whether any of the cores is in a list as the kernel writes them: 0-3,8. */
static bool any_listed(const struct cores *c, FILE *f) {
    int first, last;
    while (fscanf(f, "%d", &first) == 1) {
        int next = fgetc(f);
        last = first;
        if (next == '-' && fscanf(f, "%d", &last) == 1) next = fgetc(f);
        for (int i = first; i <= last; i++)
            if (has(c, i)) return true;
        if (next != ',') break;
    }
    return false;
}

int cores_nodes(const struct cores *c, int *of_host) {
    static const char folder[] = "/sys/devices/system/node";
    DIR *d = opendir(folder);
    int ours = 0, number, end;
    *of_host = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        if (sscanf(e->d_name, "node%d%n", &number, &end) != 1 || e->d_name[end]) continue;
        char *path = die_format("%s/%s/cpulist", folder, e->d_name);
        FILE *f = fopen(path, "r");
        ++*of_host;
        ours += f && any_listed(c, f);
        if (f) fclose(f);
        free(path);
    }
    if (d) closedir(d);
    if (*of_host < 1) *of_host = 1;
    return ours > 0 ? ours : 1;
}

char *cores_text(const struct cores *c) {
    char *text = die_strdup("");
    for (int i = 0; i < MOST; i++) {
        if (!has(c, i)) continue;
        const int first = i;
        while (has(c, i + 1)) i++;
        char *longer = first < i ? die_format("%s%s%d-%d", text, *text ? "," : "", first, i)
                                 : die_format("%s%s%d", text, *text ? "," : "", i);
        free(text);
        text = longer;
    }
    return text;
}

/* Turns of the loop that spins, some twenty microseconds: as many as gcc's OpenMP takes by itself
 * where it knows of more threads than cores. Decoding with two threads on two busy cores made 80 to
 * 150 tokens a second with 300 to 1000 turns, 2 to 90 with its default of 300000. */
static const char brief[] = "1000";

void cores_wait_briefly(char **argv) {
#if defined __GNUC__ && !defined __clang__
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    char path[4096]; /* by its own name, which ps then shows */
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0 || setenv("GOMP_SPINCOUNT", brief, 1) != 0) return;
    path[n] = 0;
    if (cores_bound_by_openmp()) { /* else the new program would see this thread's place only */
        struct cores all;
        cores_own(&all);
        sched_setaffinity(0, sizeof all.word, (const cpu_set_t *)all.word);
    }
    execv(path, argv);
#else
    (void)argv;
#endif
}
