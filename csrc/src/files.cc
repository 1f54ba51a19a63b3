// Statistics of tensors that lie in open files: read in pieces that stay in the second-level cache, compared there.
#include <algorithm>
#include <cerrno>

#include <sys/types.h>
#include <unistd.h>

#include "isa.h"

namespace {

// All of `bytes` bytes, or why not.
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
  // A call for no elements tells whether the instruction set and the type are known.
  const int32_t status = lswap_blend_stats(isa, dtype, nullptr, nullptr, 0, nullptr, 0, 1, 0, stats);
  if (status != LSWAP_OK) return status;
  const size_t size = lswap::kSizes[dtype], block_bytes = lswap::kBlock * size;
  const size_t piece_bytes = size_t(scratch_bytes) / range_count / block_bytes * block_bytes;
  if (!piece_bytes) return LSWAP_TOO_LITTLE_SCRATCH;
  for (uint64_t begin = 0, total = count * size; begin < total; begin += piece_bytes) {
    const size_t bytes = size_t(std::min<uint64_t>(piece_bytes, total - begin));
    for (uint32_t k = 0; k < range_count; ++k) {
      const int32_t read = fill(scratch + k * piece_bytes, ranges[k].descriptor, ranges[k].begin + begin, bytes);
      if (read != LSWAP_OK) {
        *failed = k;
        *error = errno;
        return read;
      }
    }
    for (uint32_t k = 0; k < pair_count; ++k) {
      lswap_blend_stats(isa, dtype, scratch + pairs[k].x * piece_bytes, scratch + pairs[k].y * piece_bytes, 0, nullptr,
                        bytes / size, 1, 0, stats + k);
    }
  }
  return LSWAP_OK;
}
