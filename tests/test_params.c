/* Parameters: on random models and meshes the ranks' boxes cover every tensor and own every number
 * once; initial values know nothing of the mesh and are drawn as they should be; and the released
 * models have the numbers of parameters and tensors that are published. */
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/init.h"
#include "src/model.h"
#include "tests/place.h"

/* ---------------------------------------------------------------- random models and meshes */

static uint64_t seed = 1;

/* From low to high, both included. */
static int any(int low, int high) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (int)((seed >> 33) % (uint64_t)(high - low + 1));
}

/* Of `heads`, a number that divides it and is a multiple or a divisor of n. */
static int any_shared(int heads, int n) {
    for (;;) {
        int k = any(1, heads);
        if (heads % k == 0 && (k % n == 0 || n % k == 0)) return k;
    }
}

struct setting {
    struct config c;
    struct mesh_shape mesh;
    char kinds[8];
};

static void any_mesh(struct mesh_shape *m) {
    *m = (struct mesh_shape){1, any(1, 3), any(1, 2), any(1, 8), 1, 1, 1};
    int ranks = m->data * m->context * m->tensor;
    do m->expert_tensor = any(1, ranks);
    while (ranks % m->expert_tensor);
    do m->expert = any(1, ranks / m->expert_tensor);
    while (ranks / m->expert_tensor % m->expert);
    m->expert_data = ranks / m->expert_tensor / m->expert;
}

static void any_setting(struct setting *s) {
    memset(s, 0, sizeof *s);
    any_mesh(&s->mesh);
    struct deck_model *k = &s->c.keys;
    const int n = s->mesh.tensor;
    s->c.n_layers = any(1, 5);
    for (int i = 0; i < s->c.n_layers; i++) s->kinds[i] = "M*-E"[any(0, 3)];
    s->c.kinds = s->kinds;
    s->c.mtp_kinds = "";
    k->initialization = any(0, 1) ? "huggingface" : "megatron";
    k->vocab_size = any(1, 40);
    k->hidden_size = any(1, 9);
    k->num_attention_heads = n * any(1, 2);
    k->num_key_value_heads = any_shared((int)k->num_attention_heads, n);
    k->head_dim = any(1, 4);
    k->intermediate_size = any(1, 20);
    k->mamba_num_heads = n * any(1, 2);
    k->n_groups = any_shared((int)k->mamba_num_heads, n);
    k->mamba_head_dim = any(1, 3);
    k->ssm_state_size = any(1, 4);
    k->conv_kernel = any(1, 4);
    k->n_routed_experts = s->mesh.expert * any(1, 3);
    k->num_experts_per_tok = 1;
    k->moe_intermediate_size = any(1, 20);
    k->moe_shared_expert_intermediate_size = any(1, 20);
    k->moe_latent_size = any(0, 1) * any(1, 5);
    k->mlp_bias = any(0, 1);
    k->use_bias = any(0, 1);
    k->use_conv_bias = any(0, 1);
    k->attention_bias = any(0, 1);
    k->tie_word_embeddings = any(0, 1);
    k->initializer_range = 0.02;
    k->rescale_prenorm_residual = true;
    k->time_step_min = 1e-3;
    k->time_step_max = 0.1;
    k->time_step_floor = 1e-4;
}

/* A model as one rank holds it, with host memory for its blocks. */
static void build(struct model *m, struct device *d, const struct config *c,
                  const struct mesh_shape *mesh, int rank, uint64_t from) {
    device_cpu(d, 1, false);
    model_init(m, c, mesh, rank, NULL, false);
    for (int i = 0; i < m->params.n_blocks; i++) {
        struct param_block *b = &m->params.block[i];
        b->p.value = die_alloc(b->elements * sizeof(float));
        b->p.grad = die_alloc(b->elements * sizeof(float));
    }
    init_parameters(&m->params, d, F32, from);
}

static void demolish(struct model *m) {
    for (int i = 0; i < m->params.n_blocks; i++) {
        free(m->params.block[i].p.value);
        free(m->params.block[i].p.grad);
    }
    model_free(m);
}

