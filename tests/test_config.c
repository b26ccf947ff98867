/* Configurations: every spelling of config.json, what is refused, presets, and the way back. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config.h"
#include "src/config_json.h"
#include "src/pattern.h"
#include "src/presets.h"
#include "tests/place.h"

static char folder[256];

static void put(const char *name, const char *text, size_t n) {
    char *path = die_format("%s/%s", folder, name);
    place_put(path, text, n);
    free(path);
}

struct settled {
    struct deck d;
    struct config c;
    struct mistakes m;
};

/* Settles a deck's text; {} in it stands for the folder. */
static void settle(struct settled *s, const char *deck, int n, char **overrides) {
    *s = (struct settled){0};
    const char *here = strstr(deck, "{}");
    char *text = here ? die_format("%.*s%s%s", (int)(here - deck), deck, folder, here + 2)
                      : die_strdup(deck);
    char *path = die_format("%s/deck.yaml", folder);
    put("deck.yaml", text, strlen(text));
    deck_read(&s->d, path, n, overrides, &s->m);
    config_settle(&s->c, &s->d, &s->m);
    free(text);
    free(path);
}

/* The same for a config.json, with a deck that has model.from only. */
static void load(struct settled *s, const char *json, int n, char **overrides) {
    put("config.json", json, strlen(json));
    settle(s, "model:\n  from: {}\n", n, overrides);
}

static void done(struct settled *s) {
    mistakes_free(&s->m);
    config_free(&s->c);
    deck_free(&s->d);
}

static void fine(const struct settled *s) {
    mistakes_print(&s->m, stderr);
    assert_int_equal(s->m.n, 0);
}

/* Exactly these mistakes, each a part of one told. */
static void refused(const char *json, int n, const char *const *parts) {
    struct settled s;
    load(&s, json, 0, NULL);
    if (s.m.n != n) mistakes_print(&s.m, stderr);
    assert_int_equal(s.m.n, n);
    for (int i = 0; i < n; i++) {
        int j = 0;
        while (j < n && !strstr(s.m.text[j], parts[i])) j++;
        if (j == n) fprintf(stderr, "not told: %s\n", parts[i]), mistakes_print(&s.m, stderr);
        assert_true(j < n);
    }
    done(&s);
}
#define REFUSED(json, ...)                                                                         \
    refused(json, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *),                     \
            (const char *const[]){__VA_ARGS__})

#define HEAD "{\"model_type\": \"nemotron_h\", "

/* ---------------------------------------------------------------- spellings */

static void spellings(void **state) {
    (void)state;
    static const char *const same[] = {
        HEAD "\"layers_block_type\": [\"linear_attention\", \"moe\", \"full_attention\", \"mlp\"]}",
        HEAD
        "\"layer_types\": [\"mamba\", \"moe\", \"attention\", \"mlp\"], \"num_hidden_layers\": 4}",
        HEAD "\"hybrid_override_pattern\": \"ME*-\", \"num_hidden_layers\": 4, "
             "\"layers_block_type\": null}",
        HEAD "\"hybrid_override_pattern\": \"ME*-\", \"layers_block_type\": [\"mamba\", \"moe\", "
             "\"attention\", \"mlp\"]}",
        HEAD "\"hidden_size\": 4096}",
    };
    for (unsigned i = 0; i < sizeof same / sizeof *same; i++) {
        struct settled s;
        load(&s, same[i], 0, NULL);
        fine(&s);
        assert_string_equal(s.c.kinds, "ME*-");
        assert_int_equal(s.c.n_layers, 4);
        assert_int_equal(s.c.keys.num_hidden_layers, 4);
        assert_string_equal(s.c.keys.hybrid_override_pattern, "ME*-");
        assert_int_equal(config_count(&s.c, 'E'), 1);
        assert_int_equal(s.c.n_mtp, 0);
        assert_string_equal(s.c.mtp_kinds, "");
        done(&s);
    }
}

