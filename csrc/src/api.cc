// The C functions. They choose instruction set, dtype and number of threads.
#include <algorithm>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "isa.h"

namespace lswap {
namespace {

using Table = const Isa &(*)();

constexpr Table kBestFirst[] = {
#if defined(__x86_64__)
    avx512_isa, avx2_isa,
#endif
    baseline_isa};
constexpr int32_t kIsas = int32_t(sizeof kBestFirst / sizeof kBestFirst[0]);

const Isa *usable(int32_t number) {
  if (number < 0 || number >= kIsas || !kBestFirst[number]().runs()) return nullptr;
  return &kBestFirst[number]();
}

bool known(int32_t dtype) { return dtype >= 0 && dtype < LSWAP_DTYPES; }

// Blocks that a single thread takes at once: their sums fit on the stack.
constexpr size_t kGroup = 64;

// Calls work(part, first, end) for `threads` contiguous parts of [0, blocks). Where a thread cannot be started, the caller's
// thread does its part.
template <class Work>
void divide(size_t blocks, uint32_t threads, const Work &work) {
  const size_t parts = std::max<size_t>(1, std::min<size_t>(threads, blocks));
  std::vector<std::thread> others;
  for (size_t part = 1; part < parts; ++part) {
    const size_t first = blocks * part / parts, end = blocks * (part + 1) / parts;
    try {
      others.emplace_back([=, &work] { work(part, first, end); });
    } catch (const std::system_error &) {
      work(part, first, end);
    }
  }
  work(size_t(0), size_t(0), blocks / parts);
  for (std::thread &other : others) other.join();
}

void add(lswap_stats *stats, const double *sums, size_t blocks) {
  for (; blocks; --blocks, sums += kSums) {
    stats->sum_abs += sums[0];
    stats->sum_squares += sums[1];
    stats->dot += sums[2];
    stats->x_squares += sums[3];
    stats->y_squares += sums[4];
  }
}

void add(lswap_stats *stats, const Counts &counts) {
  stats->max_abs = std::max(stats->max_abs, counts.max_abs);
  stats->differing += counts.differing;
  stats->x_nonfinite += counts.x_nonfinite;
  stats->y_nonfinite += counts.y_nonfinite;
}

struct Blend {
  BlendStats kernel;
  size_t size;  // bytes of an element
  const uint8_t *x, *y;
  double weight;
  uint8_t *out;
  size_t count;

  void run(size_t first_block, size_t end_block, double *sums, Counts *counts) const {
    const size_t begin = first_block * kBlock, end = std::min(count, end_block * kBlock), at = begin * size;
    kernel(x + at, y + at, weight, out ? out + at : nullptr, end - begin, sums, counts);
  }

  void alone(size_t blocks, lswap_stats *stats) const {
    double sums[kGroup * kSums];
    for (size_t first = 0; first < blocks; first += kGroup) {
      const size_t end = std::min(blocks, first + kGroup);
      Counts counts;
      run(first, end, sums, &counts);
      add(stats, sums, end - first);
      add(stats, counts);
    }
  }

  // Keeps every block's sums, since they must be added up in order.
  bool together(size_t blocks, uint32_t threads, lswap_stats *stats) const {
    std::vector<double> sums;
    std::vector<Counts> counts;
    try {
      sums.resize(blocks * kSums);
      counts.resize(std::min<size_t>(threads, blocks));
    } catch (const std::bad_alloc &) {
      return false;
    }
    divide(blocks, threads,
           [&](size_t part, size_t first, size_t end) { run(first, end, &sums[first * kSums], &counts[part]); });
    add(stats, sums.data(), blocks);
    for (const Counts &part : counts) add(stats, part);
    return true;
  }
};

}  // namespace
}  // namespace lswap

using lswap::kBlock;