/* The whole tensors' values, by number. */
static float **values_on_one_rank(const struct config *c, uint64_t from) {
    static const struct mesh_shape one = {1, 1, 1, 1, 1, 1, 1};
    struct model m;
    struct device d;
    int n;
    build(&m, &d, c, &one, 0, from);
    struct params *s = &m.params;
    float **v = die_alloc((s->n_tensors + 1) * sizeof *v);
    struct box *b = params_boxes(s, F32, false, false, &n);
    for (int i = 0; i < s->n_tensors; i++) v[i] = die_alloc(s->tensor[i].elements * sizeof(float));
    for (int i = 0; i < n; i++)
        for (int64_t r = 0; r < b[i].rows; r++)
            memcpy(v[b[i].tensor] + (b[i].row + r) * b[i].width + b[i].column,
                   (float *)b[i].memory + r * b[i].stride, b[i].columns * sizeof(float));
    free(b);
    demolish(&m);
    return v;
}

/* ---------------------------------------------------------------- boxes */

/* What all ranks together hold: how often each number of each tensor is held, and owned. */
struct held {
    int n;
    unsigned char **all, **owned;
};

static void add_boxes(const struct params *s, bool gradients, bool owned, unsigned char **count,
                      float *const *values) {
    int n;
    struct box *boxes = params_boxes(s, F32, gradients, owned, &n);
    for (int i = 0; i < n; i++) {
        const struct box *b = &boxes[i];
        const struct param_tensor *t = &s->tensor[b->tensor];
        assert_true(b->rows > 0 && b->columns > 0 && b->row >= 0 && b->column >= 0);
        assert_int_equal(t->elements % b->width, 0);
        assert_true(b->row + b->rows <= t->elements / b->width);
        assert_true(b->column + b->columns <= b->width && b->columns <= b->stride);
        assert_true(b->rows == 1 || b->columns == b->stride); /* contiguous */
        for (int64_t r = 0; r < b->rows; r++)
            for (int64_t c = 0; c < b->columns; c++) {
                int64_t at = (b->row + r) * b->width + b->column + c;
                count[b->tensor][at]++;
                if (!values) continue;
                float here = ((float *)b->memory)[r * b->stride + c];
                if (memcmp(&here, &values[b->tensor][at], sizeof here))
                    fail_msg("%s[%ld] is %.9g here and %.9g on one rank", t->name, (long)at, here,
                             values[b->tensor][at]);
            }
    }
    free(boxes);
}

/* Every number of a block belongs to exactly one box. */
static void blocks_are_filled(const struct params *s) {
    int n;
    struct box *boxes = params_boxes(s, F32, false, false, &n);
    for (int i = 0; i < s->n_blocks; i++) memset(s->block[i].p.grad, 0, s->block[i].elements * 4);
    for (int i = 0; i < n; i++) {
        const struct param_block *b = &s->block[s->tensor[boxes[i].tensor].block];
        int64_t at = (float *)boxes[i].memory - (float *)b->p.value;
        for (int64_t r = 0; r < boxes[i].rows; r++)
            for (int64_t c = 0; c < boxes[i].columns; c++)
                ((float *)b->p.grad)[at + r * boxes[i].stride + c]++;
    }
    for (int i = 0; i < s->n_blocks; i++)
        for (int64_t k = 0; k < s->block[i].elements; k++)
            assert_true(((float *)s->block[i].p.grad)[k] == 1);
    free(boxes);
}

static void segments_add_up(const struct params *s) {
    for (int i = 0; i < s->n_blocks; i++) {
        const struct param_block *b = &s->block[i];
        const struct layout *l = &b->p.layout;
        bool family = l->factoring == EXPERT;
        int64_t sum = 0, blocks = family ? s->config->keys.n_routed_experts / s->shape.expert : 1;
        assert_int_equal(b->elements, b->p.rows * b->p.width);
        assert_int_equal(l->state[AXIS_EXPERT] == SPLIT, family);
        if (l->state[AXIS_TENSOR] != SPLIT) {
            assert_int_equal(l->n_segments, 0);
            continue;
        }
        for (int k = 0; k < l->n_segments; k++) {
            sum += l->segment[k].width;
            assert_true(l->segment[k].share >= 1);
            assert_int_equal(s->shape.tensor % l->segment[k].share, 0);
        }
        if (l->by[AXIS_TENSOR] == BY_COLUMNS) assert_int_equal(sum, b->p.width);
        else assert_int_equal(sum * blocks, b->p.rows);
    }
}

