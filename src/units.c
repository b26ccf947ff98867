#include "src/units.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kernels/die.h"

const char *grouped_text(int64_t n, char text[UNIT_TEXT]) {
    char digits[UNIT_TEXT], *to = text;
    int len = snprintf(digits, sizeof digits, "%lld", (long long)(n < 0 ? -n : n));
    if (n < 0) *to++ = '-';
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) *to++ = ',';
        *to++ = digits[i];
    }
    *to = '\0';
    return text;
}

const char *count_text(double n, char text[UNIT_TEXT]) {
    static const char suffix[] = " KMBT";
    int i = 0;
    while (fabs(n) >= 999.5 && suffix[i + 1]) n /= 1000, i++;
    int digits = i == 0 ? 0 : fabs(n) < 99.995 ? 2 : 1;
    if (i == 1 && digits == 2) digits = 1;
    snprintf(text, UNIT_TEXT, "%.*f%.*s", digits, n, i ? 1 : 0, &suffix[i]);
    return text;
}

const char *bytes_text(double bytes, char text[UNIT_TEXT]) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    while (bytes >= 1000 && i < 4) bytes /= 1024, i++;
    snprintf(text, UNIT_TEXT, "%.*f %s",
             i == 0        ? 0
             : bytes < 10  ? 2
             : bytes < 100 ? 1
                           : 0,
             bytes, unit[i]);
    return text;
}

const char *duration_text(double seconds, char text[UNIT_TEXT]) {
    if (!(seconds >= 0 && seconds < 1e10)) return strcpy(text, "-");
    int64_t s = (int64_t)(seconds + 0.5), days = s / 86400;
    int h = (int)(s / 3600), m = (int)(s / 60 % 60);
    if (days) snprintf(text, UNIT_TEXT, "%lldd %02d:%02d", (long long)days, h % 24, m);
    else snprintf(text, UNIT_TEXT, "%d:%02d:%02d", h, m, (int)(s % 60));
    return text;
}

const char *moment_text(double wall, char text[UNIT_TEXT]) {
    time_t t = (time_t)wall;
    struct tm utc;
    strftime(text, UNIT_TEXT, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&t, &utc));
    return text;
}

void text_add(char **text, const char *fmt, ...) {
    size_t n = strlen(*text);
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int more = vsnprintf(NULL, 0, fmt, ap);
    *text = die_realloc(*text, n + (size_t)more + 1);
    vsnprintf(*text + n, (size_t)more + 1, fmt, again);
    va_end(again);
    va_end(ap);
}

double wall_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
