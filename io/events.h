/* events: curves for TensorBoard.
 *
 * TensorBoard reads a file of records, each
 *
 *     length (8 bytes), crc(length) (4), data (length bytes), crc(data) (4)
 *
 * in little-endian order, where crc is CRC-32C rotated and shifted by a constant, so that a crc of
 * crcs is no trap. The data of a record is one protobuf message Event: wall time, step, and a
 * Summary of named numbers; few fields, written by hand here. The first record of a file says its
 * version.
 *
 * Records are in the order of steps, so going back to a step is cutting the file there. */
#ifndef IO_EVENTS_H
#define IO_EVENTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct events {
    FILE *f; /* NULL: nothing is written */
    char *path;
};

struct event_value {
    const char *tag;
    double value; /* kept as float */
};

/* Opens the events of a run in its output folder. after >= 0: the run continues after that step;
 * what a former part wrote beyond it is dropped, and the newest file is continued. -1: the run
 * begins anew; files of a former run are removed. Dies if it cannot be written. */
void events_open(struct events *e, const char *folder, int64_t after);
void events_close(struct events *e);

/* One record: n numbers of a step; wall: seconds since 1970. Does nothing without a file. */
void events_write(struct events *e, double wall, int64_t step, int n,
                  const struct event_value *values);

/* Drops the records of steps after `step`, and a record that is cut short or damaged with all that
 * follow it. -1 if the file cannot be read or written. */
int events_truncate(const char *path, int64_t step);

/* CRC-32C (Castagnoli), and the form records keep it in. */
uint32_t crc32c(const void *data, size_t bytes);
uint32_t crc32c_masked(const void *data, size_t bytes);

#endif
