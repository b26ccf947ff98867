/* The parts of mode generate by themselves: drawing a token, an answer and its end, characters that
 * come in parts, and that decoding computes nothing again. (What follows a prompt is checked from
 * outside: run_generate.sh.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/tokenizer.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "kernels/scan_recent.h"
#include "src/answer.h"
#include "src/decoder.h"
#include "src/sample.h"
#include "src/text.h"
#include "tests/lab.h"

/* ---- drawing ---- */

enum { WORDS = 7, DRAWS = 20000 };
static const double logits[WORDS] = {0.5, 2, -1, 2, 1.25, -INFINITY, 0.1};

/* The chances by definition, after sorting. */
static void chances(double *p, double temperature, int top_k, double top_p) {
    int order[WORDS];
    double all = 0, sum = 0, left = 0;
    for (int i = 0; i < WORDS; i++) order[i] = i;
    for (int i = 0; i < WORDS; i++) /* by falling logit, the lower id first */
        for (int j = WORDS - 1; j > 0; j--)
            if (logits[order[j]] > logits[order[j - 1]]) {
                int other = order[j];
                order[j] = order[j - 1];
                order[j - 1] = other;
            }
    memset(p, 0, WORDS * sizeof *p);
    int most = top_k ? top_k : WORDS;
    for (int i = 0; i < most; i++) all += exp(logits[order[i]] / temperature);
    for (int i = 0; i < most && (i == 0 || sum < top_p * all); i++)
        sum += p[order[i]] = exp(logits[order[i]] / temperature);
    for (int i = 0; i < WORDS; i++) left += p[i];
    for (int i = 0; i < WORDS; i++) p[i] /= left;
}

static void drawing(void **state) {
    (void)state;
    static const struct {
        double temperature;
        int top_k;
        double top_p;
    } how[] = {{1, 0, 1},     {0.5, 0, 1}, {3, 0, 1},   {1, 1, 1},   {1, 2, 1},     {1, 3, 1},
               {2, 6, 1},     {1, 7, 1},   {1, 50, 1},  {1, 0, 0.3}, {1, 0, 0.364}, {1, 0, 0.8},
               {1, 0, 0.999}, {2, 4, 0.7}, {1, 3, 0.4}, {1, 0, 0},   {1, 3, 0}};
    for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
        struct sampler s;
        double want[WORDS];
        int count[WORDS] = {0};
        sampler_init(&s, WORDS, how[h].temperature, how[h].top_k, how[h].top_p);
        chances(want, how[h].temperature, how[h].top_k > WORDS ? 0 : how[h].top_k, how[h].top_p);
        for (int i = 0; i < DRAWS; i++) count[sampler_choose(&s, logits, F64, (i + 0.5) / DRAWS)]++;
        for (int i = 0; i < WORDS; i++)
            if (fabs((double)count[i] / DRAWS - want[i]) > 1.5 / DRAWS)
                fail_msg("way %d, token %d: %d of %d, want %g", (int)h, i, count[i], DRAWS,
                         want[i] * DRAWS);
        sampler_free(&s);
    }
}

static void likeliest(void **state) {
    (void)state;
    static const double none[WORDS] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY,
                                       -INFINITY, -INFINITY, -INFINITY},
                        holes[WORDS] = {1, NAN, 3, 1, 1, 1, 1},
                        high[WORDS] = {1, INFINITY, 3, 1, 1, 1, 1};
    for (int top_k = 0; top_k < 4; top_k++) {
        struct sampler s;
        sampler_init(&s, WORDS, 0, top_k, 0.5);
        for (int i = 0; i < 10; i++)
            assert_int_equal(sampler_choose(&s, logits, F64, (i + 0.5) / 10), 1); /* of 1 and 3 */
        assert_int_equal(sampler_choose(&s, none, F64, 0.5), -1);
        assert_int_equal(sampler_choose(&s, holes, F64, 0.5), -1);
        assert_int_equal(sampler_choose(&s, high, F64, 0.5), -1);
        sampler_free(&s);
    }
    assert_true(sampler_uniform(1, 2, 3) == sampler_uniform(1, 2, 3));
    assert_true(sampler_uniform(1, 2, 3) != sampler_uniform(1, 3, 2));
    assert_true(sampler_uniform(1, 2, 3) != sampler_uniform(2, 2, 3));
}

/* A large vocabulary: what is kept is what sorting would keep, also among many equals; of floats
 * too. */
