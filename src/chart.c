#include "src/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "src/units.h"

void html_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else if (*text == '"') fputs("&quot;", f);
        else fputc(*text, f);
    }
}

/* ---------------------------------------------------------------- axes */

enum { WIDTH = 640, HEIGHT = 260, LEFT = 62, RIGHT = 14, TOP = 10, BOTTOM = 34, BINS = 320 };

struct scale {
    double from, to;
    bool log;
    double at, length; /* on the page; a negative length runs upwards */
};

static double place(const struct scale *s, double x) {
    double a = s->log ? log10(s->from) : s->from, b = s->log ? log10(s->to) : s->to;
    return s->at + s->length * ((s->log ? log10(x) : x) - a) / (b - a);
}

/* The round number (1, 2, 5 times a power of ten) that cuts `range` into about n. */
static double round_step(double range, int n) {
    double power = pow(10, floor(log10(range / n))), x = range / n / power;
    return power * (x < 1.5 ? 1 : x < 3.5 ? 2 : x < 7.5 ? 5 : 10);
}

/* Ticks are round: 20K rather than 20.0K. */
static const char *tick_text(double x, double step, char *text) {
    static const char suffix[] = " KMBT";
    int thousands = 0, digits = (int)ceil(-log10(step) - 1e-9);
    for (double largest = fabs(x); largest >= 1e4 || (thousands && largest >= 1e3); largest /= 1000)
        if (suffix[thousands + 1]) thousands++;
    if (thousands) snprintf(text, UNIT_TEXT, "%g%c", x / pow(1000, thousands), suffix[thousands]);
    else if (x != 0 && fabs(x) < 1e-3) snprintf(text, UNIT_TEXT, "%.2g", x);
    else snprintf(text, UNIT_TEXT, "%.*f", digits > 0 ? digits : 0, x);
    return text;
}

static void tick(FILE *f, const struct scale *s, bool up, double x, const char *text) {
    double at = place(s, x);
    if (up)
        fprintf(f,
                "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" "
                "y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                LEFT, WIDTH - RIGHT, at, at, LEFT - 8, at + 4, text);
    else
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", at,
                HEIGHT - BOTTOM + 18, text);
}

static void axis(FILE *f, const struct scale *s, bool up) {
    char text[UNIT_TEXT];
    if (s->log && s->to / s->from > 8) {
        int decades = (int)ceil(log10(s->to / s->from));
        for (double power = pow(10, floor(log10(s->from))); power <= s->to * 1.001; power *= 10)
            for (int i = 1; i <= 5; i += i == 1 ? 1 : 3) {
                double x = power * i;
                if ((i > 1 && decades > 3) || x < s->from * 0.999 || x > s->to * 1.001) continue;
                snprintf(text, sizeof text, "%g", x);
                tick(f, s, up, x, text);
            }
        return;
    }
    double step = round_step(s->to - s->from, up ? 5 : 6);
    for (double i = ceil(s->from / step - 1e-9); i * step <= s->to + 1e-9 * step; i++)
        tick(f, s, up, i * step, tick_text(i == 0 ? 0 : i * step, step, text));
}

/* ---------------------------------------------------------------- curves */

struct bin {
    double x, least, mean, most;
    int n;
};

/* The points of a curve, or of bins if there are many; returns how many. */
static int bins_of(const struct curve *c, struct bin *bin) {
    int bins = c->n < BINS || c->dots ? c->n : BINS;
    memset(bin, 0, (size_t)bins * sizeof *bin);
    for (int i = 0; i < c->n; i++) {
        struct bin *b = &bin[(int)((long long)i * bins / c->n)];
        if (!isfinite(c->y[i])) continue;
        if (!b->n || c->y[i] < b->least) b->least = c->y[i];
        if (!b->n || c->y[i] > b->most) b->most = c->y[i];
        b->x += c->x[i];
        b->mean += c->y[i];
        b->n++;
    }
    int n = 0;
    for (int i = 0; i < bins; i++) {
        if (!bin[i].n) continue;
        bin[n] = bin[i];
        bin[n].x /= bin[n].n;
        bin[n].mean /= bin[n].n;
        n++;
    }
    return n;
}

