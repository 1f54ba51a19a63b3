// Vectors of 64 bytes on x86-64. The whole of this file after the pragma is compiled for AVX-512; nothing in it runs
// before runs() has returned true.
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "isa.h"

#define LSWAP_VECTOR_BYTES 64
#define LSWAP_NAME "avx512"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace lswap {
namespace avx512 {
namespace {

#include "vectors.inc.h"

LSWAP_INLINE Bits32 widen(Bits16 v) { return __builtin_convertvector(v, Bits32); }
LSWAP_INLINE Bits32 widen(Bits8 v) { return __builtin_convertvector(v, Bits32); }
LSWAP_INLINE Bits16 narrow_16(Bits32 v) { return __builtin_convertvector(v, Bits16); }
LSWAP_INLINE Bits8 narrow_8(Bits32 v) { return __builtin_convertvector(v, Bits8); }
LSWAP_INLINE Floats largest(Floats a, Floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
LSWAP_INLINE Doubles largest(Doubles a, Doubles b) { return _mm512_maskz_max_pd(0xff, a, b); }
LSWAP_INLINE Floats fused(float a, Floats b, Floats c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
LSWAP_INLINE void stream_16(uint8_t *to, Vector<int64_t, 2> v) { _mm_stream_si128(reinterpret_cast<__m128i *>(to), __m128i(v)); }
LSWAP_INLINE void stream_whole(uint8_t *to, Whole v) { _mm512_stream_si512(reinterpret_cast<__m512i *>(to), __m512i(v)); }
LSWAP_INLINE void end_stream() { _mm_sfence(); }
LSWAP_INLINE Bits32 high_halves(Bits32 even, Bits32 odd) { return (even >> 16) | (odd & 0xffff0000u); }

#include "formats.inc.h"

// Masked intrinsics, since g++ 12 warns about undefined values in the plain ones. The conversion rounds to nearest,
// ties to even, keeps subnormals, and takes the canonical NaN to the canonical NaN.
struct F16 : Format<float, uint16_t> {
  static constexpr bool kKeepsEqual = true;
  LSWAP_INLINE Values decode(Codes codes) { return _mm512_maskz_cvtph_ps(0xffff, __m256i(codes)); }
  LSWAP_INLINE Codes encode(Values v) { return Codes(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT)); }
};

bool runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

#include "kernels.inc.h"

}  // namespace
}  // namespace avx512

const Isa &avx512_isa() { return avx512::kTable; }

}  // namespace lswap
#if defined(__clang__)
#pragma clang attribute pop
#endif