static void many_words(void **state) {
    (void)state;
    enum { MANY = 5000, KEPT = 700 };
    struct sampler s;
    double *many = die_alloc(MANY * sizeof *many);
    float *floats = die_alloc(MANY * sizeof *floats);
    for (int i = 0; i < MANY; i++) floats[i] = (float)(many[i] = (i * 7919 % MANY) / 10);
    sampler_init(&s, MANY, 1e6, KEPT, 1);
    for (int i = 0; i < KEPT; i++) {
        int id = sampler_choose(&s, many, F64, (i + 0.5) / KEPT), larger = 0;
        for (int j = 0; j < MANY; j++)
            larger += many[j] > many[id] || (many[j] == many[id] && j < id);
        assert_true(larger < KEPT);
        assert_int_equal(sampler_choose(&s, floats, F32, (i + 0.5) / KEPT), id);
    }
    sampler_free(&s);
    free(many);
    free(floats);
}

/* The largest is found, and what is no number, wherever it is: before, in and behind whole
 * vectors. */
static void every_place(void **state) {
    (void)state;
    enum { MOST = 150 };
    float floats[MOST];
    double doubles[MOST];
    for (int n = 1; n <= MOST; n += n < 40 ? 1 : 11) {
        struct sampler s;
        sampler_init(&s, n, 0, 0, 1);
        for (int i = 0; i < n; i++) floats[i] = (float)(doubles[i] = -3 - i % 5);
        for (int i = 0; i < n; i++) {
            const double was = doubles[i];
            floats[i] = (float)(doubles[i] = -1);
            assert_int_equal(sampler_choose(&s, floats, F32, 0.5), i);
            assert_int_equal(sampler_choose(&s, doubles, F64, 0.5), i);
            floats[i] = (float)(doubles[i] = NAN);
            assert_int_equal(sampler_choose(&s, floats, F32, 0.5), -1);
            assert_int_equal(sampler_choose(&s, doubles, F64, 0.5), -1);
            floats[i] = (float)(doubles[i] = was);
        }
        sampler_free(&s);
    }
}

/* ---- characters ---- */