static void draw_curve(FILE *f, const struct curve *c, const struct scale *x,
                       const struct scale *y) {
    struct bin *bin = die_alloc((size_t)(c->n + 1) * sizeof *bin);
    int n = bins_of(c, bin);
    bool binned = n < c->n && !c->dots;
    if (binned) {
        fprintf(f, "<polygon class=\"band\" fill=\"var(--c%d)\" points=\"", c->color);
        for (int i = 0; i < n; i++)
            fprintf(f, "%.1f,%.1f ", place(x, bin[i].x), place(y, bin[i].most));
        for (int i = n - 1; i >= 0; i--)
            fprintf(f, "%.1f,%.1f ", place(x, bin[i].x), place(y, bin[i].least));
        fputs("\"/>\n", f);
    }
    fprintf(f, "<polyline class=\"curve%s\" stroke=\"var(--c%d)\" points=\"",
            c->dots ? " thin" : "", c->color);
    for (int i = 0; i < n; i++) fprintf(f, "%.1f,%.1f ", place(x, bin[i].x), place(y, bin[i].mean));
    fputs("\"/>\n", f);
    for (int i = 0; i < n && (c->dots || n == 1); i++) {
        char at[UNIT_TEXT];
        fprintf(f,
                "<circle r=\"3.2\" fill=\"var(--c%d)\" cx=\"%.1f\" cy=\"%.1f\"><title>%s at %s: "
                "%g</title></circle>\n",
                c->color, place(x, bin[i].x), place(y, bin[i].mean), c->name,
                count_text(bin[i].x, at), bin[i].mean);
    }
    free(bin);
}

/* From the least to the most of all curves; 0 if there is nothing to draw. */
static int ranges(const struct chart *c, struct scale *x, struct scale *y) {
    int n = 0;
    for (int k = 0; k < c->n; k++)
        for (int i = 0; i < c->curve[k].n; i++) {
            double px = c->curve[k].x[i], py = c->curve[k].y[i];
            if (!isfinite(py)) continue;
            if (!n || px < x->from) x->from = px;
            if (!n || px > x->to) x->to = px;
            if (!n || py < y->from) y->from = py;
            if (!n || py > y->to) y->to = py;
            n++;
        }
    if (!n) return 0;
    if (x->from > 0 && x->from < 0.2 * x->to) x->from = 0;
    y->log = c->log && y->from > 0 && y->to > 4 * y->from;
    if (c->from_zero && !y->log && y->from > 0) y->from = 0;
    if (x->to <= x->from) x->from -= 0.5 * fabs(x->from) + 0.5, x->to += 0.5 * fabs(x->to) + 0.5;
    if (y->to <= y->from)
        y->from -= 0.1 * fabs(y->from) + 1e-12, y->to += 0.1 * fabs(y->to) + 1e-12;
    double room = y->log ? pow(y->to / y->from, 0.04) : 0.05 * (y->to - y->from);
    y->to = y->log ? y->to * room : y->to + room;
    if (y->log) y->from /= room;
    else if (!(c->from_zero && y->from == 0)) y->from -= room;
    return n;
}

static void chart_head(FILE *f, const struct chart *c) {
    fprintf(f, "<figure class=\"card\"><figcaption><b>%s</b>", c->title);
    if (*c->unit) fprintf(f, " <span class=\"unit\">%s</span>", c->unit);
    fputs("<span class=\"key\">", f);
    for (int k = 0; k < c->n; k++) {
        double last = NAN;
        for (int i = 0; i < c->curve[k].n; i++)
            if (isfinite(c->curve[k].y[i])) last = c->curve[k].y[i];
        if (!isfinite(last)) continue;
        char text[UNIT_TEXT];
        if (fabs(last) >= 1e4) count_text(last, text);
        else snprintf(text, sizeof text, "%.4g", last);
        fprintf(f, "<i style=\"background:var(--c%d)\"></i>%s %s", c->curve[k].color,
                *c->curve[k].name ? c->curve[k].name : "last", text);
    }
    fputs("</span></figcaption>\n", f);
}

