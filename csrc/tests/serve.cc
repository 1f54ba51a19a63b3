// The kernels behind a pipe, so that the conformance suite can run builds for other processors under an emulator. Reads one
// request after the other from standard input and answers on standard output; see tests/kernels/conformance/emulated.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "lswap/kernels.h"

namespace {

enum Operation : int32_t { kIsaRuns, kBlendStats, kBlendMany, kCast, kLowRank };

struct Request {
  int32_t operation, isa, dtype, target;
  uint64_t count, input_bytes, output_bytes;
  uint32_t inputs, threads;
  int32_t streamed;
  uint32_t misalignment[3];  // of the inputs (the second also of all after it) and of the output, from 64 bytes
  double weight;
  lswap_stats stats;
  uint64_t rank, columns, first;
};

void read(void *to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}

constexpr uint8_t kPoison = 0xa5;
constexpr size_t kGuard = 256;

// Bytes with poison around them.
class Buffer {
 public:
  Buffer(size_t bytes, uint32_t misalignment) : whole_(bytes + 2 * kGuard + 128, kPoison), bytes_(bytes) {
    begin_ = kGuard + misalignment + (64 - (reinterpret_cast<uintptr_t>(whole_.data()) + kGuard) % 64) % 64;
  }
  uint8_t *data() { return whole_.data() + begin_; }
  size_t size() const { return bytes_; }
  bool guarded() const {
    for (size_t i = 0; i < whole_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + bytes_) && whole_[i] != kPoison) return false;
    }
    return true;
  }

 private:
  std::vector<uint8_t> whole_;
  size_t bytes_, begin_;
};

}  // namespace

int main() {
  for (Request request;;) {
    read(&request, sizeof request);
    std::vector<double> weights(request.inputs);
    read(weights.data(), weights.size() * sizeof(double));
    std::vector<Buffer> inputs;
    std::vector<const void *> addresses;
    for (uint32_t i = 0; i < request.inputs; ++i) {
      inputs.emplace_back(request.input_bytes, request.misalignment[i ? 1 : 0]);
    }
    for (Buffer &input : inputs) {
      read(input.data(), input.size());
      addresses.push_back(input.data());
    }
    Buffer out(request.output_bytes, request.misalignment[2]);
    int32_t status = 0;
    switch (request.operation) {
      case kIsaRuns:
        status = lswap_isa_runs(request.isa);
        break;
      case kBlendStats:
        status = lswap_blend_stats(request.isa, request.dtype, addresses[0], addresses[1], request.weight,
                                   request.output_bytes || !request.count ? out.data() : nullptr, request.count,
                                   request.threads, request.streamed, &request.stats);
        break;
      case kBlendMany:
        status = lswap_blend_many(request.isa, request.dtype, addresses.data(), weights.data(), request.inputs,
                                  out.data(), request.count, request.threads);
        break;
      case kCast:
        status = lswap_cast(request.isa, request.dtype, addresses[0], request.target, out.data(), request.count,
                            request.threads);
        break;
      case kLowRank:
        status = lswap_low_rank(request.isa, static_cast<const float *>(addresses[0]),
                                static_cast<const float *>(addresses[1]), request.rank, request.columns, request.weight,
                                request.first, reinterpret_cast<float *>(out.data()), request.count);
        break;
    }
    if (!out.guarded()) return 3;
    std::fwrite(&status, 1, sizeof status, stdout);
    std::fwrite(&request.stats, 1, sizeof request.stats, stdout);
    std::fwrite(out.data(), 1, out.size(), stdout);
    std::fflush(stdout);
  }
}
