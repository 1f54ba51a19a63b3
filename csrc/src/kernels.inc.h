// The kernels, once for all instruction sets. A source file per instruction set opens its namespace, sets
// LSWAP_VECTOR_BYTES, switches the instruction set on, includes formats.inc.h, defines F16 and largest(), and includes
// this file; it may specialise Fast for a format of its own.

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
  Values terms[kSums][F::kParts] = {}, largest_abs[F::kParts] = {};

  __attribute__((always_inline)) void add(int part, Values x, Values y) {
    using C = Computing<Value>;
    const Values d = y - x, abs = bits_as<Values>(bits_as<typename F::Bits>(d) & C::kMagnitude);
    terms[0][part] += abs;
    terms[1][part] += d * d;
    terms[2][part] += x * y;
    terms[3][part] += x * x;
    terms[4][part] += y * y;
    largest_abs[part] = largest(abs, largest_abs[part]);
  }

  // Lanes in order, in fp64. lane(i): where lane i's sum is, as an index into all parts.
  template <class Lane>
  __attribute__((always_inline)) void fold(double *sums, Counts *counts, Lane lane) const {
    for (size_t k = 0; k < kSums; ++k) {
      Value lanes[kLanes];
      __builtin_memcpy(lanes, terms[k], sizeof lanes);
      double sum = 0;
      for (size_t i = 0; i < kLanes; ++i) sum += double(lanes[lane(i)]);
      sums[k] = sum;
    }
    Value lanes[kLanes];
    __builtin_memcpy(lanes, largest_abs, sizeof lanes);
    for (size_t i = 0; i < kLanes; ++i) counts->max_abs = lanes[i] > counts->max_abs ? lanes[i] : counts->max_abs;
  }
};

// Minus the number of set elements of a comparison, added up over a block. A code of 8 bits holds the 64 rows.
template <class V>
LSWAP_INLINE uint64_t total(const V &minus) {
  int64_t sum = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(minus[0]); ++i) sum += minus[i];
  return uint64_t(-sum);
}

constexpr size_t kLine = 64;        // bytes of a cache line
constexpr size_t kAhead = 1024;     // bytes to prefetch ahead: measured with benchmarks/bench_kernels.py

// One whole block. Careful: any value may be NaN or infinite; otherwise sums come out not finite if one is, the output
// is then wrong too, and the caller does the block again with care.
template <class F, bool kCareful, bool kWrite>
LSWAP_INLINE void block(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                        double *sums, Counts *counts) {
  using C = Computing<typename F::Value>;
  using Codes = typename F::Codes;
  using Values = typename F::Values;
  using Bits = typename F::Bits;
  constexpr size_t kRow = kLanes * sizeof(typename F::Code), kPart = sizeof(Codes);
  constexpr size_t kStep = kRow < kLine ? kLine / kRow : 1;  // rows per cache line
  Sums<F> all;
  decltype(Codes{} == Codes{}) same[F::kParts] = {};
  typename F::Signed x_bad[F::kParts] = {}, y_bad[F::kParts] = {};
  for (size_t row = 0; row < kBlock / kLanes; row += kStep) {
    for (size_t at = row * kRow; at < (row + kStep) * kRow; at += kLine) {
      __builtin_prefetch(x + at + kAhead);
      __builtin_prefetch(y + at + kAhead);
    }
#pragma GCC unroll 4
    for (size_t sub = 0; sub < kStep; ++sub) {
#pragma GCC unroll 8
      for (int part = 0; part < F::kParts; ++part) {
        const size_t at = (row + sub) * kRow + size_t(part) * kPart;
        const Codes x_codes = load<Codes>(x + at), y_codes = load<Codes>(y + at);
        Values x_values = F::decode(x_codes), y_values = F::decode(y_codes);
        const auto equal = x_codes == y_codes;
        same[part] += equal;
        if (kWrite) {
          Values mixed = w0 * x_values + w1 * y_values;
          if (kCareful) mixed = canonical(mixed);
          Codes codes = F::encode(mixed);
          if (kCareful || !F::kKeepsEqual) codes = equal ? x_codes : codes;
          store(out + at, codes);
        }
        if (kCareful) {
          const auto x_ok = (bits_as<Bits>(x_values) & C::kInfinity) != C::kInfinity;
          const auto y_ok = (bits_as<Bits>(y_values) & C::kInfinity) != C::kInfinity;
          x_bad[part] -= x_ok + 1;
          y_bad[part] -= y_ok + 1;
          const Bits both = bits_as<Bits>(x_ok & y_ok);
          x_values = bits_as<Values>(bits_as<Bits>(x_values) & both);
          y_values = bits_as<Values>(bits_as<Bits>(y_values) & both);
        }
        all.add(part, x_values, y_values);
      }
    }
  }
  all.fold(sums, counts, [](size_t lane) { return lane; });
  counts->differing += kBlock;
  for (int part = 0; part < F::kParts; ++part) {
    counts->differing -= total(same[part]);
    if (kCareful) {
      counts->x_nonfinite += total(x_bad[part]);
      counts->y_nonfinite += total(y_bad[part]);
    }
  }
}

