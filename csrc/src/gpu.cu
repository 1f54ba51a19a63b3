// The kernels on a CUDA device. They work like those in `lswap_core/kernels/gpu/triton_blend.py`: a warp walks a tile in
// segments of a few rows of each block. It loads whole cache lines and moves the elements through shared memory to the threads
// that own their lanes. Here every thread owns lanes: 16 bytes of a row of one block.
#include <cuda_runtime.h>

#include <cstdint>

#include "gpu_formats.cuh"
#include "lswap/gpu.h"

namespace lswap {
namespace {

constexpr int kBlock = 1024, kLanes = 16, kRowsOfBlock = kBlock / kLanes;
constexpr int kSums = 5, kTallies = 4, kRecord = 8, kStatistics = 10;
constexpr int kNoGrid = 4096;  // above every exponent of an fp64
// None of these was measured on a GPU. Warps share nothing but the launch.
constexpr int kWarps = 4;
constexpr int kAdders = 128;  // threads that add up one column
constexpr int kAhead = 16;    // loads in flight while sums are added up in order
constexpr int kThreads = 256;

enum Field { kX, kY, kOut, kElements, kFirstTile, kFirstBlock, kShare0, kShare1 };

template <class F>
struct Shape {
  static constexpr int kOwned = 16 / sizeof(typename F::Word);        // lanes of a thread: 16 bytes
  static constexpr int kColumns = kLanes / kOwned;                    // threads that own a block's lanes
  static constexpr int kBlocks = 32 / kColumns;                       // of a tile
  static constexpr int kRows = kColumns == 1 ? 4 : 8 / kColumns;      // of a segment: 128 bytes, of fp8 64
  static constexpr int kUnits = kRows * kColumns;                     // of 16 bytes, of a segment
  static constexpr int kSegments = kRowsOfBlock / kRows;
  // Blocks that a multiprocessor should hold: 16 warps of 16-bit elements, with 128 bytes of x and y in flight in each
  // thread. Other types have fewer, or registers would spill (nvcc 13.0, sm_100). The loop has 37.9 machine instructions per
  // bf16 element on sm_90 (33.9 F16, 23.6 F32); copying at 4.3 TB/s leaves an H200 time for 46.7. Not measured on a GPU.
  static constexpr int kResident = sizeof(typename F::Word) == 2 ? 4 : 2;
};

template <class F>
union Unit {
  uint4 raw;
  typename F::Word words[Shape<F>::kOwned];
};

template <class F>
struct Stage {  // of one warp
  Unit<F> x[Shape<F>::kBlocks * Shape<F>::kUnits];
  Unit<F> y[Shape<F>::kBlocks * Shape<F>::kUnits];
};

// Index in shared memory of a unit of a block's segment, without bank conflicts for writers and readers.
template <class F>
__device__ __forceinline__ int staged(int block, int unit) {
  using S = Shape<F>;
  return block * S::kUnits + (unit ^ (block / (8 / S::kUnits) % S::kRows * S::kColumns));
}

// One thread's part of a tile's statistics.
template <class F>
struct Lanes {
  using Real = typename F::Real;
  Real sums[kSums][Shape<F>::kOwned] = {};
  Real largest = 0;
  uint32_t differing = 0, x_nonfinite = 0, y_nonfinite = 0;

  template <bool kCareful>
  __device__ __forceinline__ void add(int lane, typename F::Word x_word, typename F::Word y_word) {
    Real x = F::decode(x_word), y = F::decode(y_word);
    differing += x_word != y_word;
    if (kCareful) {
      const bool x_finite = finite(x), y_finite = finite(y);
      x_nonfinite += !x_finite;
      y_nonfinite += !y_finite;
      x = x_finite && y_finite ? x : 0;
      y = x_finite && y_finite ? y : 0;
    }
    const Real d = sum(y, -x), change = magnitude(d);
    largest = larger(largest, change);
    sums[0][lane] = sum(sums[0][lane], change);
    sums[1][lane] = sum(sums[1][lane], product(d, d));
    sums[2][lane] = sum(sums[2][lane], product(x, y));
    sums[3][lane] = sum(sums[3][lane], product(x, x));
    sums[4][lane] = sum(sums[4][lane], product(y, y));
  }