static void older_names(void **state) {
    (void)state;
    struct settled s;
    load(&s,
         HEAD "\"mamba_n_groups\": 2, \"mamba_d_conv\": 3, \"mamba_expand\": 4, \"mamba_dt_min\": "
              "0.01, \"mamba_dt_max\": 0.2,"
              "\"mamba_dt_limit\": [0.5, 2.0], \"mamba_dt_init_floor\": 0.002, "
              "\"mamba_conv_bias\": false, \"mamba_chunk_size\": 32,"
              "\"attention_head_dim\": 64, \"num_local_experts\": 16, \"num_key_value_heads\": "
              "null, \"num_attention_heads\": 12,"
              "\"moe_latent_size\": null, \"sliding_window\": null, \"rope_theta\": 10000, "
              "\"norm_eps\": 1e-6, \"n_shared_experts\": 1}",
         0, NULL);
    fine(&s);
    const struct deck_model *k = &s.c.keys;
    assert_int_equal(k->n_groups, 2);
    assert_int_equal(k->conv_kernel, 3);
    assert_true(k->time_step_min == 0.01 && k->time_step_max == 0.2 && k->time_step_floor == 0.002);
    assert_true(s.c.dt_min == 0.5 && s.c.dt_max == 2);
    assert_false(k->use_conv_bias);
    assert_int_equal(k->chunk_size, 32);
    assert_int_equal(k->head_dim, 64);
    assert_int_equal(k->n_routed_experts, 16);
    assert_int_equal(k->num_key_value_heads, 12);
    assert_int_equal(k->moe_latent_size, 0);
    assert_true(k->layer_norm_epsilon == 1e-5);
    assert_int_equal(s.c.n_unused, 4); /* mamba_expand, rope_theta, norm_eps, n_shared_experts */
    done(&s);
}

static void infinities(void **state) {
    (void)state;
    static const char *const none[] = {
        HEAD "\"time_step_limit\": [0.0, Infinity]}",
        HEAD "\"time_step_limit\": [0, {\"__float__\": \"Infinity\"}]}",
        HEAD "\"time_step_limit\": null}",
        HEAD "\"a\": \"NaN Infinity \\\" -Infinity\", \"b\": [NaN, -Infinity]}"};
    for (int i = 0; i < 4; i++) {
        struct settled s;
        load(&s, none[i], 0, NULL);
        fine(&s);
        assert_true(s.c.dt_min == 0 && isinf(s.c.dt_max));
        assert_int_equal(s.c.keys.time_step_limit.n, 0);
        if (i == 3)
            assert_string_equal(json_string_value(json_object_get(s.c.kept, "a")),
                                "NaN Infinity \" -Infinity");
        done(&s);
    }
    struct settled s;
    load(&s, HEAD "\"time_step_limit\": [0.001, Infinity]}", 0, NULL);
    fine(&s);
    assert_true(s.c.dt_min == 0.001 && isinf(s.c.dt_max));
    done(&s);
}

static void dense(void **state) {
    (void)state;
    struct settled s;
    load(&s,
         HEAD "\"hybrid_override_pattern\": \"M-M*\", \"n_routed_experts\": null, "
              "\"num_experts_per_tok\": null, \"n_group\": null,"
              "\"moe_intermediate_size\": null, \"routed_scaling_factor\": null}",
         0, NULL);
    fine(&s);
    done(&s);
}

static void prediction(void **state) {
    (void)state;
    struct settled s;
    load(&s, HEAD "\"num_nextn_predict_layers\": 2, \"mtp_hybrid_override_pattern\": \"*EM\"}", 0,
         NULL);
    fine(&s);
    assert_string_equal(s.c.mtp_kinds, "*EM*EM");
    assert_int_equal(s.c.n_mtp, 6);
    done(&s);
    load(&s,
         HEAD "\"num_nextn_predict_layers\": 1, \"mtp_layers_block_type\": [\"full_attention\", "
              "\"moe\"], \"mtp_hybrid_override_pattern\": \"M\"}",
         0, NULL);
    fine(&s);
    assert_string_equal(s.c.mtp_kinds, "M");
    done(&s);
    load(&s,
         HEAD "\"num_nextn_predict_layers\": 1, \"mtp_layers_block_type\": [\"mlp\"], "
              "\"mtp_hybrid_override_pattern\": \"M\"}",
         0, NULL);
    fine(&s);
    assert_string_equal(s.c.mtp_kinds, "-");
    done(&s);
}

