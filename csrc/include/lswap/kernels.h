/* The kernels on the CPU, as C calls them. See lswap_core/kernels/reference.py for the arithmetic, which this library
 * reproduces bit for bit, statistics included, on every instruction set and for every number of threads.
 *
 * Buffers hold little-endian elements, may be misaligned, and out overlaps no input. No function keeps state, so all may
 * be called from several threads. Functions return LSWAP_OK, or the reason why they did nothing. */
#ifndef LSWAP_KERNELS_H
#define LSWAP_KERNELS_H

#include <stdint.h>

#if defined(__GNUC__)
#define LSWAP_API __attribute__((visibility("default")))
#else
#define LSWAP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Incremented whenever a signature or a structure changes. */
#define LSWAP_ABI 3

enum lswap_status {
  LSWAP_OK = 0,
  LSWAP_NO_SUCH_ISA,
  LSWAP_NO_SUCH_DTYPE,
  LSWAP_TOO_LITTLE_SCRATCH,
  LSWAP_FILE_ENDED,
  LSWAP_READ_FAILED,
  LSWAP_NO_SUCH_RANGES
};

enum lswap_dtype { LSWAP_F64 = 0, LSWAP_F32, LSWAP_F16, LSWAP_BF16, LSWAP_F8_E4M3, LSWAP_F8_E5M2, LSWAP_DTYPES };

/* How two tensors differ. A call adds its elements to the values. Fields as in lswap_core/kernels/difference.py. */
struct lswap_stats {
  double sum_abs, sum_squares, max_abs, dot, x_squares, y_squares;
  uint64_t differing, x_nonfinite, y_nonfinite;
};

/* A tensor in an open file: the offset of its first byte, and the descriptor. */
struct lswap_range {
  uint64_t begin;
  int32_t descriptor;
};

/* Indices of the two ranges to compare. */
struct lswap_pair {
  uint32_t x, y;
};

LSWAP_API int32_t lswap_abi(void);

/* Name of the instruction set with this number, best first; NULL for numbers that this build does not have. */
LSWAP_API const char *lswap_isa_name(int32_t isa);

/* Whether this processor has the instruction set. */
LSWAP_API int32_t lswap_isa_runs(int32_t isa);

/* out[i] = round((1 - weight) * x[i] + weight * y[i]); adds these elements to stats. out: NULL for statistics only.
 * threads: the most to use, at least one. streamed: writes out with non-temporal stores, for an output too large for the
 * caches (where out is aligned to 16 bytes; else ignored). */
LSWAP_API int32_t lswap_blend_stats(int32_t isa, int32_t dtype, const void *x, const void *y, double weight, void *out,
                                    uint64_t count, uint32_t threads, int32_t streamed, struct lswap_stats *stats);

/* Statistics of pairs of ranges of `count` elements each. Reads every range once and adds pairs[k] to stats[k]. There are 1
 * to 8 ranges. scratch: memory to read into, divided among the ranges: at least 1,024 elements and 64 bytes for each;
 * fastest where it fits into the L2 cache. Where a file ends too soon or cannot be read, failed is the index of its range,
 * error is errno (if it cannot be read), and stats is invalid. */
LSWAP_API int32_t lswap_stats_files(int32_t isa, int32_t dtype, const struct lswap_range *ranges, uint32_t range_count,
                                    const struct lswap_pair *pairs, uint32_t pair_count, uint64_t count,
                                    uint8_t *scratch, uint64_t scratch_bytes, struct lswap_stats *stats,
                                    uint32_t *failed, int32_t *error);

/* out[i] = round(sum of weights[k] * inputs[k][i]), first input first. input_count: at least 1. */
LSWAP_API int32_t lswap_blend_many(int32_t isa, int32_t dtype, const void *const *inputs, const double *weights,
                                   uint32_t input_count, void *out, uint64_t count, uint32_t threads);

/* out[i] = x[i], rounded to another type. */
LSWAP_API int32_t lswap_cast(int32_t isa, int32_t source, const void *x, int32_t target, void *out, uint64_t count,
                             uint32_t threads);

/* change[i] = scale * (left @ right)[first + i] in fp32, in row-major order. left: (rows, rank) and right:
 * (rank, columns), fp32, row-major. See lswap_core/kernels/low_rank.py for the order of the sums. */
LSWAP_API int32_t lswap_low_rank(int32_t isa, const float *left, const float *right, uint64_t rank, uint64_t columns,
                                 double scale, uint64_t first, float *change, uint64_t count);

#ifdef __cplusplus
}
#endif
#endif
