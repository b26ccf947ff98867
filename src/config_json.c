#include "src/config_json.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config.h"
#include "src/deck_table.h"
#include "src/pattern.h"

enum { LARGEST = 16 << 20, MOST_LATEST = 4096 };

/* Keys of the deck's model section that are ours and mean nothing in a config.json. */
static const char *const ours[] = {"preset",          "from",      "initialization",
                                   "pattern_dialect", "tokenizer", "position_embedding"};

/* Other names that configurations have used for a key. */
static const struct {
    const char *other, *key;
} aliases[] = {
    {"layer_types", "layers_block_type"},
    {"num_local_experts", "n_routed_experts"},
    {"attention_head_dim", "head_dim"},
    {"mamba_n_groups", "n_groups"},
    {"mamba_d_conv", "conv_kernel"},
    {"mamba_dt_min", "time_step_min"},
    {"mamba_dt_max", "time_step_max"},
    {"mamba_dt_limit", "time_step_limit"},
    {"mamba_dt_init_floor", "time_step_floor"},
    {"mamba_conv_bias", "use_conv_bias"},
    {"mamba_chunk_size", "chunk_size"},
};
enum { ALIASES = sizeof aliases / sizeof *aliases };

/* Keys that say what a folder is rather than what the model computes; not worth a line in the log.
 * */
static const char *const housekeeping[] = {"model_type",  "architectures",        "dtype",
                                           "torch_dtype", "transformers_version", "_name_or_path",
                                           "auto_map",    "mestar_tokenizer"};

static bool among(const char *word, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(word, list[i])) return true;
    return false;
}
#define AMONG(word, list) among(word, list, sizeof(list) / sizeof *(list))

static const char *canonical(const char *name) {
    for (int i = 0; i < ALIASES; i++)
        if (!strcmp(name, aliases[i].other)) return aliases[i].key;
    return name;
}

int config_json_row(const char *name) {
    const char *key = canonical(name);
    return AMONG(key, ours) ? -1 : deck_table_find("model", key);
}

const char *config_json_name(const json_t *root, const char *key) {
    for (int i = 0; i < ALIASES; i++)
        if (!strcmp(key, aliases[i].key) && json_object_get(root, aliases[i].other))
            return aliases[i].other;
    return json_object_get(root, key) ? key : NULL;
}

/* ---------------------------------------------------------------- text to JSON */

json_t *config_json_parse(const char *text, size_t bytes, json_error_t *error) {
    static const char *const bare[] = {"-Infinity", "Infinity", "NaN"};
    char *out = NULL;
    size_t size;
    FILE *f = open_memstream(&out, &size);
    if (!f) die("no memory for reading a config.json");
    bool string = false;
    for (size_t i = 0; i < bytes;) {
        size_t taken = 0;
        for (int b = 0; b < 3 && !string && !taken; b++) {
            size_t n = strlen(bare[b]);
            if (bytes - i < n || memcmp(text + i, bare[b], n)) continue;
            fprintf(f, "{\"__float__\":\"%s\"}", bare[b]);
            taken = n;
        }
        if (!taken) {
            taken = string && text[i] == '\\' && i + 1 < bytes ? 2 : 1;
            if (text[i] == '"') string = !string;
            fwrite(text + i, 1, taken, f);
        }
        i += taken;
    }
    if (fclose(f)) die("no memory for reading a config.json");
    json_t *root = json_loadb(out, size, JSON_REJECT_DUPLICATES, error);
    free(out);
    return root;
}

bool config_json_number(const json_t *v, double *x) {
    if (json_is_number(v)) {
        *x = json_number_value(v);
        return true;
    }
    const char *s = json_string_value(json_object_get(v, "__float__"));
    if (!s || strcmp(s, "Infinity")) return false;
    *x = INFINITY;
    return true;
}

/* ---------------------------------------------------------------- messages */

/* jansson forgets lines: the first `"key" :` of the text is close enough to find it by. */
static int line_of(const struct config_file *f, const char *key) {
    size_t n = strlen(key);
    for (const char *s = f->text; s && (s = strstr(s, key)); s++) {
        if (s == f->text || s[-1] != '"' || s[n] != '"') continue;
        const char *after = s + n + 1;
        while (isspace((unsigned char)*after)) after++;
        if (*after != ':') continue;
        int line = 1;
        for (const char *c = f->text; c < s; c++) line += *c == '\n';
        return line;
    }
    return 0;
}