/* ---------------------------------------------------------------- refused */

static void bad_files(void **state) {
    (void)state;
    REFUSED("", "config.json");
    REFUSED("{", "is not JSON");
    REFUSED("[]", "is a list, not an object");
    REFUSED("{\"hidden_size\": 1}", "has no model_type");
    REFUSED("{\"model_type\": \"llama\"}", "model_type: 'llama' is not built");
    REFUSED("{\"model_type\": \"nemotron_h_omni\",\n\"text_config\": {}}",
            "config.json:2: text_config: this model has a language model among other parts");
    REFUSED("{\"model_type\": \"nemotron_h_puzzle\"}", "nemotron_h_puzzle");
    REFUSED(HEAD "\"quantization_config\": {}}", "quantised checkpoints are not built");
    REFUSED(HEAD "\"a\": 1, \"a\": 2}", "duplicate");
    REFUSED(HEAD "\"a\": 1e999}", "is not JSON");
    REFUSED(HEAD "\"hidden_size\": Infinity}",
            "hidden_size: is NaN or infinite, not a whole number");
}

static void bad_values(void **state) {
    (void)state;
    REFUSED(HEAD "\"hidden_size\": 64.0,\n\"n_groups\": \"8\",\n\"norm_topk_prob\": "
                 "1,\n\"layer_norm_epsilon\": true,\n\"mlp_hidden_act\": 3}",
            "config.json:1: hidden_size: is a number with a point, not a whole number",
            "config.json:2: n_groups: is text",
            "config.json:3: norm_topk_prob: is a whole number, not true or false",
            "config.json:4: layer_norm_epsilon: is true, not a number",
            "config.json:5: mlp_hidden_act: is a whole number, not text");
    REFUSED(HEAD "\"hidden_size\": -1,\n\"vocab_size\": 99999999999}",
            "hidden_size: -1 is outside 1 to", "config.json:2: vocab_size: 99999999999 is outside");
    REFUSED(HEAD "\"hidden_size\": null,\n\"head_dim\": null}", "hidden_size: is null",
            "config.json:2: head_dim: is null");
    REFUSED(HEAD "\"n_group\": null}", "n_group: is null, but the model needs it");
    REFUSED(HEAD "\"n_routed_experts\": null}", "n_routed_experts: 0, but the pattern has experts");
    REFUSED(HEAD "\"mlp_hidden_act\": \"silu\"}",
            "mlp_hidden_act: 'silu' is not built; there is only relu2");
    REFUSED(HEAD
            "\"sliding_window\": 4096, \"residual_in_fp32\": true, \"attention_dropout\": 0.1}",
            "sliding_window: only 0", "residual_in_fp32: only false", "attention_dropout: only 0");
    REFUSED(HEAD "\"time_step_limit\": [0.0]}", "time_step_limit: is not a list of two numbers");
    REFUSED(HEAD "\"time_step_limit\": [0.0, \"inf\"]}",
            "time_step_limit: is not a list of two numbers");
    REFUSED(HEAD "\"time_step_limit\": [2.0, 1.0]}", "time_step_limit: low 2 is above high 1");
    REFUSED(HEAD "\"mamba_n_groups\": 2,\n\"n_groups\": 4}",
            "config.json:2: n_groups: mamba_n_groups, another name of it, has another value");
    REFUSED(HEAD "\"num_attention_heads\": 10, \"num_key_value_heads\": 4}",
            "num_key_value_heads: 4 does not divide num_attention_heads, 10; 5 would");
    REFUSED(HEAD "\"n_routed_experts\": 4, \"n_group\": 4}",
            "n_group: 4 leaves groups of one expert");
    REFUSED(HEAD "\"n_routed_experts\": 4, \"topk_group\": 2, \"num_experts_per_tok\": 1}",
            "topk_group: 2 is above n_group, 1");
}

