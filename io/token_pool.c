#include "io/token_pool.h"

#include <pthread.h>
#include <stdlib.h>

#include "io/tokenizer.h"
#include "kernels/die.h"

struct token_pool {
    const struct tokenizer *tokenizer;
    struct token_source source;
    char *name;
    pthread_mutex_t lock; /* of what follows */
    int n_free, room;
    struct encoder **free;
};

static struct encoder *take(struct token_pool *p) {
    struct encoder *e = NULL;
    pthread_mutex_lock(&p->lock);
    if (p->n_free) e = p->free[--p->n_free];
    pthread_mutex_unlock(&p->lock);
    return e ? e : encoder_make(p->tokenizer);
}

static void put_back(struct token_pool *p, struct encoder *e) {
    pthread_mutex_lock(&p->lock);
    if (p->n_free == p->room)
        p->free =
            die_realloc(p->free, (unsigned long)(p->room = 2 * p->room + 8) * sizeof *p->free);
    p->free[p->n_free++] = e;
    pthread_mutex_unlock(&p->lock);
}

static int64_t encode(const void *own, const char *text, int64_t n, int32_t **ids, int64_t *room) {
    struct token_pool *p = (struct token_pool *)own;
    struct ids to = {*ids, 0, *room};
    struct encoder *e = take(p);
    if (tokenizer_encode(e, text, (size_t)n, false, &to))
        die("the tokenizer %s cannot take a document of %ld bytes that begins \"%.*s\": %s",
            p->name, (long)n, n < 40 ? (int)n : 40, text, encoder_why(e));
    put_back(p, e);
    *ids = to.at;
    *room = to.room;
    return to.n;
}

struct token_pool *token_pool_make(const struct tokenizer *t, const char *name, int32_t end) {
    struct token_pool *p = die_alloc(sizeof *p);
    p->tokenizer = t;
    p->name = die_strdup(name);
    p->source =
        (struct token_source){p->name, tokenizer_hash(t), tokenizer_size(t), end, p, encode};
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

void token_pool_free(struct token_pool *p) {
    if (!p) return;
    for (int i = 0; i < p->n_free; i++) encoder_free(p->free[i]);
    pthread_mutex_destroy(&p->lock);
    free(p->free);
    free(p->name);
    free(p);
}

const struct token_source *token_pool_source(const struct token_pool *p) {
    return &p->source;
}
