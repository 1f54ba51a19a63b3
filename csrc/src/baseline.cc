// Vectors of 16 bytes, which every x86-64 and every aarch64 processor has.
#include <type_traits>
#include <utility>

#include "isa.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define LSWAP_VECTOR_BYTES 16
#if defined(__aarch64__)
#define LSWAP_NAME "neon"
#else
#define LSWAP_NAME "baseline"
#endif

namespace lswap {
namespace baseline {
namespace {

#include "vectors.inc.h"

#if defined(__SSE2__)
LSWAP_INLINE Bits32 widen(Bits16 v) {
  return Bits32(_mm_unpacklo_epi16(_mm_cvtsi64_si128(bits_as<int64_t>(v)), _mm_setzero_si128()));
}
LSWAP_INLINE Bits32 widen(Bits8 v) {
  const __m128i zero = _mm_setzero_si128(), pairs = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bits_as<int32_t>(v)), zero);
  return Bits32(_mm_unpacklo_epi16(pairs, zero));
}
// SSE2 has no unsigned saturation from 32 bits, so values get the sign that signed saturation expects.
LSWAP_INLINE Bits16 narrow_16(Bits32 v) {
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32(__m128i(v), 16), 16);
  return bits_as<Bits16>(_mm_cvtsi128_si64(_mm_packs_epi32(extended, extended)));
}
LSWAP_INLINE Bits8 narrow_8(Bits32 v) {
  const __m128i pairs = _mm_packs_epi32(__m128i(v), __m128i(v));
  return bits_as<Bits8>(_mm_cvtsi128_si32(_mm_packus_epi16(pairs, pairs)));
}
LSWAP_INLINE Floats largest(Floats a, Floats b) { return _mm_max_ps(a, b); }
LSWAP_INLINE Doubles largest(Doubles a, Doubles b) { return _mm_max_pd(a, b); }
LSWAP_INLINE void stream_16(uint8_t *to, Vector<int64_t, 2> v) { _mm_stream_si128(reinterpret_cast<__m128i *>(to), __m128i(v)); }
LSWAP_INLINE void end_stream() { _mm_sfence(); }
#else
LSWAP_INLINE Bits32 widen(Bits16 v) { return __builtin_convertvector(v, Bits32); }
LSWAP_INLINE Bits32 widen(Bits8 v) { return __builtin_convertvector(v, Bits32); }
LSWAP_INLINE Bits16 narrow_16(Bits32 v) { return __builtin_convertvector(v, Bits16); }
LSWAP_INLINE Bits8 narrow_8(Bits32 v) { return __builtin_convertvector(v, Bits8); }
LSWAP_INLINE Floats largest(Floats a, Floats b) { return a > b ? a : b; }
LSWAP_INLINE Doubles largest(Doubles a, Doubles b) { return a > b ? a : b; }
LSWAP_INLINE void stream_16(uint8_t *to, Vector<int64_t, 2> v) { store(to, v); }
LSWAP_INLINE void end_stream() {}
#endif
LSWAP_INLINE void stream_whole(uint8_t *to, Whole v) { stream_16(to, v); }
#if defined(__aarch64__)
LSWAP_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// The product is exact in fp64, so rounding the sum twice is rounding it once, unless the first rounding ends halfway
// between two values of fp32: a call for those few, and for what may be subnormal, whose halves are elsewhere.
LSWAP_INLINE float fused(float a, float b, float c) {
  const double sum = double(a) * double(b) + double(c);
  const bool halfway = (bits_as<uint64_t>(sum) & 0x1fffffff) == 0x10000000;
  const bool tiny = __builtin_fabs(sum) < double(__FLT_MIN__) && sum != 0;
  return __builtin_expect(halfway || tiny, 0) ? __builtin_fmaf(a, b, c) : float(sum);
}
#endif
LSWAP_INLINE Floats fused(float a, Floats b, Floats c) {
  for (size_t i = 0; i < sizeof(Floats) / sizeof(float); ++i) c[i] = fused(a, b[i], c[i]);
  return c;
}
LSWAP_INLINE Bits32 high_halves(Bits32 even, Bits32 odd) { return (even >> 16) | (odd & 0xffff0000u); }

#include "formats.inc.h"

using F16 = GenericF16;

bool runs() { return true; }

#include "kernels.inc.h"

}  // namespace
}  // namespace baseline

const Isa &baseline_isa() { return baseline::kTable; }

}  // namespace lswap