static void bad_patterns(void **state) {
    (void)state;
    REFUSED(HEAD "\"hybrid_override_pattern\": \"M*X\"}",
            "hybrid_override_pattern: position 3: X is no layer");
    REFUSED(HEAD "\"hybrid_override_pattern\": \"M|*\"}",
            "position 2: | marks the stages of a pipeline");
    REFUSED(HEAD "\"hybrid_override_pattern\": \"M/*E\"}",
            "position 2: / begins multi-token prediction");
    REFUSED(HEAD "\"hybrid_override_pattern\": \"\"}", "has no layers");
    REFUSED(HEAD "\"hybrid_override_pattern\": 3}", "hybrid_override_pattern");
    REFUSED(HEAD "\"layers_block_type\": []}", "layers_block_type: has no layers");
    REFUSED(HEAD "\"layers_block_type\": [1]}", "layers_block_type: entry 1 is not text");
    REFUSED(HEAD "\"layers_block_type\": \"M\"}", "layers_block_type: is text, not a list");
    REFUSED(HEAD "\"layers_block_type\": [\"mamba\", \"mamba2\"]}",
            "entry 2: 'mamba2' is no layer; did you mean mamba?");
    REFUSED(HEAD "\"hybrid_override_pattern\": \"M*\", \"num_hidden_layers\": 3}",
            "num_hidden_layers: 3, but the pattern has 2 layers");
    REFUSED(HEAD "\"hybrid_override_pattern\": \"M*\", \"layers_block_type\": [\"mlp\"]}",
            "says other layers than layers_block_type");
    REFUSED(HEAD "\"num_nextn_predict_layers\": 1, \"mtp_hybrid_override_pattern\": \"*E/\"}",
            "mtp_hybrid_override_pattern: position 3");
}

/* ---------------------------------------------------------------- decks on top, and back */

static void overridden(void **state) {
    (void)state;
    struct settled s;
    char *given[] = {"model.hidden_size=64", "model.hybrid_override_pattern=M*",
                     "model.num_attention_heads=4", "model.chunk_size=16"};
    load(&s,
         HEAD "\"extra\": {\"deep\": [1, 2.5, Infinity]}, \"layer_types\": [\"mamba\", \"mlp\", "
              "\"attention\"], \"num_hidden_layers\": 3,"
              "\"hidden_size\": \"wrong but overridden\", \"num_key_value_heads\": null, "
              "\"mamba_chunk_size\": 32, \"torch_dtype\": \"bfloat16\"}",
         4, given);
    fine(&s);
    assert_string_equal(s.c.kinds, "M*");
    assert_int_equal(s.c.keys.num_key_value_heads, 4);
    assert_int_equal(s.c.keys.num_hidden_layers, 2);
    s.c.dtype = "float32";
    json_t *back = config_json(&s.c);
    assert_int_equal(json_integer_value(json_object_get(back, "hidden_size")), 64);
    assert_int_equal(json_integer_value(json_object_get(back, "num_hidden_layers")), 2);
    assert_int_equal(json_integer_value(json_object_get(back, "num_attention_heads")), 4);
    assert_int_equal(json_integer_value(json_object_get(back, "mamba_chunk_size")), 16);
    assert_true(json_is_null(json_object_get(back, "num_key_value_heads")));
    assert_int_equal(json_array_size(json_object_get(back, "layer_types")), 2);
    assert_null(json_object_get(back, "layers_block_type"));
    assert_null(json_object_get(back, "chunk_size"));
    assert_string_equal(json_string_value(json_object_get(back, "torch_dtype")), "float32");
    assert_true(json_equal(json_object_get(back, "extra"), json_object_get(s.c.kept, "extra")));
    json_decref(back);
    done(&s);
}

