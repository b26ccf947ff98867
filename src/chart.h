/* chart: curves and bars as inline SVG, for report.html.
 *
 * A drawing is text in viewBox units that scales with the page; its colours are CSS variables of
 * the page, so that it follows a light or a dark screen. A curve of many points is drawn as the
 * mean of bins with a band from least to most, so that a spike is never lost and the page stays
 * small. */
#ifndef SRC_CHART_H
#define SRC_CHART_H

#include <stdbool.h>
#include <stdio.h>

enum { COLORS = 11 };

struct curve {
    const char *name;
    int color; /* 1 .. COLORS: --c1, --c2, ... of the page */
    int n;
    const double *x, *y; /* y may hold numbers that are not finite: gaps */
    bool dots;           /* each point is marked, and joined thinly */
};

struct chart {
    const char *title, *unit, *x_name;
    bool log;       /* logarithmic upwards, if all is positive */
    bool from_zero; /* the axis begins at 0 */
    int n;
    struct curve curve[2];
};

void chart_write(FILE *f, const struct chart *c);

/* Bars that lie one below the other, each cut into parts. */
struct bars {
    const char *unit;
    int n_bars, n_parts;
    char *const *name;        /* of bars */
    const char *const *parts; /* names of parts; part i has colour i + 1 */
    const double *size;       /* [bar][part] */
    const double *mark;       /* a stroke in each bar, NULL: none */
    const char *mark_name;
    void (*text)(double value, char text[32]); /* a value for people */
};

void bars_write(FILE *f, const struct bars *b);

/* Text with &, < and > made harmless. */
void html_text(FILE *f, const char *text);

#endif
