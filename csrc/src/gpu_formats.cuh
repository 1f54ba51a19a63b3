// The element types on a CUDA device, one element at a time. The code is the same for every architecture and for the emulation
// on a CPU, so the hardware converts only fp16, and integer arithmetic the rest. A format has a Word (an element's bits), a
// Real (the compute type), and
//   decode(word) -> real  exactly;
//   encode(real) -> word  to nearest, ties to even, NaN canonical.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace lswap {

// Named operations are rounded one by one; a * b + c might be contracted.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }

__device__ __forceinline__ float magnitude(float v) { return __uint_as_float(__float_as_uint(v) & 0x7fffffffu); }
__device__ __forceinline__ double magnitude(double v) {
  return __longlong_as_double(__double_as_longlong(v) & 0x7fffffffffffffffll);
}
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ bool finite(float v) { return (__float_as_uint(v) & 0x7fffffffu) < 0x7f800000u; }
__device__ __forceinline__ bool finite(double v) {
  return (__double_as_longlong(v) & 0x7fffffffffffffffll) < (0x7ffll << 52);
}

// fp64 to fp32 with the last bit set where the result is inexact (round to odd). A second rounding, to a type with at least
// two bits less, then gives the same result as one rounding.
__device__ __forceinline__ float to_odd(double v) {
  const float near = __double2float_rn(v);
  const uint32_t away = magnitude(static_cast<double>(near)) > magnitude(v);
  const uint32_t inexact = static_cast<double>(near) != v;
  return __uint_as_float((__float_as_uint(near) - away) | inexact);
}
__device__ __forceinline__ float to_odd(float v) { return v; }
__device__ __forceinline__ float to_nearest(double v) { return __double2float_rn(v); }
__device__ __forceinline__ float to_nearest(float v) { return v; }

__device__ __forceinline__ float from_half(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }

// kNans: whether a value may be NaN; if not, there is no test for it.
struct F64 {
  using Word = uint64_t;
  using Real = double;
  static __device__ __forceinline__ double decode(Word w) { return __longlong_as_double(static_cast<long long>(w)); }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    return kNans && v != v ? 0x7ff8000000000000ull : static_cast<Word>(__double_as_longlong(static_cast<double>(v)));
  }
};

struct F32 {
  using Word = uint32_t;
  using Real = float;
  static __device__ __forceinline__ float decode(Word w) { return __uint_as_float(w); }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    return kNans && v != v ? 0x7fc00000u : __float_as_uint(to_nearest(v));
  }
};

struct BF16 {
  using Word = uint16_t;
  using Real = float;
  static __device__ __forceinline__ float decode(Word w) { return __uint_as_float(static_cast<uint32_t>(w) << 16); }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    const uint32_t wide = __float_as_uint(to_odd(v));
    const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1)) >> 16;
    return static_cast<Word>(kNans && v != v ? 0x7fc0u : rounded);
  }
};

struct F16 {
  using Word = uint16_t;
  using Real = float;
  static __device__ __forceinline__ float decode(Word w) { return from_half(w); }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    const Word rounded = __half_as_ushort(__float2half_rn(to_odd(v)));
    return kNans && v != v ? Word{0x7e00} : rounded;
  }
};

// Bits of an fp32 as fp8 with kMantissa bits of mantissa; values that are too large become kOverflow. Without the sign.
template <int kMantissa, int kBias, uint32_t kOverflow>
__device__ __forceinline__ uint32_t fp8_magnitude(uint32_t wide) {
  constexpr int kShift = 23 - kMantissa;
  // Added to a subnormal, this power of two leaves a sum whose last bit is worth one step of the format.
  constexpr uint32_t kRuler = static_cast<uint32_t>(127 + 1 - kBias + kShift) << 23;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(127 + 1 - kBias) << 23;
  const uint32_t bits = wide & 0x7fffffffu;
  const uint32_t subnormal = __float_as_uint(sum(__uint_as_float(bits), __uint_as_float(kRuler))) - kRuler;
  const uint32_t rounded = (bits + (1u << (kShift - 1)) - 1 + ((bits >> kShift) & 1)) >> kShift;
  const uint32_t normal = rounded - (static_cast<uint32_t>(127 - kBias) << kMantissa);
  return bits < kSmallestNormal ? subnormal : normal < kOverflow ? normal : kOverflow;
}

// Without infinities: the pattern above the largest number is the only NaN, and the result of overflow.
struct F8E4M3 {
  using Word = uint8_t;
  using Real = float;
  static __device__ __forceinline__ float decode(Word w) {
    // An fp16 with one more bit of exponent and a bias 8 higher, subnormals included.
    const uint32_t bits = w & 0x7fu;
    return bits == 0x7fu ? __uint_as_float(0x7fc00000u) : product(from_half((w & 0x80u) << 8 | bits << 7), 256.0f);
  }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    const uint32_t wide = __float_as_uint(to_odd(v)), code = fp8_magnitude<3, 7, 0x7fu>(wide);
    return static_cast<Word>((kNans && v != v) || code == 0x7fu ? 0x7fu : code | (wide >> 24 & 0x80u));
  }
};

struct F8E5M2 {
  using Word = uint8_t;
  using Real = float;
  static __device__ __forceinline__ float decode(Word w) { return from_half(static_cast<uint32_t>(w) << 8); }
  template <bool kNans, class R>
  static __device__ __forceinline__ Word encode(R v) {
    const uint32_t wide = __float_as_uint(to_odd(v)), code = fp8_magnitude<2, 15, 0x7cu>(wide);
    return static_cast<Word>(kNans && v != v ? 0x7fu : code | (wide >> 24 & 0x80u));
  }
};

}  // namespace lswap
