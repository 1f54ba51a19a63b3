/* The kernels on a CUDA device, as C calls them. See lswap_core/kernels/reference.py for the arithmetic, which they
 * reproduce bit for bit, statistics included.
 *
 * Every pointer, except to a string, is to device memory, which the caller owns. The tables are those of
 * lswap_core/kernels/gpu/batch.py. Work goes to `stream`, a cudaStream_t; no function waits for it. Functions return 0 or a
 * cudaError_t, which may be that of an earlier launch. For the numbers of dtypes see lswap/kernels.h. */
#ifndef LSWAP_GPU_H
#define LSWAP_GPU_H

#include <stdint.h>

#include "lswap/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Incremented whenever a signature or a table changes. */
#define LSWAP_GPU_ABI 1

LSWAP_API int32_t lswap_gpu_abi(void);

/* The description of a status. */
LSWAP_API const char *lswap_gpu_error(int32_t status);

/* Blocks of 1,024 elements in a tile. */
LSWAP_API int32_t lswap_gpu_tile_blocks(int32_t dtype);

/* Blends the tiles of a batch. Writes out, sums (5, all_blocks) and tallies (19, tiles). write: 0 for statistics only. */
LSWAP_API int32_t lswap_gpu_blend(int32_t dtype, const int64_t *records, const int32_t *owners, int64_t tiles, double *sums,
                                  int64_t all_blocks, double *tallies, int32_t write, void *stream);

/* Adds the results of the tiles to statistics (tensors, 10). */
LSWAP_API int32_t lswap_gpu_add_up(int32_t dtype, const int64_t *records, int64_t tensors, const double *sums,
                                   int64_t all_blocks, const double *tallies, int64_t all_tiles, double *statistics,
                                   void *stream);

/* out[i] = round(sum of weights[k] * inputs[k][i]). addresses: one per input. out: one address. weights: in fp64,
 * rounded to the compute type. aligned: whether every address is a multiple of 16. */
LSWAP_API int32_t lswap_gpu_blend_many(int32_t dtype, const int64_t *addresses, const double *weights, int32_t inputs,
                                       const int64_t *out, int64_t elements, int32_t aligned, void *stream);

/* out[i] = x[i], rounded to another type. x, out: one address each. */
LSWAP_API int32_t lswap_gpu_cast(int32_t source, int32_t target, const int64_t *x, const int64_t *out, int64_t elements,
                                 void *stream);

#ifdef __cplusplus
}
#endif
#endif