static void characters(void **state) {
    (void)state;
    static const struct {
        const char *in, *out;
    } all[] = {
        {"", ""},
        {"abc", "abc"},
        {"a\xc3\xa9", "a\xc3\xa9"},
        {"a\xc3", "a\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xf0\x9f\x98", "\xef\xbf\xbd"},
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
        {"\xf0\x9f\x98z", "\xef\xbf\xbdz"},
        {"\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xff"
         "a",
         "\xef\xbf\xbd"
         "a"},
        {"x\xe0", "x\xef\xbf\xbd"},
        {"x\xe0\x80", "x\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        size_t n = strlen(all[i].in);
        char *good = utf8_repair(all[i].in, &n);
        assert_int_equal(n, strlen(all[i].out));
        assert_memory_equal(good, all[i].out, n);
        free(good);
    }
}

/* ---- answers ---- */

/* After the bytes of a prompt, feeds the bytes of `in` (256: \x01) and checks what was shown after
 * each ("|" between), what is there and why it ended. */
static void answered(const char *prompt, const char *in, int most, int n_stops, char **stops,
                     const char *shown, const char *there, enum ended why) {
    int64_t end = 256;
    struct mistakes none = {0};
    struct tokenizer *bytes = tokenizer_open("bytes", &none);
    const struct text text = {.tokenizer = bytes, .n_ends = 1, .ends = &end};
    const struct ending ending = {&text, most, n_stops, stops};
    struct answer a;
    char seen[512] = "";
    int64_t n = 0;
    int32_t ids[8];
    for (size_t i = 0; i < strlen(prompt); i++) ids[i] = (unsigned char)prompt[i];
    answer_init(&a, &ending, ids, (int64_t)strlen(prompt));
    for (const char *c = in; *c && !a.stop; c++, n++) {
        const char *from;
        answer_add(&a, &ending, *c == 1 ? 256 : *c == 2 ? -1 : (unsigned char)*c);
        size_t k = answer_show(&a, &ending, &from);
        if (k) strncat(seen, from, k);
        strcat(seen, "|");
    }
    assert_string_equal(seen, shown);
    assert_int_equal(a.stop, why);
    assert_int_equal(a.n_bytes, strlen(there));
    if (a.n_bytes) assert_memory_equal(a.bytes, there, strlen(there));
    assert_int_equal(a.n_ids, n - (why == STOP_NOT_FINITE));
    answer_free(&a);
    tokenizer_close(bytes);
}

static void answers(void **state) {
    (void)state;
    char *end[] = {"END"}, *two[] = {"abab", "ba"}, *line[] = {"\n", "\n\n"};
    answered("", "abc", 9, 0, NULL, "a|b|c|", "abc", GOING_ON);
    answered("", "abc", 3, 0, NULL, "a|b|c|", "abc", STOP_LENGTH);
    answered("", "ab\x01z", 9, 0, NULL, "a|b||", "ab", STOP_END);
    answered("", "ab\x01", 3, 0, NULL, "a|b||", "ab", STOP_END);
    answered("", "ab\x02", 9, 0, NULL, "a|b||", "ab", STOP_NOT_FINITE);
    answered("", "xENDy", 9, 1, end, "x||||", "x", STOP_TEXT);
    answered("", "xENEND", 9, 1, end, "x|||EN|||", "xEN", STOP_TEXT);
    answered("", "xEN", 3, 1, end, "x||EN|", "xEN", STOP_LENGTH);
    answered("", "xEN\x01", 9, 1, end, "x|||EN|", "xEN", STOP_END);
    answered("", "aabbab", 9, 2, two, "|a||ab||", "aab", STOP_TEXT);
    answered("", "x\ny", 9, 2, line, "x||", "x", STOP_TEXT);
    answered("", "\xc3\xa9\xc3", 9, 0, NULL, "|\xc3\xa9||", "\xc3\xa9", GOING_ON);
    answered("", "\xc3\xa9\xc3", 3, 0, NULL, "|\xc3\xa9|\xef\xbf\xbd|", "\xc3\xa9\xef\xbf\xbd",
             STOP_LENGTH);
    /* A character that the prompt began. */
    answered("\xc3", "\xa9!", 9, 0, NULL, "\xc3\xa9|!|", "\xc3\xa9!", GOING_ON);
    answered("a\xc3", "\x01", 9, 0, NULL, "|", "", STOP_END);
}

/* ---- decoding ---- */

struct counts {
    double work[N_OPS];
    int64_t calls[N_OPS];
};

static struct counts counts_of(const struct device *d) {
    struct counts c;
    for (int i = 0; i < N_OPS; i++) c.work[i] = d->count[i].work, c.calls[i] = d->count[i].calls;
    return c;
}

/* The tiny model on the dry device, and a decoder of it, as the first of so many context ranks. */
enum { PROMPTS = 3 };

static void open_dry(struct lab *l, struct decoder *d, int context, int64_t longest, int64_t more,
                     int64_t chunk) {
    char ranks[32], *over[] = {"run.mode=generate", "generate.prompt_ids=[1]",
                               "parallel.context_attention=ring", ranks};
    snprintf(ranks, sizeof ranks, "parallel.context=%d", context);
    lab_read_for(l, "model: {preset: tiny}\n", context, 4, over);
    comm_init_dry(&l->comm, context, 0);
    assert_int_equal(engine_open(&l->e, &l->deck, &l->config, &l->m), 0);
    assert_int_equal(engine_init(&l->e, &l->comm, &l->shape, true, false, false, &l->m), 0);
    decoder_init(d, &l->e, PROMPTS, longest, more, chunk);
}

static void close_dry(struct lab *l, struct decoder *d) {
    decoder_free(d);
    lab_close(l);
}

/* Every call costs what its tokens cost: the prompt is computed once, whatever the chunks; a step
 * costs as much as any other, but for attention, which sees one token more each time, and for the
 * scan, whose states wait for SCAN_RECENT tokens: so every so many steps are alike, and the last of
 * them, which writes states, costs most. */
static void nothing_twice(void **state) {
    (void)state;
    enum { LENGTH = 40, STEPS = 2 * SCAN_RECENT + 3 };
    double whole[N_OPS];
    for (int chunk = LENGTH; chunk >= 7; chunk -= 33) {
        struct lab l;
        struct decoder dec;
        int32_t row[LENGTH] = {0}, *ids[PROMPTS] = {row, row, row};
        const int64_t n[PROMPTS] = {LENGTH, 3, 17};
        open_dry(&l, &dec, 1, LENGTH, STEPS, chunk);
        decoder_begin(&dec, PROMPTS, ids, n, NULL);
        struct counts begun = counts_of(&l.e.device), before = begun, first = {{0}, {0}};
        static const int same[] = {OP_conv,      OP_scan,  OP_rms_norm,
                                   OP_embedding, OP_relu2, OP_attention};
        for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
            double work = begun.work[same[i]];
            if (chunk == LENGTH) whole[same[i]] = work;
            else assert_true(fabs(work - whole[same[i]]) <= 1e-9 * work);
        }
        size_t peak = l.e.work.peak;
        double scan[STEPS];
        for (int step = 0; step < STEPS; step++) {
            decoder_next(&dec, row);
            struct counts now = counts_of(&l.e.device);
            for (int i = 0; i < N_OPS; i++) {
                double work = now.work[i] - before.work[i];
                int64_t calls = now.calls[i] - before.calls[i];
                if (!step) first.work[i] = work, first.calls[i] = calls;
                assert_int_equal(calls, first.calls[i]);
                if (i == OP_scan) assert_true(calls == 0);
                if (i == OP_scan_next) scan[step] = work;
                else if (i == OP_attention) assert_true(work > 0 && work < begun.work[i] / 4);
                else assert_true(work == first.work[i]);
            }
            before = now;
            if (step < SCAN_RECENT) assert_true(step ? scan[step] > scan[step - 1] : scan[0] > 0);
            else assert_true(scan[step] == scan[step - SCAN_RECENT]);
        }
        assert_true(scan[SCAN_RECENT - 1] > 2 * scan[SCAN_RECENT - 2]);
        assert_int_equal(l.e.work.peak, peak);
        assert_int_equal(l.e.work.live, 0);
        close_dry(&l, &dec);
    }
}