  __device__ __forceinline__ bool all_finite() const {
    bool all = true;
    for (int lane = 0; lane < Shape<F>::kOwned; ++lane) all = all && finite(sums[3][lane]) && finite(sums[4][lane]);
    return all;
  }
};

template <class F, bool kCareful>
__device__ __forceinline__ typename F::Word mix(typename F::Word x, typename F::Word y, typename F::Real w0,
                                                typename F::Real w1) {
  // Finite values give infinities, but no NaN.
  const auto mixed = F::template encode<kCareful>(sum(product(w0, F::decode(x)), product(w1, F::decode(y))));
  return x == y ? x : mixed;
}

template <class F>
__device__ __forceinline__ typename F::Word *elements_at(int64_t address) {
  return reinterpret_cast<typename F::Word *>(static_cast<uintptr_t>(address));
}

// A tile that is whole and aligned, assuming that every value is finite.
template <class F, bool kWrite>
__device__ __forceinline__ void walk(const typename F::Word *x, const typename F::Word *y, typename F::Word *out,
                                     typename F::Real w0, typename F::Real w1, Stage<F> &stage, Lanes<F> &lanes) {
  using S = Shape<F>;
  const int thread = threadIdx.x % 32;
  for (int segment = 0; segment < S::kSegments; ++segment) {
    Unit<F> xs[S::kRows], ys[S::kRows];
    int64_t at[S::kRows];
#pragma unroll
    for (int k = 0; k < S::kRows; ++k) {
      const int unit = k * 32 + thread;
      at[k] = int64_t{unit / S::kUnits} * kBlock + segment * (S::kRows * kLanes) + unit % S::kUnits * S::kOwned;
      xs[k].raw = __ldcs(reinterpret_cast<const uint4 *>(x + at[k]));
      ys[k].raw = __ldcs(reinterpret_cast<const uint4 *>(y + at[k]));
    }
#pragma unroll
    for (int k = 0; k < S::kRows; ++k) {
      const int unit = k * 32 + thread, place = staged<F>(unit / S::kUnits, unit % S::kUnits);
      stage.x[place].raw = xs[k].raw;
      stage.y[place].raw = ys[k].raw;
      if (kWrite) {
        Unit<F> mixed;
#pragma unroll
        for (int lane = 0; lane < S::kOwned; ++lane) {
          mixed.words[lane] = mix<F, false>(xs[k].words[lane], ys[k].words[lane], w0, w1);
        }
        __stcs(reinterpret_cast<uint4 *>(out + at[k]), mixed.raw);
      }
    }
    __syncwarp();
#pragma unroll
    for (int row = 0; row < S::kRows; ++row) {
      const int place = staged<F>(thread / S::kColumns, row * S::kColumns + thread % S::kColumns);
      const Unit<F> x_row = stage.x[place], y_row = stage.y[place];
#pragma unroll
      for (int lane = 0; lane < S::kOwned; ++lane) lanes.template add<false>(lane, x_row.words[lane], y_row.words[lane]);
    }
    __syncwarp();  // also orders these writes to out before those of a careful walk
  }
}

// This thread's lanes of a tile, element by element: for the tail of a tensor, misaligned tensors, and values that are not
// finite.
template <class F, bool kWrite>
__device__ void walk_carefully(const typename F::Word *x, const typename F::Word *y, typename F::Word *out, int64_t left,
                               typename F::Real w0, typename F::Real w1, Lanes<F> &lanes) {
  using S = Shape<F>;
  const int thread = threadIdx.x % 32;
  lanes = Lanes<F>();
  for (int row = 0; row < kRowsOfBlock; ++row) {
    const int64_t begin = int64_t{thread / S::kColumns} * kBlock + row * kLanes + thread % S::kColumns * S::kOwned;
#pragma unroll
    for (int lane = 0; lane < S::kOwned; ++lane) {
      if (begin + lane >= left) break;  // padding adds nothing
      const typename F::Word x_word = x[begin + lane], y_word = y[begin + lane];
      lanes.template add<true>(lane, x_word, y_word);
      if (kWrite) out[begin + lane] = mix<F, true>(x_word, y_word, w0, w1);
    }
  }
}

// The exponent of the lowest bit set: v is a multiple of 2 to that power.
__device__ __forceinline__ int grid_of(double v) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(v));
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
  const uint64_t significand = (bits & 0xfffffffffffffull) | (exponent ? 1ull << 52 : 0);
  if (!significand) return kNoGrid;
  const double lowest = static_cast<double>(significand & (0 - significand));  // a power of two
  return static_cast<int>(__double_as_longlong(lowest) >> 52) - 1023 + (exponent ? exponent : 1) - 1075;
}