extern "C" {

int32_t lswap_abi(void) { return LSWAP_ABI; }

const char *lswap_isa_name(int32_t isa) {
  return isa >= 0 && isa < lswap::kIsas ? lswap::kBestFirst[isa]().name : nullptr;
}

int32_t lswap_isa_runs(int32_t isa) { return lswap::usable(isa) != nullptr; }

int32_t lswap_blend_stats(int32_t isa, int32_t dtype, const void *x, const void *y, double weight, void *out,
                          uint64_t count, uint32_t threads, int32_t streamed, lswap_stats *stats) {
  const lswap::Isa *with = lswap::usable(isa);
  if (!with) return LSWAP_NO_SUCH_ISA;
  if (!lswap::known(dtype)) return LSWAP_NO_SUCH_DTYPE;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % lswap::kStreamed == 0;
  const auto &kernels = !out ? with->stats : streamed && aligned ? with->blend_stats_streamed : with->blend_stats;
  const lswap::Blend blend = {kernels[dtype],
                              lswap::kSizes[dtype],
                              static_cast<const uint8_t *>(x),
                              static_cast<const uint8_t *>(y),
                              weight,
                              static_cast<uint8_t *>(out),
                              size_t(count)};
  const size_t blocks = (size_t(count) + kBlock - 1) / kBlock;
  if (threads < 2 || blocks < 2 || !blend.together(blocks, threads, stats)) blend.alone(blocks, stats);
  return LSWAP_OK;
}

int32_t lswap_blend_many(int32_t isa, int32_t dtype, const void *const *inputs, const double *weights,
                         uint32_t input_count, void *out, uint64_t count, uint32_t threads) {
  const lswap::Isa *with = lswap::usable(isa);
  if (!with) return LSWAP_NO_SUCH_ISA;
  if (!lswap::known(dtype)) return LSWAP_NO_SUCH_DTYPE;
  const size_t total = size_t(count), size = lswap::kSizes[dtype];
  lswap::divide((total + kBlock - 1) / kBlock, threads, [&](size_t, size_t first, size_t end) {
    const size_t begin = first * kBlock, stop = std::min(total, end * kBlock);
    with->blend_many[dtype](reinterpret_cast<const uint8_t *const *>(inputs), weights, input_count, begin,
                            static_cast<uint8_t *>(out) + begin * size, stop - begin);
  });
  return LSWAP_OK;
}

int32_t lswap_cast(int32_t isa, int32_t source, const void *x, int32_t target, void *out, uint64_t count,
                   uint32_t threads) {
  const lswap::Isa *with = lswap::usable(isa);
  if (!with) return LSWAP_NO_SUCH_ISA;
  if (!lswap::known(source) || !lswap::known(target)) return LSWAP_NO_SUCH_DTYPE;
  const size_t total = size_t(count);
  lswap::divide((total + kBlock - 1) / kBlock, threads, [&](size_t, size_t first, size_t end) {
    const size_t begin = first * kBlock, stop = std::min(total, end * kBlock);
    with->cast[source][target](static_cast<const uint8_t *>(x) + begin * lswap::kSizes[source],
                               static_cast<uint8_t *>(out) + begin * lswap::kSizes[target], stop - begin);
  });
  return LSWAP_OK;
}

int32_t lswap_low_rank(int32_t isa, const float *left, const float *right, uint64_t rank, uint64_t columns, double scale,
                       uint64_t first, float *change, uint64_t count) {
  const lswap::Isa *with = lswap::usable(isa);
  if (!with) return LSWAP_NO_SUCH_ISA;
  while (count) {  // the rest of a row, then whole rows, then a section of a row
    const size_t row = size_t(first / columns), column = size_t(first % columns);
    const bool whole = !column && count >= columns;
    const size_t rows = whole ? size_t(count / columns) : 1;
    const size_t width = whole ? size_t(columns) : std::min<size_t>(size_t(columns) - column, size_t(count));
    with->low_rank(left + row * rank, right + column, size_t(rank), size_t(columns), rows, width, float(scale), change);
    first += rows * width;
    change += rows * width;
    count -= rows * width;
  }
  return LSWAP_OK;
}

}  // extern "C"
