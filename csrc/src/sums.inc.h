// What is added up while blending; see vectors.inc.h and lswap_core/kernels/reference.py, which sets the order.

template <class V>
LSWAP_INLINE V canonical(V v) {
  using C = Computing<typename std::remove_reference<decltype(v[0])>::type>;
  return v == v ? v : V{} + bits_as<typename std::remove_reference<decltype(v[0])>::type>(C::kNan);
}

// Sums of a block, lane by lane.
template <class F>
struct Sums {
  using Values = typename F::Values;
  using Value = typename F::Value;
  Values terms[kSums][F::kParts] = {}, largest_abs = {};

  __attribute__((always_inline)) void add(int part, Values x, Values y) {
    using C = Computing<Value>;
    const Values d = y - x, abs = bits_as<Values>(bits_as<typename F::Bits>(d) & C::kMagnitude);
    terms[0][part] += abs;
    terms[1][part] += d * d;
    terms[2][part] += x * y;
    terms[3][part] += x * x;
    terms[4][part] += y * y;
    largest_abs = largest(abs, largest_abs);
  }

  // Lanes in order, in fp64. lane(i): where lane i's sum is, as an index into all parts.
  template <class Lane>
  __attribute__((always_inline)) void fold(double *sums, Lane lane) const {
    Value lanes[kSums][kLanes];
    __builtin_memcpy(lanes, terms, sizeof lanes);
    double folded[kSums] = {};
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
#pragma GCC unroll 5
      for (size_t k = 0; k < kSums; ++k) folded[k] += double(lanes[k][lane(i)]);
    }
    __builtin_memcpy(sums, folded, sizeof folded);
  }
};

// What the blocks of one call share: everything whose order does not matter.
template <class F>
struct Tally {
  typename F::Values largest_abs = {};
  uint64_t differing = 0, x_nonfinite = 0, y_nonfinite = 0;

  void give(Counts *counts) const {
    for (int i = 0; i < F::kWidth; ++i) {
      if (largest_abs[i] > counts->max_abs) counts->max_abs = largest_abs[i];
    }
    counts->differing += differing;
    counts->x_nonfinite += x_nonfinite;
    counts->y_nonfinite += y_nonfinite;
  }
};

template <class V>
using Comparison = decltype(std::declval<V>() == std::declval<V>());

// How many elements of a comparison were set, of comparisons added up over a block: 64 rows fit into a code of 8 bits.
template <class V>
LSWAP_INLINE uint64_t total(V minus) {
  constexpr int kCount = sizeof(minus) / sizeof(minus[0]);
  if constexpr (sizeof(minus[0]) == 1) {
    const auto pairs = bits_as<Vector<int16_t, kCount / 2>>(minus);
    return total((pairs >> 8) + (pairs << 8 >> 8));
  } else if constexpr (sizeof(minus[0]) == 2) {
    const auto pairs = bits_as<Vector<int32_t, kCount / 2>>(minus);
    return total((pairs >> 16) + (pairs << 16 >> 16));
  } else {
    int64_t sum = 0;
    for (int i = 0; i < kCount; ++i) sum += minus[i];
    return uint64_t(-sum);
  }
}