// The block when all is finite, as it nearly always is: the place for what one instruction set does better.
template <class F, bool kWrite>
struct Fast {
  LSWAP_INLINE void run(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                        double *sums, Counts *counts) {
    block<F, false, kWrite>(x, y, w0, w1, out, sums, counts);
  }
};

template <class F, bool kWrite>
__attribute__((noinline)) void careful_block(const uint8_t *x, const uint8_t *y, typename F::Value w0,
                                             typename F::Value w1, uint8_t *out, double *sums, Counts *counts) {
  block<F, true, kWrite>(x, y, w0, w1, out, sums, counts);
}

template <class F, bool kWrite>
LSWAP_INLINE void any_block(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                            double *sums, Counts *counts) {
  Counts tried = *counts;
  Fast<F, kWrite>::run(x, y, w0, w1, out, sums, &tried);
  if (__builtin_expect(__builtin_isfinite(sums[3] + sums[4]), 1)) {
    *counts = tried;
  } else {
    careful_block<F, kWrite>(x, y, w0, w1, out, sums, counts);
  }
}

template <class F, bool kWrite>
void blend_stats(const uint8_t *x, const uint8_t *y, double weight, uint8_t *out, size_t count, double *sums,
                 Counts *counts) {
  using Value = typename F::Value;
  constexpr size_t kSize = sizeof(typename F::Code), kBytes = kBlock * kSize;
  const Value w1 = Value(weight), w0 = Value(1) - w1;
  for (; count >= kBlock; count -= kBlock, x += kBytes, y += kBytes, sums += kSums) {
    any_block<F, kWrite>(x, y, w0, w1, out, sums, counts);
    if (kWrite) out += kBytes;
  }
  if (count) {  // filled up with zeros, which add nothing and do not differ
    alignas(kLine) uint8_t x_last[kBytes] = {}, y_last[kBytes] = {}, out_last[kBytes];
    __builtin_memcpy(x_last, x, count * kSize);
    __builtin_memcpy(y_last, y, count * kSize);
    any_block<F, kWrite>(x_last, y_last, w0, w1, out_last, sums, counts);
    if (kWrite) __builtin_memcpy(out, out_last, count * kSize);
  }
}

// The first `bytes` bytes of a vector, the rest zeros; and back.
template <class V>
LSWAP_INLINE V load_some(const uint8_t *from, size_t bytes) {
  V v = {};
  __builtin_memcpy(&v, from, bytes);
  return v;
}

// One vector of the weighted sum; only its first `bytes` bytes are there.
template <class F>
LSWAP_INLINE typename F::Codes summed(const uint8_t *const *inputs, const double *weights, size_t input_count, size_t at,
                                      size_t bytes) {
  using Codes = typename F::Codes;
  using Value = typename F::Value;
  const Codes first = load_some<Codes>(inputs[0] + at, bytes);
  typename F::Values mixed = Value(weights[0]) * F::decode(first);
  auto equal = first == first;
  for (size_t k = 1; k < input_count; ++k) {
    const Codes codes = load_some<Codes>(inputs[k] + at, bytes);
    mixed += Value(weights[k]) * F::decode(codes);
    equal &= codes == first;
  }
  return equal ? first : F::encode(canonical(mixed));
}