// Adds the warp's lanes in order to the sums of blocks, and these to the tile's row.
template <class F>
__device__ __forceinline__ void put_sums(const Lanes<F> &lanes, Stage<F> &stage, int64_t left, double *sums,
                                         int64_t all_blocks, double *tallies, int64_t tiles) {
  using S = Shape<F>;
  using Real = typename F::Real;
  static_assert(sizeof(Real) * kLanes * S::kBlocks <= sizeof stage && 4 * 32 * sizeof(double) <= sizeof stage, "fits");
  const int thread = threadIdx.x % 32, block = thread / S::kColumns, column = thread % S::kColumns;
  Real *row = reinterpret_cast<Real *>(&stage) + block * kLanes;
  double *mine = reinterpret_cast<double *>(&stage) + thread;
  double totals[kSums];
  for (int kind = 0; kind < kSums; ++kind) {
    for (int lane = 0; lane < S::kOwned; ++lane) row[column * S::kOwned + lane] = lanes.sums[kind][lane];
    __syncwarp();
    double total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total = sum(total, static_cast<double>(row[lane]));
    totals[kind] = total;
    if (column == 0 && int64_t{block} * kBlock < left) sums[kind * all_blocks + block] = total;
    __syncwarp();
  }
  for (int kind = 0; kind < kSums; ++kind) {
    mine[0] = totals[kind];
    mine[32] = grid_of(totals[kind]);
    __syncwarp();
    if (thread == 0) {
      double added = 0, size = 0, finest = kNoGrid;
      for (int other = 0; other < 32; other += S::kColumns) {
        added = sum(added, mine[other]);
        size = sum(size, magnitude(mine[other]));
        finest = mine[32 + other] < finest ? mine[32 + other] : finest;
      }
      tallies[(kTallies + 3 * kind) * tiles] = added;
      tallies[(kTallies + 3 * kind + 1) * tiles] = size;
      tallies[(kTallies + 3 * kind + 2) * tiles] = finest;
    }
    __syncwarp();
  }
  mine[0] = lanes.differing;
  mine[32] = static_cast<double>(lanes.largest);
  mine[64] = lanes.x_nonfinite;
  mine[96] = lanes.y_nonfinite;
  __syncwarp();
  if (thread < kTallies) {
    const double *values = reinterpret_cast<double *>(&stage) + 32 * thread;
    double tally = 0;
    for (int other = 0; other < 32; ++other) {
      tally = thread == 1 ? (values[other] > tally ? values[other] : tally) : sum(tally, values[other]);
    }
    tallies[thread * tiles] = tally;
  }
}

template <class F, bool kWrite>
__global__ void __launch_bounds__(kWarps * 32, Shape<F>::kResident)
    blend_tiles(const int64_t *records, const int32_t *owners, int64_t tiles, double *sums, int64_t all_blocks,
                double *tallies) {
  using S = Shape<F>;
  __shared__ Stage<F> stages[kWarps];
  const int64_t tile = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (tile >= tiles) return;  // uniform in a warp
  Stage<F> &stage = stages[threadIdx.x / 32];
  const int64_t *record = records + int64_t{owners[tile]} * kRecord;
  const int64_t first_block = (tile - record[kFirstTile]) * S::kBlocks;
  const int64_t left = record[kElements] - first_block * kBlock;
  const auto w0 = static_cast<typename F::Real>(__longlong_as_double(record[kShare0]));
  const auto w1 = static_cast<typename F::Real>(__longlong_as_double(record[kShare1]));
  const auto *x = elements_at<F>(record[kX]) + first_block * kBlock;
  const auto *y = elements_at<F>(record[kY]) + first_block * kBlock;
  auto *out = kWrite ? elements_at<F>(record[kOut]) + first_block * kBlock : nullptr;
  const bool whole = left >= S::kBlocks * kBlock && (record[kX] | record[kY] | record[kOut]) % 16 == 0;
  Lanes<F> lanes;
  if (whole) walk<F, kWrite>(x, y, out, w0, w1, stage, lanes);
  if (!whole || !lanes.all_finite()) walk_carefully<F, kWrite>(x, y, out, left, w0, w1, lanes);
  put_sums<F>(lanes, stage, left, sums + record[kFirstBlock] + first_block, all_blocks, tallies + tile, tiles);
}

// Adds the values to `start` in order.
__device__ double sum_in_order(double start, const double *values, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kAhead) {
    double ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) ahead[k] = begin + k < count ? values[begin + k] : 0;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) start = sum(start, ahead[k]);
  }
  return start;
}

