/* units: numbers as people read them. Each writes into text and returns it. */
#ifndef SRC_UNITS_H
#define SRC_UNITS_H

#include <stdint.h>

enum { UNIT_TEXT = 32 };

/* 1,234,567 */
const char *grouped_text(int64_t n, char text[UNIT_TEXT]);

/* 987, 12.3K, 16.78M, 1.23B, 4.56T: never more than 7 characters. */
const char *count_text(double n, char text[UNIT_TEXT]);

/* 0.36 GiB, 12.1 MiB, 640 KiB, 12 B */
const char *bytes_text(double bytes, char text[UNIT_TEXT]);

/* 0:03:25; 4d 02:11:00 */
const char *duration_text(double seconds, char text[UNIT_TEXT]);

/* 2026-11-21 08:04:11 UTC */
const char *moment_text(double wall, char text[UNIT_TEXT]);

/* Adds to a text that was malloc'd. */
void text_add(char **text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Seconds since 1970. */
double wall_now(void);

#endif