/* How many ranks must hold a number of the tensor; a shared segment is held by more. */
static void check_holders(const struct mesh_shape *m, const struct param_tensor *t,
                          unsigned char count, const int *share, int n_shares) {
    int replicas = m->data * m->context;
    bool family = strstr(t->row->name, "%e") != NULL, whole = t->row->split == WHOLE_ROW;
    if (family) assert_int_equal(count, m->expert_data);
    else if (whole) assert_int_equal(count, replicas * m->tensor);
    else {
        bool right = count == replicas;
        for (int i = 0; i < n_shares; i++) right |= count == replicas * share[i];
        if (!right) fail_msg("%s is held by %d ranks", t->name, count);
    }
}

static void one_setting(const struct setting *s) {
    const struct mesh_shape *mesh = &s->mesh;
    int share[8], n_shares = params_shares(&s->c, mesh->tensor, share), n_tensors = 0;
    float **values = values_on_one_rank(&s->c, 5);
    unsigned char **count[3] = {NULL};
    struct model m;
    for (int rank = 0; rank < mesh_ranks(mesh); rank++) {
        struct device d;
        build(&m, &d, &s->c, mesh, rank, 5);
        if (!rank) {
            n_tensors = m.params.n_tensors;
            for (int k = 0; k < 3; k++) {
                count[k] = die_alloc((n_tensors + 1) * sizeof *count[k]);
                for (int i = 0; i < n_tensors; i++)
                    count[k][i] = die_alloc(m.params.tensor[i].elements);
            }
        }
        assert_int_equal(m.params.n_tensors, n_tensors);
        add_boxes(&m.params, false, false, count[0], values);
        add_boxes(&m.params, false, true, count[1], NULL);
        add_boxes(&m.params, true, true, count[2], NULL);
        blocks_are_filled(&m.params);
        segments_add_up(&m.params);
        if (rank + 1 < mesh_ranks(mesh)) demolish(&m);
    }
    for (int i = 0; i < n_tensors; i++) {
        const struct param_tensor *t = &m.params.tensor[i];
        for (int64_t k = 0; k < t->elements; k++) {
            check_holders(mesh, t, count[0][i][k], share, n_shares);
            assert_int_equal(count[1][i][k], 1);
            assert_int_equal(count[2][i][k], !(t->row->may & BUFFER));
        }
        for (int k = 0; k < 3; k++) free(count[k][i]);
        free(values[i]);
    }
    for (int k = 0; k < 3; k++) free(count[k]);
    free(values);
    demolish(&m);
}

static void boxes_cover(void **state) {
    (void)state;
    bool shared = false, empty = false, experts = false;
    for (int i = 0; i < 60; i++) {
        struct setting s;
        any_setting(&s);
        one_setting(&s);
        int share[8], n = params_shares(&s.c, s.mesh.tensor, share);
        for (int k = 0; k < n; k++) shared |= share[k] > 1;
        empty |= s.c.keys.vocab_size < s.mesh.tensor;
        experts |= strchr(s.kinds, 'E') && s.mesh.expert > 1 && s.mesh.expert_tensor > 1;
    }
    assert_true(shared && empty && experts); /* that is: the random settings were not all plain */
}

/* ---------------------------------------------------------------- how values are drawn */

struct moments {
    double mean, std, low, high, inside; /* the last: the part within one std of zero */
};

static struct moments moments_of(const float *x, int64_t n) {
    struct moments m = {0, 0, x[0], x[0], 0};
    for (int64_t i = 0; i < n; i++) {
        m.mean += x[i] / (double)n;
        m.low = fmin(m.low, x[i]);
        m.high = fmax(m.high, x[i]);
    }
    for (int64_t i = 0; i < n; i++) m.std += pow(x[i] - m.mean, 2) / (double)n;
    m.std = sqrt(m.std);
    for (int64_t i = 0; i < n; i++) m.inside += (fabs(x[i]) < m.std) / (double)n;
    return m;
}

