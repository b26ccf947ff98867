#include "src/choose.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mistakes.h"
#include "kernels/die.h"
#include "src/deck.h"
#include "src/params.h"

struct choice {
    char *pattern;
    bool freeze, has_rate, has_decay, decay;
    double rate;
    const char *key;                    /* of the deck, for messages */
};

static int parse_group(const char *line, struct choice *c, const struct deck *d, struct mistakes *m) {
    char *text = die_strdup(line), *rest = text, *word = strsep(&rest, " ");
    int before = m->n;
    *c = (struct choice){.pattern = die_strdup(word), .key = "optimizer.groups"};
    while ((word = strsep(&rest, " "))) {
        char *value = strchr(word, '='), *end = NULL;
        if (!*word) continue;
        double x = value ? strtod(value + 1, &end) : 0;
        bool number = value && end != value + 1 && !*end;
        if (number && !strncmp(word, "rate=", 5) && x >= 0 && x <= 1e6) c->has_rate = true, c->rate = x;
        else if (number && !strncmp(word, "decay=", 6) && (x == 0 || x == 1)) c->has_decay = true, c->decay = x == 1;
        else deck_mistake(d, m, "optimizer.groups", "'%s' in '%s' is neither rate=FACTOR nor decay=0 or 1", word, line);
    }
    if (m->n == before && !c->has_rate && !c->has_decay)
        deck_mistake(d, m, "optimizer.groups", "'%s' says nothing about '%s'; add rate=FACTOR or decay=0", line, c->pattern);
    free(text);
    return m->n > before ? -1 : 0;
}

struct result { bool trained, decay; double rate; };

static struct result result_for(const struct param_tensor *t, int n, const struct choice *c, bool *fits) {
    struct result r = {!(t->row->may & BUFFER), t->row->may & DECAY, 1};
    for (int i = 0; i < n; i++) {
        if (fnmatch(c[i].pattern, t->name, 0)) continue;
        fits[i] = true;
        if (c[i].freeze) r.trained = false;
        if (c[i].has_rate) r.rate = c[i].rate;
        if (c[i].has_decay) r.decay = c[i].decay;
    }
    return r;
}

int choose_parameters(const struct deck *d, struct params *s, struct mistakes *m) {
    int frozen = d->train.freeze.n, groups = d->optimizer.groups.n, n = 0, before = m->n;
    struct choice *c = die_alloc((frozen + groups + 1) * sizeof *c);
    bool *fits = die_alloc(frozen + groups + 1), *seen = die_alloc(s->n_blocks + 1);
    for (int i = 0; i < frozen; i++)
        c[n++] = (struct choice){.pattern = die_strdup(d->train.freeze.v[i]), .freeze = true, .key = "train.freeze"};
    for (int i = 0; i < groups; i++) parse_group(d->optimizer.groups.v[i], &c[n++], d, m);
    for (int i = 0; n && i < s->n_tensors; i++) {
        const struct param_tensor *t = &s->tensor[i];
        if (t->block < 0) continue;
        struct param_block *b = &s->block[t->block];
        struct result r = result_for(t, n, c, fits);
        bool differs = seen[t->block] && (b->p.trained != r.trained || b->decay != r.decay || b->rate != r.rate);
        if (differs)
            deck_mistake(d, m, n > frozen ? "optimizer.groups" : "train.freeze",
                         "%s is stored as one with the rest of %s and cannot be chosen alone", t->name, b->p.name);
        seen[t->block] = true;
        b->p.trained = r.trained;
        b->decay = r.decay;
        b->rate = r.rate;
    }
    for (int i = 0; i < n && m->n == before; i++)
        if (!fits[i]) deck_mistake(d, m, c[i].key, "no tensor is called '%s'; patterns are like backbone.layers.*.norm.weight", c[i].pattern);
    for (int i = 0; i < n; i++) free(c[i].pattern);
    free(c);
    free(fits);
    free(seen);
    return m->n > before ? -1 : 0;
}
