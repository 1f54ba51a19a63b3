// Statistics of tensors in open files, read in pieces that stay in the L2 cache and are compared there.
#include <algorithm>
#include <cerrno>

#include <sys/types.h>
#include <unistd.h>

#include "isa.h"

namespace {

constexpr size_t kLine = 64;  // bytes of a cache line
constexpr uint32_t kMostRanges = 8;

// The first address from `to` on with the same offset in a cache line as byte `at` of a file. Where memory has an offset in its
// page a few bytes larger than the data copied to it, a processor waits for its own stores; see lswap_core/io/per_thread.py.
uint8_t *as_in_file(uint8_t *to, uint64_t at) { return to + ((at - reinterpret_cast<uintptr_t>(to)) & (kLine - 1)); }

// Reads all `bytes` bytes. Returns a status.
int32_t fill(uint8_t *to, int32_t fd, uint64_t at, size_t bytes) {
  while (bytes) {
    const ssize_t got = pread(fd, to, bytes, off_t(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return LSWAP_READ_FAILED;
    if (got == 0) return LSWAP_FILE_ENDED;
    to += got;
    at += uint64_t(got);
    bytes -= size_t(got);
  }
  return LSWAP_OK;
}

}  // namespace

extern "C" int32_t lswap_stats_files(int32_t isa, int32_t dtype, const struct lswap_range *ranges, uint32_t range_count,
                                     const struct lswap_pair *pairs, uint32_t pair_count, uint64_t count,
                                     uint8_t *scratch, uint64_t scratch_bytes, struct lswap_stats *stats,
                                     uint32_t *failed, int32_t *error) {
  if (!range_count || range_count > kMostRanges) return LSWAP_NO_SUCH_RANGES;
  // A call for no elements checks the instruction set and the dtype.
  const int32_t status = lswap_blend_stats(isa, dtype, nullptr, nullptr, 0, nullptr, 0, 1, 0, stats);
  if (status != LSWAP_OK) return status;
  const size_t size = lswap::kSizes[dtype], block_bytes = lswap::kBlock * size;
  const size_t share = size_t(scratch_bytes) / range_count, piece_bytes = share < kLine ? 0 : (share - kLine) / block_bytes * block_bytes;
  if (!piece_bytes) return LSWAP_TOO_LITTLE_SCRATCH;
  uint8_t *pieces[kMostRanges];
  for (uint64_t begin = 0, total = count * size; begin < total; begin += piece_bytes) {
    const size_t bytes = size_t(std::min<uint64_t>(piece_bytes, total - begin));
    for (uint32_t k = 0; k < range_count; ++k) {
      const uint64_t at = ranges[k].begin + begin;
      pieces[k] = as_in_file(scratch + k * share, at);
      const int32_t read = fill(pieces[k], ranges[k].descriptor, at, bytes);
      if (read != LSWAP_OK) {
        *failed = k;
        *error = errno;
        return read;
      }
    }
    for (uint32_t k = 0; k < pair_count; ++k) {
      lswap_blend_stats(isa, dtype, pieces[pairs[k].x], pieces[pairs[k].y], 0, nullptr,
                        bytes / size, 1, 0, stats + k);
    }
  }
  return LSWAP_OK;
}