/* What is read and not changed is written as it was. */
static void unchanged(void **state) {
    (void)state;
    static const char json[] =
        HEAD "\"dtype\": \"bfloat16\", \"layers_block_type\": [\"mamba\", \"moe\", \"attention\"], "
             "\"num_hidden_layers\": 3, \"extra\": 0.1,"
             "\"n_routed_experts\": 8, \"moe_latent_size\": null, \"intermediate_size\": null, "
             "\"time_step_limit\": [0, Infinity], \"rope_theta\": 1e4}";
    struct settled s;
    load(&s, json, 0, NULL);
    fine(&s);
    json_t *back = config_json(&s.c);
    assert_true(json_equal(back, s.c.kept));
    json_decref(back);
    char *text = config_text(&s.c);
    assert_non_null(strstr(text, "\"extra\": 0.1,"));
    free(text);
    done(&s);
}

/* A new model's config.json, read again, is the same model; for every preset. */
static void presets(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int n[4]; /* M * - E */
    } want[] = {
        {"h-4b", {24, 4, 24, 0}},          {"h-8b", {24, 4, 24, 0}},
        {"h-47b", {45, 5, 48, 0}},         {"h-56b", {54, 10, 54, 0}},
        {"nano-9b-v2", {27, 4, 25, 0}},    {"nano-12b-v2", {28, 6, 28, 0}},
        {"nano-4b", {21, 4, 17, 0}},       {"nano-30b", {23, 6, 0, 23}},
        {"lightning-30b", {23, 6, 0, 23}}, {"super-120b", {40, 8, 0, 40}},
        {"ultra-550b", {48, 12, 0, 48}},   {"tiny", {2, 1, 1, 2}},
        {"debug", {6, 3, 3, 4}},
    };
    const char *const *names;
    assert_int_equal(preset_names(&names), sizeof want / sizeof *want);
    for (unsigned i = 0; i < sizeof want / sizeof *want; i++) {
        struct settled s, t;
        char *deck = die_format("model:\n  preset: %s\n", want[i].name);
        settle(&s, deck, 0, NULL);
        fine(&s);
        for (int k = 0; k < 4; k++) assert_int_equal(config_count(&s.c, "M*-E"[k]), want[i].n[k]);
        char *text = config_text(&s.c), *text2;
        load(&t, text, 0, NULL);
        fine(&t);
        assert_string_equal(s.c.kinds, t.c.kinds);
        assert_string_equal(s.c.mtp_kinds, t.c.mtp_kinds);
        /* ids of special tokens, use_cache, n_shared_experts */
        assert_int_equal(t.c.n_unused, 4 + (strchr(t.c.kinds, 'E') != NULL));
        for (int row = 0;; row++) {
            const char *name;
            char type;
            void *a, *b;
            if (!deck_row(&s.d, "model", row, &name, &type, &a)) break;
            deck_row(&t.d, "model", row, &name, &type, &b);
            if (type == 'i') assert_int_equal(*(int64_t *)a, *(int64_t *)b);
            if (type == 'r') assert_true(*(double *)a == *(double *)b);
            if (type == 'b') assert_true(*(bool *)a == *(bool *)b);
        }
        assert_string_equal(text, text2 = config_text(&t.c));
        free(text);
        free(text2);
        free(deck);
        done(&s);
        done(&t);
    }
}

static void dialects(void **state) {
    (void)state;
    struct settled s;
    settle(&s,
           "model:\n  pattern_dialect: torchtitan\n  hybrid_override_pattern: \"M * E O\"\n  "
           "mtp_hybrid_override_pattern: \"*O\"\n  num_nextn_predict_layers: 1\n",
           0, NULL);
    fine(&s);
    assert_string_equal(s.c.kinds, "M*-E");
    assert_string_equal(s.c.mtp_kinds, "*E");
    assert_string_equal(s.d.model.hybrid_override_pattern, "M*-E");
    assert_string_equal(s.d.model.pattern_dialect, "hf");
    done(&s);
    settle(&s,
           "model:\n  layers_block_type: [mamba, attention, mlp, moe]\n  num_hidden_layers: 4\n", 0,
           NULL);
    fine(&s);
    assert_string_equal(s.c.kinds, "M*-E");
    done(&s);
    settle(&s, "model:\n  preset: nano-30b\n  layers_block_type: [mamba, moe]\n", 0, NULL);
    fine(&s);
    assert_string_equal(s.c.kinds, "ME");
    assert_int_equal(s.c.keys.hidden_size, 2688);
    done(&s);
}

