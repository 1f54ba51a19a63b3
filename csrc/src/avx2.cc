// Vectors of 32 bytes on x86-64. The whole of this file after the pragma is compiled for AVX2; nothing in it runs
// before runs() has said yes.
#include <immintrin.h>

#include <type_traits>

#include "isa.h"

#define LSWAP_VECTOR_BYTES 32
#define LSWAP_NAME "avx2"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif

namespace lswap {
namespace avx2 {
namespace {

#include "formats.inc.h"

// F16C rounds to nearest, ties to even, keeps subnormals, and takes the canonical NaN to the canonical NaN.
struct F16 : Format<float, uint16_t> {
  static constexpr bool kKeepsEqual = true;
  LSWAP_INLINE Values decode(Codes codes) { return _mm256_cvtph_ps(__m128i(codes)); }
  LSWAP_INLINE Codes encode(Values v) { return Codes(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
};

LSWAP_INLINE F32::Values largest(F32::Values a, F32::Values b) { return _mm256_max_ps(a, b); }
LSWAP_INLINE F64::Values largest(F64::Values a, F64::Values b) { return _mm256_max_pd(a, b); }

bool runs() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

#include "kernels.inc.h"

}  // namespace
}  // namespace avx2

const Isa &avx2_isa() { return avx2::kTable; }

}  // namespace lswap
#if defined(__clang__)
#pragma clang attribute pop
#endif