static void is_normal(const char *name, const float *x, int64_t n, double std) {
    struct moments m = moments_of(x, n);
    bool right = fabs(m.mean) < 5 * std / sqrt((double)n) &&
                 fabs(m.std / std - 1) < 5 / sqrt(2.0 * (double)n) &&
                 fabs(m.inside - 0.6827) < 5 * 0.47 / sqrt((double)n);
    if (!right)
        fail_msg("%s: mean %g, std %g, %g inside; want std %g", name, m.mean, m.std, m.inside, std);
}

static void is_uniform(const char *name, const float *x, int64_t n, double low, double high) {
    struct moments m = moments_of(x, n);
    double std = (high - low) / sqrt(12), edge = 20 * (high - low) / (double)n;
    bool right = m.low >= low - 1e-7 && m.high <= high + 1e-7 && m.low < low + edge &&
                 m.high > high - edge &&
                 fabs(m.mean - (low + high) / 2) < 5 * std / sqrt((double)n);
    if (!right)
        fail_msg("%s: from %g to %g, mean %g; want %g to %g", name, m.low, m.high, m.mean, low,
                 high);
}

static void is_constant(const char *name, const float *x, int64_t n, float value) {
    for (int64_t i = 0; i < n; i++)
        if (x[i] != value) fail_msg("%s[%ld]: got %g, want %g", name, (long)i, x[i], value);
}

