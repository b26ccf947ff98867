/* dtype: the number formats that tensors are computed in and stored in.
 *
 * Kernels compute in F32 and F64, on numbers stored so or in BF16; files also hold F16 (and
 * integers, which are only ever copied). Widening is exact and narrowing rounds to nearest, ties to
 * even, so a tensor that was loaded and not trained is written back bit for bit. Names are those of
 * the safetensors format. */
#ifndef KERNELS_DTYPE_H
#define KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>

enum dtype {
    F32,
    F64,
    BF16,
    F16,
    I32,
    I64,
    U8,
    I8,
    I16,
    BOOL,
    U16,
    U32,
    U64,
    F8_E4M3,
    F8_E5M2,
    N_DTYPES
};

/* Bytes of one element. */
size_t dtype_size(enum dtype d);

/* "F32", "BF16", ... ; a static string. */
const char *dtype_name(enum dtype d);

/* The dtype of that safetensors name, or -1. */
int dtype_parse(const char *name);

/* Whether the format holds real numbers that a parameter may be stored in: F32, F64, BF16, F16. */
int dtype_is_real(enum dtype d);

/* n elements from one real format to another, host memory, any alignment; src and dst do not
 * overlap. F64 narrows to F32 first, then further: mestar never stores what it computed in F64
 * lower. */
void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t n);

#endif
