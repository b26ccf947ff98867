/* context_mamba: the convolution's halo and the scan's state from the piece before, wherever that
 * is.
 *
 * The halo of a piece is the K-1 columns before it, sent by whoever holds them; the convolution
 * takes it as its state, and itself leaves out what belongs to other documents.
 *
 * What a piece does to a state is linear: out = decay in + end. Each rank computes decay and end of
 * its pieces (`scan_end`, a third of a scan), every rank the prefix over all pieces for its share
 * of the states' rows, and each gets the states before its pieces, from which the scan is computed
 * as always. Back, the gradient of the state before a piece is what the piece itself gives
 * (`scan_begin`) and decay times that of the state behind it: the same prefix, from the last piece
 * to the first. With it the scan's own adjoint finds all gradients at once; nothing else needs one.
 * (Prefix over chunks: Dao and Gu 2024, arXiv:2405.21060, section 6; here the chunks are pieces of
 * a sequence.)
 *
 * What was read before (src/decoder.h) takes part as a piece of its own, in front of all others,
 * that belongs to the rank which the row is dealt to; there also arrives what the next call will
 * need, as if there were one more piece behind.
 *
 * For S numbers of states of a rank's pieces and C ranks a rank sends 2 S (C-1)/C numbers and the
 * decays, forward and back each, however long the sequence. Ops of a tape; collective over the
 * context group. */
#ifndef PARALLEL_CONTEXT_MAMBA_H
#define PARALLEL_CONTEXT_MAMBA_H

#include "parallel/context_parallel.h"

/* The `columns` rows of x before each row of the batch, [rows, columns * width], oldest first;
 * zeros before the sequence. carried: NULL, or of the rows dealt to this rank the columns before
 * this call, which become those before the next. */
struct tensor *context_halo(struct tape *t, const struct batch *b, struct tensor *x,
                            int64_t columns, struct tensor *carried);

/* As `scan` of whole sequences would be. carried: likewise, states. */
struct tensor *context_scan(struct tape *t, const struct batch *b, const struct scan_shape *s,
                            struct tensor *u, struct tensor *dt, struct param *a_log,
                            struct param *d, struct param *dt_bias, struct tensor *carried);

#endif