static bool ends(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

/* Time steps, softplus of the biases: log-uniform, those below the floor lifted to it. */
static void is_time_step(const struct deck_model *k, const float *x, int64_t n) {
    double low = log(k->time_step_min), high = log(k->time_step_max), floor = k->time_step_floor;
    int64_t lifted = 0;
    double mean = 0;
    for (int64_t i = 0; i < n; i++) {
        double dt = log1p(exp(x[i])), place = (log(dt) - low) / (high - low);
        assert_true(dt > fmax(k->time_step_min, floor) * 0.9999 && dt < k->time_step_max * 1.0001);
        lifted += fabs(dt - floor) < 1e-5 * floor;
        mean += place / (double)n;
    }
    double below = fmax(0, (log(floor) - low) / (high - low)); /* the part that is lifted */
    assert_true(fabs(mean - (0.5 + below * below / 2)) < 5 * 0.29 / sqrt((double)n));
    assert_true(fabs((double)lifted / (double)n - below) < 0.1);
}

static void check_drawn(const struct config *c, const struct param_tensor *t, const float *x) {
    const struct deck_model *k = &c->keys;
    const char *name = t->name;
    bool megatron = !strcmp(k->initialization, "megatron");
    double std = k->initializer_range, root = sqrt((double)c->n_layers);
    double bound = 1 / sqrt((double)k->conv_kernel);
    int64_t n = t->elements;
    static const char *const outs[] = {"mixer.o_proj.weight", "mixer.down_proj.weight",
                                       ".down_proj.weight", "mixer.fc2_latent_proj.weight",
                                       "mixer.out_proj.weight"};
    if (ends(name, "norm.weight") || ends(name, "norm_f.weight") || ends(name, "mixer.D"))
        is_constant(name, x, n, 1);
    else if (ends(name, "conv1d.weight") && megatron) is_uniform(name, x, n, -bound, bound);
    else if (ends(name, "conv1d.weight")) is_normal(name, x, n, 0.02);
    else if (ends(name, "conv1d.bias") && megatron) is_uniform(name, x, n, -bound, bound);
    else if (ends(name, "dt_bias")) is_time_step(k, x, n);
    else if (ends(name, "bias")) is_constant(name, x, n, 0);
    else if (ends(name, "A_log") && megatron) {
        float *a = die_alloc(n * sizeof *a);
        for (int64_t i = 0; i < n; i++) a[i] = expf(x[i]);
        is_uniform(name, a, n, 1, 16);
        free(a);
    } else if (ends(name, "A_log")) {
        for (int64_t i = 0; i < n; i++) assert_true(x[i] == (float)log((double)(i + 1)));
    } else if (ends(name, "out_proj.weight") && !megatron && k->rescale_prenorm_residual) {
        bound = 1 / sqrt((double)(k->mamba_num_heads * k->mamba_head_dim)) / root;
        is_uniform(name, x, n, -bound, bound);
    } else {
        bool out = false;
        for (int i = 0; i < 5; i++) out |= ends(name, outs[i]);
        is_normal(name, x, n, out && megatron ? std / root : std);
    }
}

static void drawn_as_told(void **state) {
    (void)state;
    static char kinds[] = "M*-E";
    struct config c = {.kinds = kinds, .n_layers = 4, .mtp_kinds = ""};
    c.keys = (struct deck_model){.vocab_size = 100,
                                 .hidden_size = 48,
                                 .num_attention_heads = 8,
                                 .num_key_value_heads = 4,
                                 .head_dim = 8,
                                 .intermediate_size = 70,
                                 .mamba_num_heads = 400,
                                 .n_groups = 4,
                                 .mamba_head_dim = 2,
                                 .ssm_state_size = 8,
                                 .conv_kernel = 5,
                                 .n_routed_experts = 20,
                                 .num_experts_per_tok = 2,
                                 .moe_intermediate_size = 24,
                                 .moe_shared_expert_intermediate_size = 40,
                                 .moe_latent_size = 16,
                                 .mlp_bias = true,
                                 .use_bias = true,
                                 .use_conv_bias = true,
                                 .attention_bias = true,
                                 .initializer_range = 0.031,
                                 .time_step_min = 1e-3,
                                 .time_step_max = 0.1};
    struct model m;
    for (int way = 0; way < 6; way++) {
        c.keys.initialization = way % 2 ? "megatron" : "huggingface";
        c.keys.rescale_prenorm_residual = way < 4;
        c.keys.time_step_floor = way < 2 ? 1e-4 : 1e-2;
        float **v = values_on_one_rank(&c, 11 + (uint64_t)way),
              **w = values_on_one_rank(&c, 91 + (uint64_t)way);
        struct mesh_shape one = {1, 1, 1, 1, 1, 1, 1};
        model_init(&m, &c, &one, 0, NULL, false);
        for (int i = 0; i < m.params.n_tensors; i++) {
            const struct param_tensor *t = &m.params.tensor[i];
            check_drawn(&c, t, v[i]);
            bool drawn = moments_of(v[i], t->elements).std > 1e-6 && !ends(t->name, "A_log");
            if (drawn) assert_memory_not_equal(v[i], w[i], t->elements * sizeof(float));
            for (int j = 0; drawn && j < i; j++) /* every tensor its own numbers */
                if (m.params.tensor[j].elements == t->elements)
                    assert_memory_not_equal(v[i], v[j], t->elements * sizeof(float));
        }
        for (int i = 0; i < m.params.n_tensors; i++) free(v[i]), free(w[i]);
        free(v);
        free(w);
        model_free(&m);
    }
}

/* The generator itself: in range, without a visible dependence of neighbours. */
static void random_numbers(void **state) {
    (void)state;
    enum { N = 20000 };
    uint64_t stream = random_stream(1234, "backbone.embeddings.weight");
    static double x[N];
    double mean = 0, next = 0, across = 0;
    for (int i = 0; i < N; i++) {
        double u = random_uniform(stream, (uint64_t)i);
        assert_true(u > 0 && u < 1);
        x[i] = random_normal(stream, (uint64_t)i);
        mean += x[i] / N;
        if (i) next += x[i] * x[i - 1] / N;
        across += x[i] * random_normal(random_stream(1235, "backbone.embeddings.weight"), i) / N;
    }
    assert_true(fabs(mean) < 0.04 && fabs(next) < 0.04 && fabs(across) < 0.04);
    assert_true(random_stream(1, "ab") != random_stream(1, "ba"));
    assert_true(random_stream(1, "ab") != random_stream(2, "ab"));
}

/* ---------------------------------------------------------------- the released models */

struct released {
    const char *name;
    int64_t parameters, mtp;
    int tensors;
    const char *active, *active_with_table; /* in 1e9, as published; NULL: not known */
};

static const struct released released[] = {
    {"h-4b", 4489223040, 0, 0, NULL, NULL},
    {"h-8b", 8100852736, 0, 0, NULL, NULL},
    {"h-47b", 46791554816, 0, 0, NULL, NULL},
    {"h-56b", 56324350464, 0, 0, NULL, NULL},
    {"nano-9b-v2", 8888227328, 0, 0, NULL, NULL},
    {"nano-12b-v2", 12310001152, 0, 0, NULL, NULL},
    {"nano-4b", 3973556832, 0, 263, NULL, NULL},
    {"nano-30b", 31577940288, 0, 6243, "3.228", "3.580"},
    {"lightning-30b", 31577940288, 1335325952, 6513, "3.228", "3.580"},
    {"super-120b", 120668707840, 2942325248, 42683, "12.233", "12.770"},
    {"ultra-550b", 549308993536, 11215610368, 51023, "54.985", "56.059"},
};

static void settle_preset(struct deck *d, struct config *c, const char *name) {
    char path[300], text[100];
    struct mistakes m = {0};
    int n = snprintf(text, sizeof text, "model:\n  preset: %s\n", name);
    place_file(path, sizeof path, "params", text, (size_t)n);
    deck_read(d, path, 0, NULL, &m);
    config_settle(c, d, &m);
    unlink(path);
    mistakes_print(&m, stderr);
    assert_int_equal(m.n, 0);
}

/* As many tensors as the letters say: M 9, * 5, - 3, E two an expert, and 5 or 7. */
static int tensors_of(const struct config *c, const char *kinds) {
    int n = 0, latent = c->keys.moe_latent_size ? 2 : 0;
    for (; *kinds; kinds++)
        n += *kinds == 'M'   ? 9
             : *kinds == '*' ? 5
             : *kinds == '-' ? 3
                             : 2 * (int)c->keys.n_routed_experts + 5 + latent;
    return n;
}

static void published_counts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof released / sizeof *released; i++) {
        const struct released *r = &released[i];
        struct deck d;
        struct config c = {0};
        struct model m;
        struct timespec a, b;
        char text[32];
        settle_preset(&d, &c, r->name);
        struct mesh_shape one = {1, 1, 1, 1, 1, 1, 1};
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        model_init(&m, &c, &one, 0, NULL, false);
        struct param_counts n = params_count(&m.params);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        double took = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
        if (took > 0.5) fail_msg("%s is built in %.2f s", r->name, took);
        assert_int_equal(n.all, r->parameters + r->mtp);
        assert_int_equal(n.mtp, r->mtp);
        int tensors = tensors_of(&c, c.kinds) + tensors_of(&c, c.mtp_kinds) + 3;
        if (*c.mtp_kinds) tensors += 4 * (int)c.keys.num_nextn_predict_layers;
        assert_int_equal(n.tensors, tensors);
        if (r->tensors) assert_int_equal(n.tensors, r->tensors);
        if (r->active) {
            snprintf(text, sizeof text, "%.3f", 1e-9 * (double)n.active);
            assert_string_equal(text, r->active);
            snprintf(text, sizeof text, "%.3f", 1e-9 * (double)(n.active + n.embedding));
            assert_string_equal(text, r->active_with_table);
        }
        model_free(&m);
        config_free(&c);
        deck_free(&d);
    }
}