// One column of a tensor's statistics. Sums have the same bits as when blocks are added in order. Where every block's sum is
// a multiple of 2^e, and their magnitudes add up to less than 2^(52 + e), no partial sum is rounded, so any order gives the
// same result. Otherwise one thread adds in order.
__global__ void __launch_bounds__(kAdders) add_up(const int64_t *records, const double *sums, int64_t all_blocks,
                                                  const double *tallies, int64_t all_tiles, double *statistics,
                                                  int64_t tile_elements) {
  __shared__ double added[kAdders], sizes[kAdders], grids[kAdders];
  const int64_t *record = records + int64_t{blockIdx.x} * kRecord;
  const int column = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  double *cell = statistics + int64_t{blockIdx.x} * kStatistics + column;
  const int64_t elements = record[kElements], tiles = (elements + tile_elements - 1) / tile_elements;
  const bool is_count = column == 0, is_largest = column == 4;
  const bool is_tally = column == 1 || is_largest || column >= 8;
  const int kind = column < 4 ? column - 2 : column - 3;
  const int row = column == 1 ? 0 : is_largest ? 1 : is_tally ? column - 6 : kTallies + 3 * kind;
  const double *values = tallies + row * all_tiles + record[kFirstTile];

  double total = 0, size = 0, grid = kNoGrid;
  for (int64_t tile = thread; tile < tiles && !is_count; tile += kAdders) {
    const double value = values[tile];
    total = is_largest ? (value > total ? value : total) : sum(total, value);
    if (!is_tally) {
      size = sum(size, values[all_tiles + tile]);
      grid = values[2 * all_tiles + tile] < grid ? values[2 * all_tiles + tile] : grid;
    }
  }
  added[thread] = total;
  sizes[thread] = size;
  grids[thread] = grid;
  __syncthreads();
  if (thread) return;
  const double before = *cell;
  if (is_count) {
    *cell = before + static_cast<double>(elements);
    return;
  }
  total = before;
  size = magnitude(before);
  grid = grid_of(before);
  for (int other = 0; other < kAdders; ++other) {
    total = is_largest ? (added[other] > total ? added[other] : total) : sum(total, added[other]);
    size = sum(size, sizes[other]);
    grid = grids[other] < grid ? grids[other] : grid;
  }
  const int exponent = static_cast<int>(__double_as_longlong(size) >> 52 & 0x7ff) - 1023;
  if (!is_tally && (exponent >= 52 + static_cast<int>(grid) || exponent == 1024)) {
    total = sum_in_order(before, sums + kind * all_blocks + record[kFirstBlock], (elements + kBlock - 1) / kBlock);
  }
  *cell = total;
}

template <class Word, int kCount>
struct alignas(sizeof(Word) * kCount) Pack {
  Word words[kCount];
};

// kCount elements from `first` on, or fewer at the end.
template <int kCount, class Word>
__device__ __forceinline__ Pack<Word, kCount> loaded(const Word *from, int64_t first, int64_t elements, bool aligned) {
  if (aligned && first + kCount <= elements) return *reinterpret_cast<const Pack<Word, kCount> *>(from + first);
  Pack<Word, kCount> pack = {};
  for (int k = 0; k < kCount && first + k < elements; ++k) pack.words[k] = from[first + k];
  return pack;
}

template <int kCount, class Word>
__device__ __forceinline__ void put(const Pack<Word, kCount> &pack, Word *to, int64_t first, int64_t elements, bool aligned) {
  if (aligned && first + kCount <= elements) {
    *reinterpret_cast<Pack<Word, kCount> *>(to + first) = pack;
  } else {
    for (int k = 0; k < kCount && first + k < elements; ++k) to[first + k] = pack.words[k];
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads) mix_many(const int64_t *addresses, const double *weights, int32_t inputs,
                                                     const int64_t *out, int64_t elements, bool aligned) {
  constexpr int kCount = 16 / sizeof(typename F::Word);
  using Real = typename F::Real;
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  if (at >= elements) return;
  const auto first = loaded<kCount>(elements_at<F>(addresses[0]), at, elements, aligned);
  Real mixed[kCount];
  bool equal[kCount];
  for (int k = 0; k < kCount; ++k) {
    mixed[k] = product(static_cast<Real>(weights[0]), F::decode(first.words[k]));
    equal[k] = true;
  }
  for (int32_t input = 1; input < inputs; ++input) {
    const auto side = loaded<kCount>(elements_at<F>(addresses[input]), at, elements, aligned);
    for (int k = 0; k < kCount; ++k) {
      mixed[k] = sum(mixed[k], product(static_cast<Real>(weights[input]), F::decode(side.words[k])));
      equal[k] = equal[k] && side.words[k] == first.words[k];
    }
  }
  Pack<typename F::Word, kCount> words;
  for (int k = 0; k < kCount; ++k) words.words[k] = equal[k] ? first.words[k] : F::template encode<true>(mixed[k]);
  put<kCount>(words, elements_at<F>(*out), at, elements, aligned);
}

template <class Target, class Real>
__device__ __forceinline__ void put_rounded(Real value, int64_t out, int64_t at) {
  elements_at<Target>(out)[at] = Target::template encode<true>(value);
}

// One element per thread: casts are rare, and a kernel for each pair of formats takes long to compile.
template <class Source>
__global__ void __launch_bounds__(kThreads) round_to(int32_t target, const int64_t *x, const int64_t *out, int64_t elements) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= elements) return;
  const auto value = Source::decode(elements_at<Source>(*x)[at]);
  switch (target) {
    case LSWAP_F64: return put_rounded<F64>(value, *out, at);
    case LSWAP_F32: return put_rounded<F32>(value, *out, at);
    case LSWAP_F16: return put_rounded<F16>(value, *out, at);
    case LSWAP_BF16: return put_rounded<BF16>(value, *out, at);
    case LSWAP_F8_E4M3: return put_rounded<F8E4M3>(value, *out, at);
    default: return put_rounded<F8E5M2>(value, *out, at);
  }
}