/* Across context ranks no call sends more because more was read before it. */
static void no_more_sent(void **state) {
    (void)state;
    enum { CHUNK = 16, MOST = 64, STEPS = 6 };
    struct lab l;
    struct decoder dec;
    int32_t row[MOST] = {0}, *ids[PROMPTS] = {row, row, row};
    int64_t reading[3], decoding = 0;
    open_dry(&l, &dec, 4, MOST, STEPS, CHUNK);
    const int64_t *sent = &l.e.parallel.axis[MESH_CONTEXT]->bytes_sent;
    for (int i = 0; i < 3; i++) {
        const int64_t longest = (2 + i) * CHUNK, n[PROMPTS] = {longest, 3, 17};
        int64_t before = *sent;
        decoder_begin(&dec, PROMPTS, ids, n, NULL);
        reading[i] = *sent - before;
        for (int step = 0; step < STEPS; step++) {
            before = *sent;
            decoder_next(&dec, row);
            if (!decoding) decoding = *sent - before;
            assert_int_equal(*sent - before, decoding);
        }
    }
    assert_true(decoding > 0 && reading[1] > reading[0]);
    assert_int_equal(reading[2] - reading[1], reading[1] - reading[0]);
    close_dry(&l, &dec);
}

/* Every place of a row is in one rank's cache, in order, and no rank has more than its share. */
static void places_shared_out(void **state) {
    (void)state;
    for (int context = 1; context <= 5; context++)
        for (int64_t calls = 1; calls <= 3; calls++)
            for (int64_t left = 1; left <= 3; left++) {
                const int64_t pieces = context == 1 ? 1 : 2 * context, chunk = 3 * pieces;
                const struct cache_plan p = {context, chunk, (calls - 1) * chunk + left * pieces};
                const int64_t all = p.read + 2 * context + 1;
                for (int64_t place = 0; place < all; place++) {
                    int keepers = 0;
                    for (int r = 0; r < context; r++) {
                        const int64_t more =
                            cache_held(&p, r, place + 1) - cache_held(&p, r, place);
                        assert_true(more == 0 || more == 1);
                        keepers += (int)more;
                        if (more && place >= p.read) assert_int_equal(cache_keeper(&p, place), r);
                        assert_true(cache_held(&p, r, place + 1) <= cache_room(context, all));
                        if (place + 1 == p.read)
                            assert_int_equal(cache_held(&p, r, place + 1), p.read / context);
                    }
                    assert_int_equal(keepers, 1);
                }
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drawing),           cmocka_unit_test(likeliest),
        cmocka_unit_test(many_words),        cmocka_unit_test(every_place),
        cmocka_unit_test(characters),        cmocka_unit_test(answers),
        cmocka_unit_test(nothing_twice),     cmocka_unit_test(no_more_sent),
        cmocka_unit_test(places_shared_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
