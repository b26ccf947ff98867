#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_syntax.h"
#include "kernels/die.h"

void set_add(struct set *s, uint32_t first, uint32_t last) {
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 8;
        s->at = die_realloc(s->at, s->room * sizeof *s->at);
    }
    s->at[s->n++] = (struct range){first, last};
}

void set_add_all(struct set *s, const struct set *from) {
    for (size_t i = 0; i < from->n; i++) set_add(s, from->at[i].first, from->at[i].last);
}

static int by_first(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

void set_tidy(struct set *s) {
    if (!s->n) return;
    qsort(s->at, s->n, sizeof *s->at, by_first);
    size_t m = 0;
    for (size_t i = 1; i < s->n; i++) {
        if (s->at[i].first > s->at[m].last + 1) s->at[++m] = s->at[i];
        else if (s->at[i].last > s->at[m].last) s->at[m].last = s->at[i].last;
    }
    s->n = m + 1;
}

void set_invert(struct set *s) {
    struct set not_in = {0};
    uint32_t from = 0;
    for (size_t i = 0; i < s->n; from = s->at[i++].last + 1)
        if (s->at[i].first > from) set_add(&not_in, from, s->at[i].first - 1);
    if (from < CODE_POINTS) set_add(&not_in, from, CODE_POINTS - 1);
    set_free(s);
    *s = not_in;
}

void set_intersect(struct set *s, const struct set *with) {
    struct set both = {0};
    for (size_t i = 0, j = 0; i < s->n && j < with->n;) {
        struct range a = s->at[i], b = with->at[j];
        uint32_t first = a.first > b.first ? a.first : b.first;
        uint32_t last = a.last < b.last ? a.last : b.last;
        if (first <= last) set_add(&both, first, last);
        if (a.last < b.last) i++;
        else j++;
    }
    set_free(s);
    *s = both;
}

void set_free(struct set *s) {
    free(s->at);
    *s = (struct set){0};
}

#define C(x) (1u << CAT_##x)
static const struct {
    const char *name;
    uint32_t categories;
} named[] = {
    {"l", C(LU) | C(LL) | C(LT) | C(LM) | C(LO)},
    {"letter", C(LU) | C(LL) | C(LT) | C(LM) | C(LO)},
    {"lu", C(LU)},
    {"uppercaseletter", C(LU)},
    {"ll", C(LL)},
    {"lowercaseletter", C(LL)},
    {"lt", C(LT)},
    {"titlecaseletter", C(LT)},
    {"lm", C(LM)},
    {"modifierletter", C(LM)},
    {"lo", C(LO)},
    {"otherletter", C(LO)},
    {"m", C(MN) | C(MC) | C(ME)},
    {"mark", C(MN) | C(MC) | C(ME)},
    {"mn", C(MN)},
    {"nonspacingmark", C(MN)},
    {"mc", C(MC)},
    {"spacingmark", C(MC)},
    {"me", C(ME)},
    {"enclosingmark", C(ME)},
    {"n", C(ND) | C(NL) | C(NO)},
    {"number", C(ND) | C(NL) | C(NO)},
    {"nd", C(ND)},
    {"decimalnumber", C(ND)},
    {"nl", C(NL)},
    {"letternumber", C(NL)},
    {"no", C(NO)},
    {"othernumber", C(NO)},
    {"p", C(PC) | C(PD) | C(PS) | C(PE) | C(PI) | C(PF) | C(PO)},
    {"punctuation", C(PC) | C(PD) | C(PS) | C(PE) | C(PI) | C(PF) | C(PO)},
    {"punct", C(PC) | C(PD) | C(PS) | C(PE) | C(PI) | C(PF) | C(PO)},
    {"pc", C(PC)},
    {"pd", C(PD)},
    {"ps", C(PS)},
    {"pe", C(PE)},
    {"pi", C(PI)},
    {"pf", C(PF)},
    {"po", C(PO)},
    {"s", C(SM) | C(SC) | C(SK) | C(SO)},
    {"symbol", C(SM) | C(SC) | C(SK) | C(SO)},
    {"sm", C(SM)},
    {"mathsymbol", C(SM)},
    {"sc", C(SC)},
    {"currencysymbol", C(SC)},
    {"sk", C(SK)},
    {"so", C(SO)},
    {"z", C(ZS) | C(ZL) | C(ZP)},
    {"separator", C(ZS) | C(ZL) | C(ZP)},
    {"zs", C(ZS)},
    {"spaceseparator", C(ZS)},
    {"zl", C(ZL)},
    {"zp", C(ZP)},
    {"c", C(CC) | C(CF) | C(CS) | C(CO) | C(CN)},
    {"other", C(CC) | C(CF) | C(CS) | C(CO) | C(CN)},
    {"cc", C(CC)},
    {"control", C(CC)},
    {"cf", C(CF)},
    {"format", C(CF)},
    {"co", C(CO)},
    {"cn", C(CN)},
    {"any", 0x3FFFFFFF},
    /* The escapes; what these lack of \s and \w comes with set_of. */
    {"\\d", C(ND)},
    {"\\s", C(ZS) | C(ZL) | C(ZP)},
    {"\\w", C(LU) | C(LL) | C(LT) | C(LM) | C(LO) | C(MN) | C(MC) | C(ME) | C(ND) | C(NL) | C(PC)},
};
#undef C

static const struct {
    const char *name;
    const struct range *at;
    const int *n;
} scripts[] = {
#define SCRIPT(name)                                                                               \
    { #name, script_##name, &n_script_##name }
    SCRIPT(arabic),   SCRIPT(cyrillic), SCRIPT(devanagari), SCRIPT(greek),
    SCRIPT(han),      SCRIPT(hangul),   SCRIPT(hebrew),     SCRIPT(hiragana),
    SCRIPT(katakana), SCRIPT(latin),    SCRIPT(thai),
#undef SCRIPT
};

static void add_categories(struct set *s, uint32_t categories) {
    const uint8_t *category = unicode()->category;
    for (uint32_t c = 0; c < CODE_POINTS;) {
        uint32_t first = c;
        while (c < CODE_POINTS && categories >> category[c] & 1) c++;
        if (c > first) set_add(s, first, c - 1);
        else c++;
    }
}

bool set_of(struct set *s, const char *name, size_t n) {
    char plain[40];
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        if (name[i] == ' ' || name[i] == '_' || name[i] == '-') continue;
        if (m == sizeof plain - 1) return false;
        plain[m++] = (char)tolower((unsigned char)name[i]);
    }
    plain[m] = 0;
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++)
        if (!strcmp(scripts[i].name, plain)) {
            for (int j = 0; j < *scripts[i].n; j++)
                set_add(s, scripts[i].at[j].first, scripts[i].at[j].last);
            return true;
        }
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        if (strcmp(named[i].name, plain)) continue;
        add_categories(s, named[i].categories);
        if (!strcmp(plain, "\\s")) {
            set_add(s, 9, 13);
            set_add(s, 0x85, 0x85);
        }
        for (int j = 0; !strcmp(plain, "\\w") && j < n_word_extra; j++)
            set_add(s, word_extra[j].first, word_extra[j].last);
        set_tidy(s);
        return true;
    }
    return false;
}
