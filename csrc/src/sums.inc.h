// The sums that a blend takes. lswap_core/kernels/reference.py defines their order; see also vectors.inc.h.

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
};

// Whether every lane of the sums of squares is finite. The square of a value that is not finite is not finite either, and no
// sum with it is finite.
template <class F>
LSWAP_INLINE bool squares_are_finite(const Sums<F> &of) {
  using C = Computing<typename F::Value>;
  typename F::Values squares = of.terms[3][0] + of.terms[4][0];
  for (int part = 1; part < F::kParts; ++part) squares += of.terms[3][part] + of.terms[4][part];
  return !any((bits_as<typename F::Bits>(squares) & C::kInfinity) == C::kInfinity);
}

// Blocks whose lanes are folded together, one block per vector element. A lane waits for the lane before it, so a single
// block leaves the processor idle (bf16, AMD Milan, AVX2: 5 % of memcpy faster, as fast as without any folding).
constexpr size_t kTogether = 4;
using Quad = Vector<float, 4>;
using DoubleQuad = Vector<double, 4>;

LSWAP_INLINE void transpose(Quad *rows) {
  const Quad low_01 = shuffled<0, 4, 1, 5>(rows[0], rows[1]), high_01 = shuffled<2, 6, 3, 7>(rows[0], rows[1]);
  const Quad low_23 = shuffled<0, 4, 1, 5>(rows[2], rows[3]), high_23 = shuffled<2, 6, 3, 7>(rows[2], rows[3]);
  rows[0] = shuffled<0, 1, 4, 5>(low_01, low_23);
  rows[1] = shuffled<2, 3, 6, 7>(low_01, low_23);
  rows[2] = shuffled<0, 1, 4, 5>(high_01, high_23);
  rows[3] = shuffled<2, 3, 6, 7>(high_01, high_23);
}

// Adds the lanes of `blocks` blocks, at most kTogether, in order, in fp64. place(i): index of lane i in an array of all parts.
template <class F, class Place>
LSWAP_INLINE void fold(const Sums<F> *of, size_t blocks, double *sums, Place place) {
  using Value = typename F::Value;
  for (size_t k = 0; k < kSums; ++k) {
    DoubleQuad folded = {};
    if constexpr (sizeof(Value) == sizeof(float)) {
      Quad lanes[kLanes];
#pragma GCC unroll 4
      for (size_t first = 0; first < kLanes; first += kTogether) {
#pragma GCC unroll 4
        for (size_t block = 0; block < kTogether; ++block) {
          lanes[first + block] = load<Quad>(reinterpret_cast<const uint8_t *>(of[block].terms[k]) + first * sizeof(Value));
        }
        transpose(lanes + first);
      }
#pragma GCC unroll 16
      for (size_t i = 0; i < kLanes; ++i) folded += __builtin_convertvector(lanes[place(i)], DoubleQuad);
    } else {
      for (size_t i = 0; i < kLanes; ++i) {
        for (size_t block = 0; block < kTogether; ++block) folded[block] += of[block].terms[k][i / F::kWidth][i % F::kWidth];
      }
    }
    for (size_t block = 0; block < blocks; ++block) sums[block * kSums + k] = folded[block];
  }
}

// The statistics whose order does not matter, for all blocks of one call.
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

// Number of set elements in comparisons that were added up over a block: 64 rows fit into a code of 8 bits.
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
