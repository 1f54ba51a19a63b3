// Vectors of one instruction set. Included into a namespace per instruction set, after LSWAP_VECTOR_BYTES is set; then
// come that instruction set's own widen(), narrow_8(), narrow_16(), largest(), fused(), high_halves(), stream_16() and
// stream_whole(), formats.inc.h, its F16, and kernels.inc.h.

#define LSWAP_INLINE static inline __attribute__((always_inline))

template <class T, int kCount>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kCount)));
};
template <class T, int kCount>
using Vector = typename VectorOf<T, kCount>::type;

template <class To, class From>
LSWAP_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
LSWAP_INLINE V load(const uint8_t *from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
LSWAP_INLINE void store(uint8_t *to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

using Bits32 = Vector<uint32_t, LSWAP_VECTOR_BYTES / 4>;
using Bits16 = Vector<uint16_t, LSWAP_VECTOR_BYTES / 4>;
using Bits8 = Vector<uint8_t, LSWAP_VECTOR_BYTES / 4>;
using Floats = Vector<float, LSWAP_VECTOR_BYTES / 4>;
using Doubles = Vector<double, LSWAP_VECTOR_BYTES / 8>;
using Whole = Vector<int64_t, LSWAP_VECTOR_BYTES / 8>;

// The elements of a, then those of b.
template <int... kOrder, class V>
LSWAP_INLINE V shuffled(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kOrder...);
#else
  return __builtin_shuffle(a, b, Vector<int32_t, sizeof...(kOrder)>{kOrder...});
#endif
}

// Whether any element of a comparison is set.
template <class V>
LSWAP_INLINE bool any(V comparison) {
  using Words = Vector<int64_t, int(sizeof(V) / 8)>;
  const Words words = bits_as<Words>(comparison);
  int64_t set = 0;
  for (size_t i = 0; i < sizeof(V) / 8; ++i) set |= words[i];
  return set != 0;
}
