// Half precision as csrc/src/gpu_formats.cuh uses it, on a CPU; see cuda_runtime.h beside this.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half v) { return v.bits; }
inline float __half2float(__half v) {
  _Float16 half;
  std::memcpy(&half, &v.bits, sizeof half);
  return static_cast<float>(half);
}
inline __half __float2half_rn(float v) {
  const _Float16 half = static_cast<_Float16>(v);
  __half rounded;
  std::memcpy(&rounded.bits, &half, sizeof half);
  return rounded;
}