template <class F>
void blend_many(const uint8_t *const *inputs, const double *weights, size_t input_count, size_t begin, uint8_t *out,
                size_t count) {
  using Codes = typename F::Codes;
  size_t at = begin * sizeof(typename F::Code), left = count * sizeof(typename F::Code);
  for (; left >= sizeof(Codes); left -= sizeof(Codes), at += sizeof(Codes), out += sizeof(Codes)) {
    store(out, summed<F>(inputs, weights, input_count, at, sizeof(Codes)));
  }
  if (left) {
    const Codes last = summed<F>(inputs, weights, input_count, at, left);
    __builtin_memcpy(out, &last, left);
  }
}

// fp64 rounded to fp32 such that rounding once more, to a type with at least two bits less, gives what rounding once
// would: towards zero, with the last bit set where anything was lost.
LSWAP_INLINE float to_odd(double exact) {
  const float near = float(exact);
  const bool away = __builtin_fabs(double(near)) > __builtin_fabs(exact), lost = double(near) != exact;
  return bits_as<float>((bits_as<uint32_t>(near) - uint32_t(away)) | uint32_t(lost));
}

// A row of 16 elements, by way of a row of the wider compute type.
template <class Source, class Target>
LSWAP_INLINE void cast_row(const uint8_t *x, uint8_t *out) {
  typename Source::Value decoded[kLanes];
  typename Target::Value rounded[kLanes];
  for (int part = 0; part < Source::kParts; ++part) {
    const auto codes = load<typename Source::Codes>(x + size_t(part) * sizeof(typename Source::Codes));
    const auto values = canonical(Source::decode(codes));
    __builtin_memcpy(decoded + part * Source::kWidth, &values, sizeof values);
  }
  for (size_t i = 0; i < kLanes; ++i) {
    if (sizeof(rounded[0]) < sizeof(decoded[0]) && sizeof(typename Target::Code) < sizeof(float)) {
      rounded[i] = to_odd(decoded[i]);
    } else {
      rounded[i] = typename Target::Value(decoded[i]);
    }
  }
  for (int part = 0; part < Target::kParts; ++part) {
    const auto values = load<typename Target::Values>(reinterpret_cast<const uint8_t *>(rounded + part * Target::kWidth));
    store(out + size_t(part) * sizeof(typename Target::Codes), Target::encode(canonical(values)));
  }
}

template <class Source, class Target>
void cast(const uint8_t *x, uint8_t *out, size_t count) {
  constexpr size_t kIn = sizeof(typename Source::Code), kOut = sizeof(typename Target::Code);
  for (; count >= kLanes; count -= kLanes, x += kLanes * kIn, out += kLanes * kOut) cast_row<Source, Target>(x, out);
  if (count) {
    uint8_t x_last[kLanes * kIn] = {}, out_last[kLanes * kOut];
    __builtin_memcpy(x_last, x, count * kIn);
    cast_row<Source, Target>(x_last, out_last);
    __builtin_memcpy(out, out_last, count * kOut);
  }
}

// In the order of enum lswap_dtype.
#define LSWAP_EACH_FORMAT(of) of(F64), of(F32), of(F16), of(BF16), of(F8E4M3), of(F8E5M2)
#define LSWAP_BLEND(F) blend_stats<F, true>
#define LSWAP_STATS(F) blend_stats<F, false>
#define LSWAP_MANY(F) blend_many<F>
#define LSWAP_CASTS(F) \
  { cast<F, F64>, cast<F, F32>, cast<F, F16>, cast<F, BF16>, cast<F, F8E4M3>, cast<F, F8E5M2> }

const Isa kTable = {LSWAP_NAME,
                    runs,
                    {LSWAP_EACH_FORMAT(LSWAP_BLEND)},
                    {LSWAP_EACH_FORMAT(LSWAP_STATS)},
                    {LSWAP_EACH_FORMAT(LSWAP_MANY)},
                    {LSWAP_EACH_FORMAT(LSWAP_CASTS)}};