/* A run's output folder stands for its newest checkpoint. */
static void run_folder(void **state) {
    (void)state;
    char *command = die_format("mkdir -p %s/run/checkpoints/step-00000007", folder);
    assert_int_equal(system(command), 0);
    free(command);
    static const char json[] = HEAD "\"hybrid_override_pattern\": \"M*\"}";
    put("run/checkpoints/step-00000007/config.json", json, sizeof json - 1);
    put("run/checkpoints/latest", "step-00000007\n", 14);
    struct settled s;
    settle(&s, "model:\n  from: {}/run/\n", 0, NULL);
    fine(&s);
    assert_non_null(strstr(s.c.folder, "/run/checkpoints/step-00000007"));
    assert_string_equal(s.c.kinds, "M*");
    done(&s);
    put("run/checkpoints/latest", "../../x\n", 8);
    settle(&s, "model:\n  from: {}/run\n", 0, NULL);
    assert_int_equal(s.m.n, 1);
    assert_non_null(strstr(s.m.text[0], "does not name a checkpoint"));
    done(&s);
    settle(&s, "model:\n  from: {}/deck.yaml\n", 0, NULL);
    assert_non_null(strstr(s.m.text[0], "is a file; give the folder"));
    done(&s);
}

/* ---------------------------------------------------------------- mutations */

static uint32_t next(uint32_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

static void mutations(void **state) {
    (void)state;
    static const char seed_text[] =
        HEAD "\"layers_block_type\": [\"mamba\", \"moe\", \"attention\", \"mlp\"], "
             "\"num_hidden_layers\": 4, \"hidden_size\": 64,"
             "\"time_step_limit\": [0.0, Infinity], \"num_key_value_heads\": null, \"n_group\": 2, "
             "\"mlp_hidden_act\": \"relu2\","
             "\"mtp_hybrid_override_pattern\": \"*E\", \"num_nextn_predict_layers\": 1, \"x\": "
             "{\"y\": [NaN]}, \"norm_topk_prob\": true}";
    static const char signs[] = "{}[]\",:0123.-eE\\nulltrueIN \n\xff";
    char text[2 * sizeof seed_text];
    uint32_t x = 4711;
    for (int i = 0; i < 3000; i++) {
        size_t n = sizeof seed_text - 1;
        memcpy(text, seed_text, n);
        for (uint32_t k = 0; k < 1 + next(&x) % 3; k++) {
            size_t at = sizeof HEAD - 1 + next(&x) % (n - sizeof HEAD + 1);
            char sign = signs[next(&x) % (sizeof signs - 1)];
            if (next(&x) % 2) text[at] = sign;
            else memmove(text + at, text + at + 1, n-- - at - 1);
        }
        put("config.json", text, n);
        struct settled s;
        settle(&s, "model:\n  from: {}\n", 0, NULL);
        if (!s.m.n) free(config_text(&s.c));
        done(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spellings),  cmocka_unit_test(older_names),  cmocka_unit_test(infinities),
        cmocka_unit_test(dense),      cmocka_unit_test(prediction),   cmocka_unit_test(bad_files),
        cmocka_unit_test(bad_values), cmocka_unit_test(bad_patterns), cmocka_unit_test(overridden),
        cmocka_unit_test(unchanged),  cmocka_unit_test(presets),      cmocka_unit_test(dialects),
        cmocka_unit_test(run_folder), cmocka_unit_test(mutations),
    };
    place_make(folder, sizeof folder, "config");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    folder_remove(folder);
    return failed != 0;
}
