/* report: report.html, a run on one page.
 *
 * Self-contained: inline CSS and SVG, no scripts, nothing fetched; light or dark as the screen is.
 * Made from metrics.jsonl, the plan, the time table, used.yaml and the facts of the first screen;
 * at the end, and every so often before, when the page asks to be reloaded. */
#ifndef SRC_REPORT_H
#define SRC_REPORT_H

struct show;
struct timetable;

/* Writes the page; on rank 0 only. t: of all ranks, NULL while the run goes on. why: why it
 * stopped. */
void report_write(const struct show *s, const struct timetable *t, const char *why);

#endif
