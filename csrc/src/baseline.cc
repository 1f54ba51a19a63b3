// Vectors of 16 bytes: what every x86-64 and every aarch64 processor has.
#include <type_traits>

#include "isa.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LSWAP_VECTOR_BYTES 16
#if defined(__ARM_NEON)
#define LSWAP_NAME "neon"
#else
#define LSWAP_NAME "baseline"
#endif

namespace lswap {
namespace baseline {
namespace {

#include "formats.inc.h"

using F16 = GenericF16;

#if defined(__SSE2__)
LSWAP_INLINE F32::Values largest(F32::Values a, F32::Values b) { return _mm_max_ps(a, b); }
LSWAP_INLINE F64::Values largest(F64::Values a, F64::Values b) { return _mm_max_pd(a, b); }
#elif defined(__ARM_NEON)
LSWAP_INLINE F32::Values largest(F32::Values a, F32::Values b) { return F32::Values(vmaxq_f32(float32x4_t(a), float32x4_t(b))); }
LSWAP_INLINE F64::Values largest(F64::Values a, F64::Values b) { return F64::Values(vmaxq_f64(float64x2_t(a), float64x2_t(b))); }
#else
template <class V>
LSWAP_INLINE V largest(V a, V b) {
  return a > b ? a : b;
}
#endif

bool runs() { return true; }

#include "kernels.inc.h"

}  // namespace
}  // namespace baseline

const Isa &baseline_isa() { return baseline::kTable; }

}  // namespace lswap
