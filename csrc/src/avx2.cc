// Vectors of 32 bytes on x86-64. The whole of this file after the pragma is compiled for AVX2; nothing in it runs
// before runs() has returned true.
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "isa.h"

#define LSWAP_VECTOR_BYTES 32
#define LSWAP_NAME "avx2"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma")
#endif

namespace lswap {
namespace avx2 {
namespace {

#include "vectors.inc.h"

LSWAP_INLINE Bits32 widen(Bits16 v) { return Bits32(_mm256_cvtepu16_epi32(__m128i(v))); }
LSWAP_INLINE Bits32 widen(Bits8 v) { return Bits32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(v)))); }
LSWAP_INLINE __m128i packed(Bits32 v) {
  return _mm_packus_epi32(_mm256_castsi256_si128(__m256i(v)), _mm256_extracti128_si256(__m256i(v), 1));
}
LSWAP_INLINE Bits16 narrow_16(Bits32 v) { return Bits16(packed(v)); }
LSWAP_INLINE Bits8 narrow_8(Bits32 v) {
  const __m128i pairs = packed(v);
  return bits_as<Bits8>(_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)));
}
LSWAP_INLINE Floats largest(Floats a, Floats b) { return _mm256_max_ps(a, b); }
LSWAP_INLINE Doubles largest(Doubles a, Doubles b) { return _mm256_max_pd(a, b); }
LSWAP_INLINE Floats fused(float a, Floats b, Floats c) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c); }
LSWAP_INLINE void stream_16(uint8_t *to, Vector<int64_t, 2> v) { _mm_stream_si128(reinterpret_cast<__m128i *>(to), __m128i(v)); }
LSWAP_INLINE void stream_whole(uint8_t *to, Whole v) { _mm256_stream_si256(reinterpret_cast<__m256i *>(to), __m256i(v)); }
LSWAP_INLINE void end_stream() { _mm_sfence(); }
LSWAP_INLINE Bits32 high_halves(Bits32 even, Bits32 odd) {
  return Bits32(_mm256_blend_epi16(_mm256_srli_epi32(__m256i(even), 16), __m256i(odd), 0xaa));
}

#include "formats.inc.h"

// F16C rounds to nearest, ties to even, keeps subnormals, and takes the canonical NaN to the canonical NaN.
struct F16 : Format<float, uint16_t> {
  static constexpr bool kKeepsEqual = true;
  LSWAP_INLINE Values decode(Codes codes) { return _mm256_cvtph_ps(__m128i(codes)); }
  LSWAP_INLINE Codes encode(Values v) { return Codes(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
};

bool runs() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
}

#include "kernels.inc.h"

}  // namespace
}  // namespace avx2

const Isa &avx2_isa() { return avx2::kTable; }

}  // namespace lswap
#if defined(__clang__)
#pragma clang attribute pop
#endif
