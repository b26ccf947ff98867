#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/transport.h"

/* Blocking calls spin in some MPIs, and where ranks outnumber cores each then costs whole slices of
 * the scheduler: between MPI_Init and MPI_Finalize everything is posted and tested for. */

size_t transport_message_limit = (size_t)1 << 30;

struct flight {
    MPI_Request *requests;
    MPI_Status *statuses;
    int *members, *expected; /* whom with, and bytes to arrive (-1: sent) */
};

static struct flight *flight_next(struct messages *ms) {
    if (!ms->handles) ms->handles = die_alloc(sizeof(struct flight));
    struct flight *f = ms->handles;
    if (ms->n == ms->room) {
        ms->room = ms->room ? 2 * ms->room : 16;
        f->requests = die_realloc(f->requests, (size_t)ms->room * sizeof *f->requests);
        f->statuses = die_realloc(f->statuses, (size_t)ms->room * sizeof *f->statuses);
        f->members = die_realloc(f->members, (size_t)ms->room * sizeof *f->members);
        f->expected = die_realloc(f->expected, (size_t)ms->room * sizeof *f->expected);
    }
    return f;
}

static _Noreturn void fail(const struct group *g, int member, int error) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int len;
    MPI_Error_string(error, text, &len);
    if (member < 0) die("group %s: %s", g->name, text);
    die("group %s, with member %d of %d (rank %d): %s", g->name, member, g->size,
        g->members[member], text);
}

static void mpi_send(struct group *g, int member, int tag, const void *buf, size_t bytes,
                     struct messages *ms) {
    const char *from = buf;
    do {
        size_t part = bytes < transport_message_limit ? bytes : transport_message_limit;
        struct flight *f = flight_next(ms);
        f->members[ms->n] = member;
        f->expected[ms->n] = -1;
        int error = MPI_Isend(from, (int)part, MPI_BYTE, g->members[member], tag, MPI_COMM_WORLD,
                              &f->requests[ms->n]);
        if (error != MPI_SUCCESS) fail(g, member, error);
        ms->n++;
        from += part;
        bytes -= part;
    } while (bytes > 0);
}

static void mpi_receive(struct group *g, int member, int tag, void *buf, size_t bytes,
                        struct messages *ms) {
    char *to = buf;
    do {
        size_t part = bytes < transport_message_limit ? bytes : transport_message_limit;
        struct flight *f = flight_next(ms);
        f->members[ms->n] = member;
        f->expected[ms->n] = (int)part;
        int error = MPI_Irecv(to, (int)part, MPI_BYTE, g->members[member], tag, MPI_COMM_WORLD,
                              &f->requests[ms->n]);
        if (error != MPI_SUCCESS) fail(g, member, error);
        ms->n++;
        to += part;
        bytes -= part;
    } while (bytes > 0);
}

static bool mpi_finished(struct group *g, struct messages *ms) {
    if (ms->n == 0) return true;
    struct flight *f = ms->handles;
    int done = 0, error = MPI_Testall(ms->n, f->requests, &done, f->statuses);
    if (error != MPI_SUCCESS) {
        for (int i = 0; error == MPI_ERR_IN_STATUS && i < ms->n; i++)
            if (f->statuses[i].MPI_ERROR != MPI_SUCCESS &&
                f->statuses[i].MPI_ERROR != MPI_ERR_PENDING)
                fail(g, f->members[i], f->statuses[i].MPI_ERROR);
        fail(g, -1, error);
    }
    if (!done) return false;
    for (int i = 0; i < ms->n; i++) {
        int got;
        if (f->expected[i] < 0) continue;
        MPI_Get_count(&f->statuses[i], MPI_BYTE, &got);
        if (got != f->expected[i])
            bug("group %s: %d bytes from member %d (rank %d), %d expected", g->name, got,
                f->members[i], g->members[f->members[i]], f->expected[i]);
    }
    ms->n = 0;
    return true;
}

static void mpi_forget(struct messages *ms) {
    struct flight *f = ms->handles;
    if (!f) return;
    free(f->requests);
    free(f->statuses);
    free(f->members);
    free(f->expected);
    free(f);
    *ms = (struct messages){0};
}

