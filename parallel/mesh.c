#include "parallel/mesh.h"

#include <limits.h>
#include <stdio.h>

#include "kernels/mistakes.h"

static const char *const axis_names[MESH_AXES] = {"pipeline",    "data",   "context",      "tensor",
                                                  "expert_data", "expert", "expert_tensor"};

const char *mesh_axis_name(enum mesh_axis axis) {
    return axis_names[axis];
}

int mesh_stage_ranks(const struct mesh_shape *s) {
    return s->data * s->context * s->tensor;
}

int mesh_extent(const struct mesh_shape *s, enum mesh_axis axis) {
    const int extent[MESH_AXES] = {s->pipeline,    s->data,   s->context,      s->tensor,
                                   s->expert_data, s->expert, s->expert_tensor};
    return extent[axis];
}

int mesh_coordinate(const struct mesh_coords *c, enum mesh_axis axis) {
    const int at[MESH_AXES] = {c->pipeline,    c->data,   c->context,      c->tensor,
                               c->expert_data, c->expert, c->expert_tensor};
    return at[axis];
}

static int stage_ranks(const struct mesh_shape *s) {
    return s->data * s->context * s->tensor;
}

int mesh_ranks(const struct mesh_shape *s) {
    return s->pipeline * stage_ranks(s);
}

struct mesh_coords mesh_coords(const struct mesh_shape *s, int rank) {
    int in_stage = rank % stage_ranks(s);
    return (struct mesh_coords){
        .pipeline = rank / stage_ranks(s),
        .data = in_stage / (s->context * s->tensor),
        .context = in_stage / s->tensor % s->context,
        .tensor = in_stage % s->tensor,
        .expert_data = in_stage / (s->expert * s->expert_tensor),
        .expert = in_stage / s->expert_tensor % s->expert,
        .expert_tensor = in_stage % s->expert_tensor,
    };
}

int mesh_rank(const struct mesh_shape *s, int pipeline, int data, int context, int tensor) {
    return ((pipeline * s->data + data) * s->context + context) * s->tensor + tensor;
}

int mesh_rank_expert(const struct mesh_shape *s, int pipeline, int expert_data, int expert,
                     int expert_tensor) {
    return ((pipeline * s->expert_data + expert_data) * s->expert + expert) * s->expert_tensor +
           expert_tensor;
}

bool mesh_experts_join_data(const struct mesh_shape *s) {
    return s->context * s->tensor % (s->expert * s->expert_tensor) != 0;
}

/* How far apart neighbours along the axis are, as ranks. */
static int stride(const struct mesh_shape *s, enum mesh_axis axis) {
    switch (axis) {
    case MESH_PIPELINE: return stage_ranks(s);
    case MESH_DATA: return s->context * s->tensor;
    case MESH_CONTEXT: return s->tensor;
    case MESH_EXPERT_DATA: return s->expert * s->expert_tensor;
    case MESH_EXPERT: return s->expert_tensor;
    default: return 1;
    }
}

static int members_from(const struct mesh_shape *s, int rank, enum mesh_axis axis, int first, int n,
                        int *members) {
    struct mesh_coords c = mesh_coords(s, rank);
    int step = stride(s, axis), zero = rank - mesh_coordinate(&c, axis) * step;
    for (int i = 0; i < n; i++) members[i] = zero + (first + i) * step;
    return n;
}

int mesh_members(const struct mesh_shape *s, int rank, enum mesh_axis axis, int *members) {
    return members_from(s, rank, axis, 0, mesh_extent(s, axis), members);
}

int mesh_share_members(const struct mesh_shape *s, int rank, enum mesh_axis axis, int share,
                       int *members) {
    struct mesh_coords c = mesh_coords(s, rank);
    int first = mesh_coordinate(&c, axis) / share * share;
    return members_from(s, rank, axis, first, share, members);
}

int mesh_replica_members(const struct mesh_shape *s, int rank, int *members) {
    struct mesh_coords c = mesh_coords(s, rank);
    int n = s->data * s->context, first = mesh_rank(s, c.pipeline, 0, 0, c.tensor);
    for (int i = 0; i < n; i++) members[i] = first + i * s->tensor;
    return n;
}