void chart_write(FILE *f, const struct chart *c) {
    struct scale x = {.at = LEFT, .length = WIDTH - LEFT - RIGHT};
    struct scale y = {.at = HEIGHT - BOTTOM, .length = -(HEIGHT - TOP - BOTTOM)};
    chart_head(f, c);
    if (ranges(c, &x, &y)) {
        fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", WIDTH, HEIGHT,
                c->title);
        axis(f, &y, true);
        axis(f, &x, false);
        for (int k = 0; k < c->n; k++) draw_curve(f, &c->curve[k], &x, &y);
        fprintf(f, "<text class=\"name\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text></svg>\n",
                WIDTH - RIGHT, HEIGHT - 2, c->x_name);
    } else fputs("<p class=\"unit\">nothing to show yet</p>\n", f);
    fputs("</figure>\n", f);
}

/* ---------------------------------------------------------------- bars */

static double widest(const struct bars *b) {
    double most = 0;
    for (int i = 0; i < b->n_bars; i++) {
        double sum = 0;
        for (int p = 0; p < b->n_parts; p++) sum += b->size[i * b->n_parts + p];
        if (sum > most) most = sum;
        if (b->mark && b->mark[i] > most) most = b->mark[i];
    }
    return most;
}

static void one_bar(FILE *f, const struct bars *b, int i, double y, double scale, int left) {
    enum { THICK = 18 };
    char text[32];
    double x = left, sum = 0;
    fprintf(f, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", left - 10, y + 13);
    html_text(f, b->name[i]);
    fputs("</text>", f);
    for (int p = 0; p < b->n_parts; p++) {
        double size = b->size[i * b->n_parts + p];
        if (size <= 0) continue;
        b->text(size, text);
        fprintf(f,
                "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" "
                "fill=\"var(--c%d)\"><title>%s %s</title></rect>",
                x, y, size * scale, THICK, p + 1, b->parts[p], text);
        x += size * scale;
        sum += size;
    }
    if (b->mark && b->mark[i] > 0) {
        b->text(b->mark[i], text);
        fprintf(f,
                "<line class=\"mark\" x1=\"%.2f\" x2=\"%.2f\" y1=\"%.1f\" y2=\"%.1f\"><title>%s "
                "%s</title></line>",
                left + b->mark[i] * scale, left + b->mark[i] * scale, y - 3, y + THICK + 3,
                b->mark_name, text);
        if (left + b->mark[i] * scale > x) x = left + b->mark[i] * scale;
    }
    b->text(sum, text);
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x + 8, y + 13, text);
}

void bars_write(FILE *f, const struct bars *b) {
    if (b->n_parts > COLORS) bug("more parts than colours");
    enum { WIDE = 1000, NAMES = 150, VALUES = 100, PITCH = 26 };
    double most = widest(b);
    fputs("<p class=\"key\">", f);
    for (int p = 0; p < b->n_parts; p++) {
        double sum = 0;
        for (int i = 0; i < b->n_bars; i++) sum += b->size[i * b->n_parts + p];
        if (sum > 0)
            fprintf(f, "<span><i style=\"background:var(--c%d)\"></i>%s</span> ", p + 1,
                    b->parts[p]);
    }
    if (b->mark) fprintf(f, "<span><i class=\"stroke\"></i>%s</span>", b->mark_name);
    fputs("</p>\n", f);
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\">\n", WIDE, b->n_bars * PITCH + 4);
    for (int i = 0; i < b->n_bars && most > 0; i++)
        one_bar(f, b, i, 4 + i * PITCH, (WIDE - NAMES - VALUES) / most, NAMES);
    fputs("</svg>\n", f);
}
