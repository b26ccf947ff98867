#include "kernels/mistakes.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

enum { SHOWN = 50, WORD = 96 };

void mistake(struct mistakes *m, const char *where, int line, const char *fmt, ...) {
    char *what = NULL;
    size_t size;
    FILE *f = open_memstream(&what, &size);
    if (!f) die("no memory for a message");
    if (where && line > 0) fprintf(f, "%s:%d: ", where, line);
    else if (where) fprintf(f, "%s: ", where);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    if (fclose(f)) die("no memory for a message");
    /* What is quoted from a file must not steer the terminal or break the line. */
    for (char *c = what; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    unsigned hash = 5381;
    for (const char *c = what; *c; c++) hash = hash * 33 + (unsigned char)*c;
    for (int i = 0; i < m->n; i++) {
        if (m->hash[i] != hash || strcmp(m->text[i], what)) continue;
        free(what);
        return;
    }
    m->text = die_realloc(m->text, (unsigned long)(m->n + 1) * sizeof *m->text);
    m->hash = die_realloc(m->hash, (unsigned long)(m->n + 1) * sizeof *m->hash);
    m->hash[m->n] = hash;
    m->text[m->n++] = what;
}

void mistakes_print(const struct mistakes *m, FILE *to) {
    for (int i = 0; i < m->n && i < SHOWN; i++) fprintf(to, "%s\n", m->text[i]);
    if (m->n > SHOWN) fprintf(to, "... and %d more\n", m->n - SHOWN);
}

void mistakes_free(struct mistakes *m) {
    for (int i = 0; i < m->n; i++) free(m->text[i]);
    free(m->text);
    free(m->hash);
    *m = (struct mistakes){0};
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* Edit distance without regard to case; two swapped neighbours count as one edit. */
static int distance(const char *a, const char *b) {
    int n = (int)strlen(a), m = (int)strlen(b), row[3][WORD + 1];
    if (n > WORD || m > WORD) return WORD;
    for (int j = 0; j <= m; j++) row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
            now[j] = least(up[j - 1] + (ca != cb), least(up[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
                cb == tolower((unsigned char)a[i - 2]))
                now[j] = least(now[j], up2[j - 2] + 1);
        }
    }
    return row[n % 3][m];
}

const char *mistakes_nearest(const char *word, int n, const char *const *words) {
    const char *best = NULL;
    int length = (int)strlen(word);
    int limit = length < 3 ? 1 : 1 + length / 4; /* a third of the letters wrong is another word */
    for (int i = 0; i < n; i++) {
        int d = distance(word, words[i]);
        if (d > limit || d >= length) continue;
        best = words[i];
        limit = d - 1;
    }
    return best;
}