template <class Call>
int32_t with_format(int32_t dtype, const Call &call) {
  switch (dtype) {
    case LSWAP_F64: return call(F64());
    case LSWAP_F32: return call(F32());
    case LSWAP_F16: return call(F16());
    case LSWAP_BF16: return call(BF16());
    case LSWAP_F8_E4M3: return call(F8E4M3());
    case LSWAP_F8_E5M2: return call(F8E5M2());
    default: return cudaErrorInvalidValue;
  }
}

template <class... Parameters>
int32_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, void *stream, Parameters... parameters) {
  void *arguments[] = {&parameters...};
  const cudaError_t status =
      cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), arguments, 0, static_cast<cudaStream_t>(stream));
  const cudaError_t earlier = cudaGetLastError();
  return status != cudaSuccess ? status : earlier;
}

dim3 grid_for(int64_t items, int64_t per_block) { return dim3(static_cast<unsigned>((items + per_block - 1) / per_block)); }

}  // namespace
}  // namespace lswap

extern "C" {

int32_t lswap_gpu_abi(void) { return LSWAP_GPU_ABI; }

const char *lswap_gpu_error(int32_t status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int32_t lswap_gpu_tile_blocks(int32_t dtype) {
  return lswap::with_format(dtype, [](auto format) { return lswap::Shape<decltype(format)>::kBlocks; });
}

int32_t lswap_gpu_blend(int32_t dtype, const int64_t *records, const int32_t *owners, int64_t tiles, double *sums,
                        int64_t all_blocks, double *tallies, int32_t write, void *stream) {
  return lswap::with_format(dtype, [=](auto format) {
    using F = decltype(format);
    return lswap::launch(write ? lswap::blend_tiles<F, true> : lswap::blend_tiles<F, false>,
                         lswap::grid_for(tiles, lswap::kWarps), lswap::kWarps * 32, stream, records, owners, tiles, sums,
                         all_blocks, tallies);
  });
}

int32_t lswap_gpu_add_up(int32_t dtype, const int64_t *records, int64_t tensors, const double *sums, int64_t all_blocks,
                         const double *tallies, int64_t all_tiles, double *statistics, void *stream) {
  const int64_t tile_elements = int64_t{lswap_gpu_tile_blocks(dtype)} * lswap::kBlock;
  return lswap::launch(lswap::add_up, dim3(static_cast<unsigned>(tensors), lswap::kStatistics), lswap::kAdders, stream,
                       records, sums, all_blocks, tallies, all_tiles, statistics, tile_elements);
}

int32_t lswap_gpu_blend_many(int32_t dtype, const int64_t *addresses, const double *weights, int32_t inputs,
                             const int64_t *out, int64_t elements, int32_t aligned, void *stream) {
  return lswap::with_format(dtype, [=](auto format) {
    using F = decltype(format);
    constexpr int64_t per_block = lswap::kThreads * (16 / sizeof(typename F::Word));
    return lswap::launch(lswap::mix_many<F>, lswap::grid_for(elements, per_block), lswap::kThreads, stream, addresses,
                         weights, inputs, out, elements, aligned != 0);
  });
}

int32_t lswap_gpu_cast(int32_t source, int32_t target, const int64_t *x, const int64_t *out, int64_t elements, void *stream) {
  if (target < 0 || target >= LSWAP_DTYPES) return cudaErrorInvalidValue;
  return lswap::with_format(source, [=](auto format) {
    return lswap::launch(lswap::round_to<decltype(format)>, lswap::grid_for(elements, lswap::kThreads), lswap::kThreads,
                         stream, target, x, out, elements);
  });
}

}  // extern "C"