static void mpi_end(struct comm *c) {
    if (c->owns_mpi) MPI_Finalize();
}

const struct transport transport_mpi = {"mpi",        true,       mpi_send, mpi_receive,
                                        mpi_finished, mpi_forget, mpi_end};

/* A number that ranks have in common where they share cores: the kernel's boot, whatever the
 * container's name; else the host's name. MPI_Comm_split_type would tell too, but takes seconds
 * where ranks outnumber cores. */
static int64_t host_number(void) {
    char text[256] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f) {
        if (!fgets(text, sizeof text, f)) text[0] = '\0';
        fclose(f);
    }
    if (text[0] == '\0' && gethostname(text, sizeof text - 1) != 0) return 0;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (const char *p = text; *p; p++) hash = (hash ^ (unsigned char)*p) * 1099511628211u;
    return (int64_t)hash;
}

static void gather_words(struct group *g, const void *own, void *all, int words) {
    int64_t *counts = die_alloc((size_t)g->size * sizeof *counts);
    struct request r;
    for (int i = 0; i < g->size; i++) counts[i] = words;
    comm_gather_start(g, own, all, counts, sizeof(int64_t), &r);
    comm_wait(&r);
    free(counts);
}

/* Ranks of this host, and the cores that any of them may use: launchers often bind each to its own.
 * */
static void find_host(struct comm *c) {
    int64_t own = host_number(), *hosts = die_alloc((size_t)c->size * sizeof *hosts);
    int *members = die_alloc((size_t)c->size * sizeof *members), n = 0;
    gather_words(c->world, &own, hosts, 1);
    for (int i = 0; i < c->size; i++)
        if (hosts[i] == own) members[n++] = i;
    unsigned long mask[COMM_MASK_WORDS], *masks = die_alloc((size_t)n * sizeof mask);
    struct group *host = group_new(c, "host", n, members);
    comm_core_mask(mask);
    gather_words(host, mask, masks, COMM_MASK_WORDS);
    for (int i = 0; i < n * COMM_MASK_WORDS; i++) mask[i % COMM_MASK_WORDS] |= masks[i];
    c->host = own;
    c->host_ranks = n;
    c->host_cores = comm_count_cores(mask, COMM_MASK_WORDS);
    group_free(host);
    free(hosts);
    free(members);
    free(masks);
}

static void tell_wrong_world(const struct launch *l, int size, struct mistakes *m) {
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len;
    MPI_Get_library_version(library, &len);
    library[strcspn(library, "\r\n,")] = '\0';
    for (char *p = library; *p; p++)
        if (*p == '\t') *p = ' ';
    const char *mend =
        strcmp(l->by, "srun") == 0
            ? "try srun --mpi=pmi2 or --mpi=pmix (srun --mpi=list shows what there is)"
            : "start it with the mpirun of the MPI it was built with";
    mistake(m, NULL, 0,
            "%s started %d processes, but the MPI of this program (%s) sees a world of %d: %s",
            l->by, l->size, library, size, mend);
}

int comm_init_mpi(struct comm *c, const struct launch *l, struct mistakes *m) {
    int ready, level, size, rank, has_limit, *limit;
    *c = (struct comm){.transport = &transport_mpi, .size = l->size, .rank = l->rank};
    MPI_Initialized(&ready);
    if (!ready) {
        if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS)
            die("MPI_Init_thread failed");
        c->owns_mpi = true;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (l->size != 0 && size != l->size) {
        tell_wrong_world(l, size, m);
        return -1;
    }
    bool owns = c->owns_mpi;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &has_limit);
    comm_open_world(c, &transport_mpi, size, rank, has_limit ? *limit : 32767);
    c->owns_mpi = owns;
    c->yield = true;
    find_host(c);
    c->yield = c->host_ranks > c->host_cores;
    c->bytes_sent = c->world->bytes_sent = c->world->calls = 0;
    return 0;
}

void comm_abort_mpi(int code) {
    int ready, ended = 0;
    MPI_Initialized(&ready);
    if (ready) MPI_Finalized(&ended);
    if (ready && !ended) MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}
