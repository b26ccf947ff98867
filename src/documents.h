/* documents: which tokens of a micro-batch the router's statistics count together.
 *
 * A document is what attention sees as one: a whole sequence, or a part of it where documents in
 * one sequence do not see each other. Its balance is its own, whatever it was packed with and
 * wherever it was cut between ranks. Nearly all documents lie on one rank, which counts them alone.
 * The others cross a border between the tokens of two ranks, or between the two pieces of one, and
 * no border is crossed by two: so a table with a row for each border, summed over the ranks that
 * share the sequences, has room for all of them. Its size is known before any document is.
 *
 * Every rank that reads a sequence reads it whole, and so finds by itself what numbers its
 * documents have (ops.def: count_choices). */
#ifndef SRC_DOCUMENTS_H
#define SRC_DOCUMENTS_H

#include <stdint.h>

struct parallel;

/* Rows of the table for a micro-batch of `sequences`. */
int64_t documents_borders(const struct parallel *p, int64_t sequences);

/* The numbers of the documents of sequence `row` of `rows`, token by token of its n: -1 of padding,
 * a document none of whose targets count; the border's, of the first that it crosses; or one of its
 * own. start, weight: as in struct host_batch, of the whole sequence. */
void documents_number(const struct parallel *p, int64_t rows, int64_t row, int64_t n,
                      const int32_t *start, const double *weight, int32_t *document);

#endif
