/* library: how fast a library that others wrote multiplies the same matrices, as a yardstick beside
 * our own times. oneDNN where the program was built with it, else OpenBLAS, else nothing. */
#ifndef TESTS_LIBRARY_H
#define TESTS_LIBRARY_H

#include "kernels/device.h"

/* Its name, or NULL. */
const char *library_name(void);

/* Makes the product ready: c[M,N] (format `result`) = op(a) op(b) of format `stored`, as the row
 * matmul of ops.def has it. NULL where the library has no such product. */
struct library_product;
struct library_product *library_product_new(const struct matmul_args *m, enum dtype stored,
                                            enum dtype result);
void library_product_run(struct library_product *p);
void library_product_free(struct library_product *p);

#endif
