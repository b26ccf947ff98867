/* dry: the device that computes nothing and counts everything.
 *
 * It gives out addresses that nobody may follow, in the order and with the alignment of a real
 * device, and device_run only adds to its counters.  So the real program runs on it as any rank of
 * any mesh, and what it would have needed can be read off.  kernels/device.c turns to it where the
 * two differ. */
#ifndef KERNELS_DRY_DRY_H
#define KERNELS_DRY_DRY_H

#include "kernels/device.h"

/* A page-aligned region of made-up address space, never NULL. */
void *dry_reserve(struct device *d, size_t bytes);

#endif
