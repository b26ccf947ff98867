/* costs: what a rank's step takes: arithmetic, memory traffic and messages.
 *
 * Devices count work and bytes of every operation, groups what is sent on them, and they do so on
 * the dry device and transport as on real ones. So a step costs the difference of two readings, and
 * what is planned is what is measured, to the last bit. */
#ifndef SRC_COSTS_H
#define SRC_COSTS_H

#include <stdio.h>

#include "kernels/device.h"
#include "parallel/groups.h"

struct engine;

struct costs {
    struct op_count op[N_OPS];
    int n_groups;
    struct traffic group[TRAFFIC_MOST];
};

/* The counters of an engine as they are. */
void costs_read(struct costs *c, const struct engine *e);

/* to += times * from, for two costs of one rank. */
void costs_add(struct costs *to, const struct costs *from, double times);

/* Sums over operations, and over groups. spent_s is 0 unless the device is timed. */
struct op_count costs_total(const struct costs *c);
int64_t costs_sent(const struct costs *c);

/* {"work": ..., "bytes": ..., "sent": {"data": ...}}: JSON, and YAML as well. */
void costs_print(const struct costs *c, FILE *f);

#endif