/* A preset is the same sum of tensors on whatever rank of a mesh looks, and the ranks hold it all.
 */
static void preset_on_a_mesh(void **state) {
    (void)state;
    struct deck d;
    struct config c = {0};
    struct model m;
    settle_preset(&d, &c, "nano-30b");
    const struct mesh_shape mesh = {1, 2, 1, 16, 4, 2, 4}; /* 2 KV heads, 8 groups on 16 ranks */
    int64_t owned = 0;
    for (int rank = 0; rank < mesh_ranks(&mesh); rank++) {
        int n;
        model_init(&m, &c, &mesh, rank, NULL, false);
        assert_int_equal(params_count(&m.params).all, released[7].parameters);
        for (int i = 0; i < m.params.n_blocks; i++) /* addresses that nobody follows */
            m.params.block[i].p.value = m.params.block[i].p.grad = (void *)(uintptr_t)4096;
        struct box *boxes = params_boxes(&m.params, F32, false, true, &n);
        for (int i = 0; i < n; i++) owned += boxes[i].rows * boxes[i].columns;
        free(boxes);
        model_free(&m);
    }
    assert_int_equal(owned, released[7].parameters);
    config_free(&c);
    deck_free(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boxes_cover),      cmocka_unit_test(drawn_as_told),
        cmocka_unit_test(random_numbers),   cmocka_unit_test(published_counts),
        cmocka_unit_test(preset_on_a_mesh),
    };
    omp_set_num_threads(1); /* the tensors are tiny */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
