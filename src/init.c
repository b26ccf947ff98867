#include "src/init.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

/* The mixing function of splitmix64 (Steele, Lea and Flood 2014): a bijection that passes as
 * random. */
static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t random_stream(uint64_t seed, const char *name) {
    uint64_t h = mix(seed + 0x9e3779b97f4a7c15u);
    for (; *name; name++) h = mix(h ^ (unsigned char)*name);
    return h;
}

double random_uniform(uint64_t stream, uint64_t i) {
    return ((double)(mix(stream + (i + 1) * 0x9e3779b97f4a7c15u) >> 12) + 0.5) / 4503599627370496.0;
}

double random_normal(uint64_t stream, uint64_t i) {
    double radius = sqrt(-2 * log(random_uniform(stream, 2 * i)));
    return radius * cos(2 * M_PI * random_uniform(stream, 2 * i + 1));
}

struct drawing {
    const struct config *config;
    enum init init;
    bool megatron;
    double std, bound, shrink; /* of normals, of uniforms; factor on output sides */
};

static struct drawing drawing_of(const struct config *c, enum init init) {
    struct drawing g = {.config = c, .init = init, .shrink = 1};
    const struct deck_model *k = &c->keys;
    g.megatron = !strcmp(k->initialization, "megatron");
    double layers = c->n_layers > 0 ? c->n_layers : 1;
    g.std = k->initializer_range;
    g.bound = 1 / sqrt((double)k->conv_kernel);
    bool out = init == INIT_MAMBA_OUT, rescaled = out && !g.megatron && k->rescale_prenorm_residual;
    if (g.megatron && (out || init == INIT_RESIDUAL)) g.shrink = 1 / sqrt(layers);
    if (rescaled) {
        g.bound = 1 / sqrt((double)dim_size(c, INNER));
        g.shrink = 1 / sqrt(layers);
    } else if (out) {
        g.init = INIT_NORMAL;
    }
    if (init == INIT_CONV && !g.megatron) g.std = 0.02;
    return g;
}

static double uniform_between(uint64_t stream, uint64_t i, double low, double high) {
    return low + (high - low) * random_uniform(stream, i);
}

static double draw(const struct drawing *g, uint64_t stream, uint64_t i) {
    const struct deck_model *k = &g->config->keys;
    switch (g->init) {
    case INIT_NORMAL:
    case INIT_RESIDUAL: return g->shrink * g->std * random_normal(stream, i);
    case INIT_MAMBA_OUT: return g->shrink * uniform_between(stream, i, -g->bound, g->bound);
    case INIT_CONV:
        return g->megatron ? uniform_between(stream, i, -g->bound, g->bound)
                           : g->std * random_normal(stream, i);
    case INIT_CONV_BIAS: return g->megatron ? uniform_between(stream, i, -g->bound, g->bound) : 0;
    case INIT_A_LOG: return log(g->megatron ? uniform_between(stream, i, 1, 16) : (double)(i + 1));
    case INIT_DT_BIAS: { /* softplus(dt_bias) = dt, dt log-uniform */
        double dt = exp(uniform_between(stream, i, log(k->time_step_min), log(k->time_step_max)));
        if (dt < k->time_step_floor) dt = k->time_step_floor;
        return dt + log(-expm1(-dt));
    }
    case INIT_ONE: return 1;
    case INIT_ZERO: return 0;
    }
    bug("unknown initialiser");
}

void init_parameters(struct params *s, struct device *d, enum dtype real, uint64_t seed) {
    if (d->dry) return;
    int n;
    struct box *boxes = params_boxes(s, real, PART_VALUES, false, &n);
    boxes_to_host(d, n, boxes);
    for (int b = 0; b < n; b++) {
        const struct box *x = &boxes[b];
        const struct param_tensor *t = &s->tensor[x->tensor];
        struct drawing g = drawing_of(s->config, t->row->init);
        uint64_t stream = random_stream(seed, t->name);
#pragma omp parallel for num_threads(d->threads) if (x->rows * x->columns > 10000)
        for (int64_t r = 0; r < x->rows; r++)
            for (int64_t c = 0; c < x->columns; c++) {
                /* Rounded to float first, so that a run in double starts from the same weights. */
                float v =
                    (float)draw(&g, stream, (uint64_t)((x->row + r) * x->width + x->column + c));
                dtype_convert((char *)x->memory +
                                  (size_t)(r * x->stride + c) * dtype_size(x->dtype),
                              x->dtype, &v, F32, 1);
            }
    }
    free(boxes);
}