bool config_file_has(const struct config_file *f, const char *key) {
    return f->root && config_json_name(f->root, key);
}

void config_file_mistake(const struct config_file *f, struct mistakes *m, const char *key,
                         const char *what) {
    const char *name = config_json_name(f->root, key);
    if (!name) name = key;
    mistake(m, f->path, line_of(f, name), "%s: %s", name, what);
}

static const char *json_type_text(const json_t *v) {
    if (json_object_get(v, "__float__")) return "NaN or infinite";
    static const char *const names[] = {
        "an object", "a list", "text", "a whole number", "a number with a point",
        "true",      "false",  "null"};
    return names[json_typeof(v)];
}

/* ---------------------------------------------------------------- finding the folder */

/* Something of that name, though it may be no file, or a link that leads nowhere. */
static bool is_there(const char *path) {
    struct stat s;
    return !lstat(path, &s);
}

/* In the output folder of a run, the checkpoint that its file `latest` names. */
static char *latest_of(const char *from, struct deck *d, struct mistakes *m) {
    char why[WHY_BYTES], *latest = die_format("%s/checkpoints/latest", from), *folder = NULL;
    int64_t bytes;
    char *line = is_there(latest) ? file_text(latest, MOST_LATEST, &bytes, why) : NULL;
    if (line) line[strcspn(line, "\r\n")] = 0;
    if (line && *line && !strchr(line, '/') && *line != '.')
        folder = die_format("%s/checkpoints/%s", from, line);
    else if (line) deck_mistake(d, m, "model.from", "%s does not name a checkpoint", latest);
    else if (is_there(latest)) deck_mistake(d, m, "model.from", "%s %s", latest, why);
    else
        deck_mistake(d, m, "model.from",
                     "%s has neither config.json nor checkpoints/latest: it is no Hugging Face "
                     "folder and no run with a checkpoint",
                     from);
    free(line);
    free(latest);
    return folder;
}

static char *find_folder(struct deck *d, struct mistakes *m) {
    char *from = die_strdup(d->model.from), *folder = NULL;
    for (size_t n = strlen(from); n > 1 && from[n - 1] == '/'; n--) from[n - 1] = 0;
    char *config = die_format("%s/config.json", from);
    if (!file_exists(from)) deck_mistake(d, m, "model.from", "there is no folder %s", from);
    else if (!file_is_folder(from))
        deck_mistake(d, m, "model.from", "%s is a file; give the folder it lies in", from);
    else if (is_there(config)) folder = die_strdup(from);
    else folder = latest_of(from, d, m);
    free(from);
    free(config);
    return folder;
}

/* ---------------------------------------------------------------- what kind of model it is */

static bool is_set(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return v && !json_is_null(v);
}

static int check_type(const struct config_file *f, struct mistakes *m) {
    const char *type = json_string_value(json_object_get(f->root, "model_type"));
    const char *nested = is_set(f->root, "text_config")  ? "text_config"
                         : is_set(f->root, "llm_config") ? "llm_config"
                                                         : NULL;
    if (nested)
        mistake(m, f->path, line_of(f, nested),
                "%s: this model has a language model among other parts (vision, sound), "
                "which are not built; save the language model in a folder of its own",
                nested);
    else if (is_set(f->root, "block_configs") || (type && !strcmp(type, "nemotron_h_puzzle")))
        mistake(m, f->path, line_of(f, "block_configs"),
                "nemotron_h_puzzle gives each layer its own sizes, which is not built");
    else if (!type) mistake(m, f->path, 0, "has no model_type; \"nemotron_h\" is what can be read");
    else if (strcmp(type, "nemotron_h"))
        mistake(m, f->path, line_of(f, "model_type"),
                "model_type: '%.60s' is not built; there is only nemotron_h", type);
    else if (is_set(f->root, "quantization_config"))
        mistake(m, f->path, line_of(f, "quantization_config"),
                "quantization_config: quantised checkpoints are not built yet; take the original");
    else return 0;
    return -1;
}

