// The functions of one instruction set, for the dispatcher. They take a range of whole blocks and a shorter last one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lswap/kernels.h"

namespace lswap {

constexpr size_t kBlock = 1024;  // elements whose terms are summed in the compute type
constexpr size_t kLanes = 16;    // element i of a block belongs to lane i mod 16, for any register size
constexpr size_t kSums = 5;      // sum |d|, sum d^2, <x,y>, |x|^2, |y|^2

constexpr size_t kStreamed = 16;
constexpr size_t kSizes[LSWAP_DTYPES] = {8, 4, 2, 2, 1, 1};  // bytes of an element

// The statistics that may be added up in any order.
struct Counts {
  double max_abs = 0;
  uint64_t differing = 0, x_nonfinite = 0, y_nonfinite = 0;
};

// sums: kSums per block, which the caller adds up in order.
using BlendStats = void (*)(const uint8_t *x, const uint8_t *y, double weight, uint8_t *out, size_t count, double *sums,
                            Counts *counts);
using BlendMany = void (*)(const uint8_t *const *inputs, const double *weights, size_t inputs_count, size_t begin,
                           uint8_t *out, size_t count);
using Cast = void (*)(const uint8_t *x, uint8_t *out, size_t count);
// A rectangle of a low-rank change: `rows` rows of `left` by the first `width` columns of `right`, which has `columns`.
using LowRank = void (*)(const float *left, const float *right, size_t rank, size_t columns, size_t rows, size_t width,
                         float scale, float *change);

struct Isa {
  const char *name;
  bool (*runs)();
  BlendStats stats[LSWAP_DTYPES];  // weight and out are ignored
  BlendStats blend_stats[LSWAP_DTYPES];
  BlendStats blend_stats_streamed[LSWAP_DTYPES];  // out is aligned to kStreamed bytes
  BlendMany blend_many[LSWAP_DTYPES];
  Cast cast[LSWAP_DTYPES][LSWAP_DTYPES];  // [source][target]
  LowRank low_rank;
};

const Isa &baseline_isa();
#if defined(__x86_64__)
const Isa &avx2_isa();
const Isa &avx512_isa();
#endif

}  // namespace lswap