int mesh_sample_members(const struct mesh_shape *s, int rank, int *members) {
    int n = s->context * s->tensor;
    for (int i = 0; i < n; i++) members[i] = rank / n * n + i;
    return n;
}

int64_t part_begin(int64_t width, int n, int r, int64_t unit) {
    return r == n ? width : width / unit * r / n * unit;
}

int part_heads(int64_t count, int n, int r, int64_t *first, int64_t *held, int *share) {
    if (count < 1) return -1;
    if (count % n == 0) {
        *held = count / n;
        *first = r * *held;
        *share = 1;
        return 0;
    }
    if (n % count != 0) return -1;
    *held = 1;
    *share = (int)(n / count);
    *first = r / *share;
    return 0;
}

/* What divides n and is near `value`, as words: "1, 2 or 4". At most four, the nearest by ratio. */
static const char *divisors_near(int64_t n, int64_t value, char *text, size_t room) {
    enum { SHOWN = 4 };
    int64_t found[SHOWN];
    int k = 0;
    for (int64_t d = 1; d <= n; d++) {
        if (n % d != 0) continue;
        if (k == SHOWN) {
            /* The window slides up while its upper end comes nearer than its lower end is. */
            if (d > value && found[0] * d > value * value) break;
            for (int i = 1; i < SHOWN; i++) found[i - 1] = found[i];
            k--;
        }
        found[k++] = d;
    }
    size_t used = 0;
    for (int i = 0; i < k; i++) {
        const char *before = i == 0 ? "" : i == k - 1 ? " or " : ", ";
        int wrote = snprintf(text + used, room - used, "%s%lld", before, (long long)found[i]);
        if (wrote < 0 || (size_t)wrote >= room - used) break;
        used += (size_t)wrote;
    }
    return text;
}

/* "tensor 2 x data 4": the axes of the dense factoring that are more than 1. */
static const char *product_text(const struct mesh_shape *s, char *text, size_t room) {
    static const enum mesh_axis order[] = {MESH_PIPELINE, MESH_TENSOR, MESH_CONTEXT, MESH_DATA};
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < 4; i++) {
        int extent = mesh_extent(s, order[i]);
        if (extent <= 1) continue;
        int wrote = snprintf(text + used, room - used, "%s%s %d", used ? " x " : "",
                             axis_names[order[i]], extent);
        if (wrote < 0 || (size_t)wrote >= room - used) break;
        used += (size_t)wrote;
    }
    return used ? text : "data 1";
}

static int check_values(const struct mesh_shape *s, struct mistakes *m) {
    int wrong = 0;
    for (int a = 0; a < MESH_AXES; a++) {
        int extent = mesh_extent(s, a), least = a == MESH_DATA || a == MESH_EXPERT_TENSOR ? 0 : 1;
        if (a == MESH_EXPERT_DATA || extent >= least) continue;
        mistake(m, NULL, 0, "parallel.%s: %d is less than %d", axis_names[a], extent, least);
        wrong = 1;
    }
    return wrong;
}

/* Without data, the other axes must divide the ranks; blames each axis that cannot, else their
 * product. */