/* ---------------------------------------------------------------- keys */

char *config_json_kinds(const struct config_file *f, const char *list_key, const char *text_key,
                        char **kinds) {
    const char *name = config_json_name(f->root, list_key);
    const json_t *list = name ? json_object_get(f->root, name) : NULL,
                 *text = json_object_get(f->root, text_key);
    char *problem = NULL, *from_text = NULL;
    if (text && !json_is_null(text)) {
        if (!json_is_string(text))
            return die_format("%s is %s, not text", text_key, json_type_text(text));
        problem = pattern_from_text(json_string_value(text), false, &from_text);
        if (problem) return problem;
    }
    if (list && !json_is_null(list)) {
        size_t n = json_array_size(list);
        if (!json_is_array(list)) problem = die_format("is %s, not a list", json_type_text(list));
        else if (n > PATTERN_LONGEST)
            problem = die_format("has %zu layers, more than %d", n, PATTERN_LONGEST);
        char **word = die_alloc((unsigned long)n * sizeof *word);
        for (size_t i = 0; i < n && !problem; i++) {
            word[i] = (char *)json_string_value(json_array_get(list, i));
            if (!word[i]) problem = die_format("entry %zu is not text", i + 1);
        }
        if (!problem) problem = pattern_from_list((int)n, word, kinds);
        free(word);
    }
    if (!problem && *kinds && from_text && strcmp(*kinds, from_text) &&
        !strcmp(text_key, "hybrid_override_pattern"))
        problem = die_format("says other layers than layers_block_type");
    if (!problem && from_text && (!*kinds || !strcmp(*kinds, "*E"))) {
        /* For multi-token prediction the pattern counts where the list is its default, as in
         * transformers. */
        free(*kinds);
        *kinds = from_text;
        from_text = NULL;
    }
    free(from_text);
    return problem;
}

/* [low, high] to the deck's spelling, in which no high means infinity. Returns what is wrong. */
static char *read_limit(const json_t *v, struct deck *d, const char *origin) {
    double lo, hi;
    char a[32], b[32];
    if (json_array_size(v) != 2 || !config_json_number(json_array_get(v, 0), &lo) ||
        !config_json_number(json_array_get(v, 1), &hi) || !isfinite(lo))
        return die_format("is not a list of two numbers, low and high");
    if (lo <= 0 && isinf(hi)) return NULL; /* no limit at all */
    deck_real_text(lo, a);
    deck_real_text(hi, b);
    char *text = isinf(hi) ? die_format("[%s]", a) : die_format("[%s, %s]", a, b);
    char *problem = deck_try(d, "model.time_step_limit", text, origin);
    free(text);
    return problem;
}

/* null stands for "none" where a row has a value for that. */
static bool take_null(struct config_file *f, struct deck *d, const char *key, const char *origin) {
    static const char *const zero[] = {"moe_latent_size", "sliding_window",
                                       "num_nextn_predict_layers", "n_routed_experts",
                                       "num_experts_per_tok"};
    if (!strcmp(key, "num_key_value_heads")) return f->kv_follows_heads = true;
    if (!strcmp(key, "time_step_limit") || !strcmp(key, "num_hidden_layers")) return true;
    if (!AMONG(key, zero)) return false;
    char *full = die_format("model.%s", key);
    deck_set(d, full, "0", origin);
    free(full);
    return true;
}

static char *take_value(const struct deck_key *k, const json_t *v, struct deck *d,
                        const char *origin) {
    char text[64] = "", *problem = NULL;
    const char *spelling = text;
    bool fits = false;
    if (!strcmp(k->name, "time_step_limit")) return read_limit(v, d, origin);
    switch (k->type) {
    case 'i':
        if ((fits = json_is_integer(v)))
            snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case 'r':
        if ((fits = json_is_number(v))) deck_real_text(json_number_value(v), text);
        break;
    case 'b':
        if ((fits = json_is_boolean(v)))
            snprintf(text, sizeof text, "%s", json_is_true(v) ? "true" : "false");
        break;
    default:
        if ((fits = json_is_string(v))) spelling = json_string_value(v);
    }
    static const char *const wanted[] = {"a whole number (without point)", "a number",
                                         "true or false", "text"};
    if (!fits)
        return die_format("is %s, not %s", json_type_text(v),
                          wanted[k->type == 'i'   ? 0
                                 : k->type == 'r' ? 1
                                 : k->type == 'b' ? 2
                                                  : 3]);
    char *full = die_format("model.%s", k->name);
    problem = deck_try(d, full, spelling, origin);
    free(full);
    return problem;
}

