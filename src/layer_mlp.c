/* mlp: y = down(relu(up(norm(x)))^2), one '-' of the pattern. */
#include "kernels/die.h"
#include "parallel/tensor_parallel.h"
#include "src/layer.h"

enum { NORM, UP, UP_BIAS, DOWN, DOWN_BIAS };
/* clang-format off */
static const struct param_row rows[] = {
    /* name                    shape          split      segments       begins         may be                     when           block  meaning */
    {"norm.weight",            {HIDDEN},      WHOLE_ROW, {{0}},         INIT_ONE,      0,                         ALWAYS,        NULL, "scale before the block"},
    {"mixer.up_proj.weight",   {FFN, HIDDEN}, ROWS,      {{FFN, NONE}}, INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED,  ALWAYS,        NULL, "widens"},
    {"mixer.up_proj.bias",     {FFN},         ROWS,      {{FFN, NONE}}, INIT_ZERO,     0,                         WITH_MLP_BIAS, NULL, "bias of up"},
    {"mixer.down_proj.weight", {HIDDEN, FFN}, COLUMNS,   {{FFN, NONE}}, INIT_RESIDUAL, DECAY|QUANT|ADAPT|STORED,  ALWAYS,        NULL, "returns to the stream"},
    {"mixer.down_proj.bias",   {HIDDEN},      WHOLE_ROW, {{0}},         INIT_ZERO,     0,                         WITH_MLP_BIAS, NULL, "bias of down"},
};
/* clang-format on */

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct batch *b = &l->pass->batch;
    struct tensor *h = rms_norm(t, x, l->p[NORM], l->config->keys.layer_norm_epsilon);
    h = tensor_enter(t, h,
                     b->rows * b->length); /* [tokens, hidden], the same on every tensor rank */
    struct tensor *u = add_after(t, linear(t, h, l->p[UP]), l->p[UP_BIAS]);
    tensor_drop(t, h);
    struct tensor *a = relu2(t, u); /* [tokens, ffn/T] */
    tensor_drop(t, u);
    struct tensor *y = tensor_leave(t, linear(t, a, l->p[DOWN])); /* partial sums added */
    return add_after(t, y, l->p[DOWN_BIAS]);
}

static char *describe(const struct deck_model *k) {
    return die_format("%ld wide", (long)k->intermediate_size);
}

const struct layer_kind layer_mlp = {
    .letter = '-',
    .name = "mlp",
    .describe = describe,
    .rows = rows,
    .n_rows = sizeof rows / sizeof *rows,
    .forward = forward,
};