static int fill_data(struct mesh_shape *s, int64_t ranks, int64_t others, struct mistakes *m) {
    static const enum mesh_axis order[] = {MESH_PIPELINE, MESH_TENSOR, MESH_CONTEXT};
    char text[160];
    if (ranks % others == 0) {
        s->data = (int)(ranks / others);
        return 0;
    }
    int blamed = 0, n_others = 0;
    enum mesh_axis last = MESH_TENSOR;
    for (int i = 0; i < 3; i++) {
        int extent = mesh_extent(s, order[i]);
        if (extent > 1) n_others++, last = order[i];
        if (ranks % extent == 0) continue;
        int64_t rest = others / extent, left = ranks % rest == 0 ? ranks / rest : ranks;
        if (ranks == 1)
            mistake(m, NULL, 0,
                    "parallel.%s: %d needs %d ranks or a multiple, 1 was started (mpirun -n %lld)",
                    axis_names[order[i]], extent, extent, (long long)others);
        else
            mistake(m, NULL, 0,
                    "parallel.%s: %d does not divide the %lld ranks that were started; %s do%s",
                    axis_names[order[i]], extent, (long long)ranks,
                    divisors_near(left, extent, text, sizeof text), left == 1 ? "es" : "");
        blamed = 1;
    }
    if (blamed) return -1;
    char product[160];
    int extent = mesh_extent(s, last);
    int64_t rest = others / extent;
    s->data = 1;
    product_text(s, product, sizeof product);
    s->data = 0;
    if (n_others > 1 && ranks % rest == 0)
        mistake(m, NULL, 0,
                "%lld ranks were started but %s needs a multiple of %lld (mpirun -n %lld, or "
                "parallel.%s: %s)",
                (long long)ranks, product, (long long)others, (long long)others, axis_names[last],
                divisors_near(ranks / rest, extent, text, sizeof text));
    else
        mistake(m, NULL, 0,
                "%lld ranks were started but %s needs a multiple of %lld (mpirun -n %lld)",
                (long long)ranks, product, (long long)others, (long long)others);
    return -1;
}

static int complete_dense(struct mesh_shape *s, int64_t ranks, struct mistakes *m) {
    char product[160];
    /* Each factor is an int, so a product that stops above INT_MAX has not overflowed. */
    int64_t others = s->pipeline;
    if (others <= INT_MAX) others *= s->context;
    if (others <= INT_MAX) others *= s->tensor;
    int64_t all = others <= INT_MAX && s->data > 0 ? others * s->data : others;
    if (all > INT_MAX) {
        mistake(m, NULL, 0, "parallel: %s is more ranks than can be counted",
                product_text(s, product, sizeof product));
        return -1;
    }
    if (ranks == 0) {
        if (s->data == 0) s->data = 1;
        return 0;
    }
    if (s->data == 0) return fill_data(s, ranks, others, m);
    if (all == ranks) return 0;
    char mend[64] = "";
    if (ranks % others == 0)
        snprintf(mend, sizeof mend, ", or parallel.data: %lld", (long long)(ranks / others));
    mistake(m, NULL, 0, "%lld rank%s started but %s needs %lld (mpirun -n %lld%s)",
            (long long)ranks, ranks == 1 ? " was" : "s were",
            product_text(s, product, sizeof product), (long long)all, (long long)all, mend);
    return -1;
}

static int complete_expert(struct mesh_shape *s, struct mistakes *m) {
    char text[160], product[160];
    struct mesh_shape stage = *s;
    int ranks = stage_ranks(s), derived = s->expert_tensor == 0;
    stage.pipeline = 1;
    product_text(&stage, product, sizeof product);
    if (derived) s->expert_tensor = s->expert == 1 ? s->tensor : 1;
    if ((int64_t)s->expert * s->expert_tensor <= ranks &&
        ranks % (s->expert * s->expert_tensor) == 0) {
        s->expert_data = ranks / (s->expert * s->expert_tensor);
        return 0;
    }
    const char *key = ranks % s->expert != 0 ? "expert" : "expert_tensor";
    int value = ranks % s->expert != 0 ? s->expert : s->expert_tensor;
    int left = ranks % s->expert != 0 ? ranks : ranks / s->expert;
    if (ranks % s->expert != 0 || s->expert == 1)
        mistake(m, NULL, 0,
                "parallel.%s: %d does not divide the %d ranks of a pipeline stage (%s); %s do%s",
                key, value, ranks, product, divisors_near(left, value, text, sizeof text),
                left == 1 ? "es" : "");
    else
        mistake(m, NULL, 0,
                "parallel.%s: %d x expert %d does not divide the %d ranks of a pipeline stage "
                "(%s); %s do%s",
                key, value, s->expert, ranks, product,
                divisors_near(left, value, text, sizeof text), left == 1 ? "es" : "");
    return -1;
}

int mesh_complete(struct mesh_shape *s, int ranks, struct mistakes *m) {
    if (check_values(s, m)) return -1;
    if (complete_dense(s, ranks, m)) return -1;
    return complete_expert(s, m);
}