static void note_null(struct config_file *f, const char *key) {
    f->null = die_realloc(f->null, (unsigned long)(f->n_null + 1) * sizeof *f->null);
    f->null[f->n_null++] = key;
}

static void take_key(struct config_file *f, const char *name, const json_t *v, struct deck *d,
                     struct mistakes *m) {
    int row = config_json_row(name);
    const char *key = deck_table[row].name;
    if (strstr(key, "pattern") || strstr(key, "layers_block_type")) return; /* read together */
    const char *used = config_json_name(f->root, key);
    if (strcmp(used, name)) { /* also there under an older name, which counts */
        if (!json_equal(v, json_object_get(f->root, used)))
            mistake(m, f->path, line_of(f, name), "%s: %s, another name of it, has another value",
                    name, used);
        return;
    }
    char *full = die_format("model.%s", key);
    bool overridden = deck_given(d, full);
    free(full);
    if (overridden) return;
    char *problem = NULL;
    if (!json_is_null(v)) problem = take_value(&deck_table[row], v, d, f->path);
    else if (!take_null(f, d, key, f->path)) note_null(f, key);
    if (problem) config_file_mistake(f, m, key, problem);
    free(problem);
}

static void take_patterns(struct config_file *f, struct mistakes *m) {
    static const char *const keys[2][2] = {
        {"layers_block_type", "hybrid_override_pattern"},
        {"mtp_layers_block_type", "mtp_hybrid_override_pattern"}};
    for (int i = 0; i < 2; i++) {
        char **kinds = i ? &f->mtp_kinds : &f->kinds;
        char *problem = config_json_kinds(f, keys[i][0], keys[i][1], kinds);
        if (problem)
            config_file_mistake(
                f, m,
                keys[i]
                    [config_json_name(f->root, keys[i][0]) && !is_set(f->root, keys[i][1]) ? 0 : 1],
                problem);
        free(problem);
    }
    /* What transformers does without either; a folder of its own always has the list. */
    if (!f->kinds && !config_file_has(f, "layers_block_type") &&
        !config_file_has(f, "hybrid_override_pattern"))
        f->kinds = die_strdup("ME*-");
}

int config_file_read(struct config_file *f, struct config *c, struct deck *d, struct mistakes *m) {
    *f = (struct config_file){0};
    int before = m->n;
    int64_t bytes;
    char why[WHY_BYTES];
    json_error_t error;
    if (!(c->folder = find_folder(d, m))) return -1;
    f->path = die_format("%s/config.json", c->folder);
    if (!(f->text = file_text(f->path, LARGEST, &bytes, why))) {
        mistake(m, f->path, 0, "%s", why);
        return -1;
    }
    if (!(f->root = config_json_parse(f->text, (size_t)bytes, &error))) {
        mistake(m, f->path, error.line, "is not JSON: %s", error.text);
        return -1;
    }
    if (!json_is_object(f->root)) {
        mistake(m, f->path, 0, "is %s, not an object of keys", json_type_text(f->root));
        return -1;
    }
    if (check_type(f, m)) return -1;
    const char *name;
    json_t *v;
    json_object_foreach(f->root, name, v) {
        if (config_json_row(name) >= 0) take_key(f, name, v, d, m);
        else if (!AMONG(name, housekeeping)) {
            c->unused =
                die_realloc(c->unused, (unsigned long)(c->n_unused + 1) * sizeof *c->unused);
            c->unused[c->n_unused++] = die_strdup(name);
        }
    }
    take_patterns(f, m);
    c->kept = json_incref(f->root);
    return m->n > before ? -1 : 0;
}

void config_file_free(struct config_file *f) {
    json_decref(f->root);
    free(f->path);
    free(f->text);
    free(f->kinds);
    free(f->mtp_kinds);
    free(f->null);
    *f = (struct config_file){0};
}
