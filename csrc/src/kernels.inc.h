// The kernels, written once for all instruction sets; see vectors.inc.h.

#include "low_rank.inc.h"
#include "sums.inc.h"

constexpr size_t kLine = 64;  // bytes of a cache line

// The destination of the blend. kNone: statistics only. kCached: normal stores, for a buffer that is soon used again.
// kStreamed: non-temporal stores, for one larger than the caches: a line is then not read before it is written.
enum class Output { kNone, kCached, kStreamed };

// Streams whole vectors where out is aligned to them, as torch aligns memory (AMD Milan, AVX2: 4 % of memcpy faster), else
// pieces of 16 bytes, which numpy's alignment allows. Smaller vectors take normal stores.
template <class V>
LSWAP_INLINE void stream(uint8_t *to, V v) {
  if constexpr (sizeof(V) < kStreamed) {
    store(to, v);
  } else {
    if constexpr (sizeof(V) == sizeof(Whole)) {
      if (__builtin_expect(reinterpret_cast<uintptr_t>(to) % sizeof(Whole) == 0, 1)) return stream_whole(to, bits_as<Whole>(v));
    }
    using Piece = Vector<int64_t, 2>;
    Piece pieces[sizeof(V) / sizeof(Piece)];
    __builtin_memcpy(pieces, &v, sizeof v);
    for (size_t i = 0; i < sizeof(V) / sizeof(Piece); ++i) stream_16(to + i * sizeof(Piece), pieces[i]);
  }
}

template <Output kOutput, class V>
LSWAP_INLINE void put(uint8_t *to, V v) {
  if constexpr (kOutput == Output::kStreamed) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

// Bytes to prefetch ahead. bf16, 64 MiB operands, AMD Milan, one thread, medians against memcpy of the same run: without
// 63 %, 512 69 %, 1,024 71 %, 2,048 70 %, 4,096 66 %; streamed, and with operands kept out of the outer caches, 70 %
// without, 76 % to 83 % with 1,024, 86 % to 89 % with 2,048, 75 % with 3,072.
template <Output kOutput>
LSWAP_INLINE void prefetch(const uint8_t *from) {
  if constexpr (kOutput == Output::kStreamed) {
    __builtin_prefetch(from + 2048, 0, 0);
  } else {
    __builtin_prefetch(from + 1024);
  }
}

// One whole block. kCareful: any value may be NaN or infinite. Without it, returns false where one is: the output may then be
// wrong, the tally is unchanged, and the caller repeats the block with kCareful.
template <class F, bool kCareful, Output kOutput>
LSWAP_INLINE bool block(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                        Sums<F> *sums, Tally<F> *tally) {
  using C = Computing<typename F::Value>;
  using Codes = typename F::Codes;
  using Values = typename F::Values;
  using Bits = typename F::Bits;
  constexpr size_t kRow = kLanes * sizeof(typename F::Code), kPart = sizeof(Codes);
  constexpr size_t kStep = kRow < kLine ? kLine / kRow : 1;  // rows per cache line
  Sums<F> all;
  Comparison<Codes> same[F::kParts] = {};
  typename F::Signed x_bad[F::kParts] = {}, y_bad[F::kParts] = {};
  for (size_t row = 0; row < kBlock / kLanes; row += kStep) {
    for (size_t at = row * kRow; at < (row + kStep) * kRow; at += kLine) {
      prefetch<kOutput>(x + at);
      prefetch<kOutput>(y + at);
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
        if (kOutput != Output::kNone) {
          Values mixed = w0 * x_values + w1 * y_values;
          if (kCareful) mixed = canonical(mixed);
          Codes codes = F::encode(mixed);
          if (kCareful || !F::kKeepsEqual) codes = equal ? x_codes : codes;
          put<kOutput>(out + at, codes);
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
  if (!kCareful && !squares_are_finite(all)) return false;
  *sums = all;
  tally->largest_abs = largest(all.largest_abs, tally->largest_abs);
  tally->differing += kBlock;
  for (int part = 0; part < F::kParts; ++part) {
    tally->differing -= total(same[part]);
    if (kCareful) {
      tally->x_nonfinite += total(x_bad[part]);
      tally->y_nonfinite += total(y_bad[part]);
    }
  }
  return true;
}

// Index of lane i of a block's sums, in an array of all parts.
template <class F>
struct Places {
  static constexpr bool kPaired = std::is_same<F, BF16>::value && F::kParts >= 2;
  constexpr size_t operator()(size_t lane) const {
    constexpr size_t kWidth = F::kWidth;
    if (!kPaired) return lane;
    const size_t pair = lane / (2 * kWidth), within = lane % (2 * kWidth);
    return (2 * pair + within % 2) * kWidth + within / 2;
  }
};

// bf16 in pairs: in each 32 bits the lower half is an even element, and the upper half, which is not moved, an odd one. This
// saves most of the widening and narrowing (AMD Milan, operands in the L2 cache: +45 %), but it needs two parts a row.
template <Output kOutput>
LSWAP_INLINE bool paired_block(const uint8_t *x, const uint8_t *y, float w0, float w1, uint8_t *out,
                               Sums<BF16> *sums, Tally<BF16> *tally) {
  using F = BF16;
  using Halves = Vector<uint16_t, 2 * F::kWidth>;
  constexpr size_t kRow = kLanes * sizeof(uint16_t), kPair = sizeof(Bits32);
  Sums<F> all;
  Comparison<Halves> same[F::kParts / 2] = {};
  for (size_t line = 0; line < kBlock * sizeof(uint16_t); line += kLine) {
    prefetch<kOutput>(x + line);
    prefetch<kOutput>(y + line);
#pragma GCC unroll 2
    for (size_t row = line; row < line + kLine; row += kRow) {
#pragma GCC unroll 2
      for (int pair = 0; pair < F::kParts / 2; ++pair) {
        const size_t at = row + size_t(pair) * kPair;
        const Bits32 x_codes = load<Bits32>(x + at), y_codes = load<Bits32>(y + at);
        same[pair] += bits_as<Halves>(x_codes) == bits_as<Halves>(y_codes);
        const Floats x_even = bits_as<Floats>(x_codes << 16), x_odd = bits_as<Floats>(x_codes & 0xffff0000u);
        const Floats y_even = bits_as<Floats>(y_codes << 16), y_odd = bits_as<Floats>(y_codes & 0xffff0000u);
        if (kOutput != Output::kNone) {
          const Bits32 even = F::rounded_high(w0 * x_even + w1 * y_even);
          const Bits32 odd = F::rounded_high(w0 * x_odd + w1 * y_odd);
          put<kOutput>(out + at, high_halves(even, odd));
        }
        all.add(2 * pair, x_even, y_even);
        all.add(2 * pair + 1, x_odd, y_odd);
      }
    }
  }
  if (!squares_are_finite(all)) return false;
  *sums = all;
  tally->largest_abs = largest(all.largest_abs, tally->largest_abs);
  tally->differing += kBlock;
  for (const auto &pair : same) tally->differing -= total(pair);
  return true;
}

// The block where all values are finite, as they nearly always are.
template <class F, Output kOutput>
LSWAP_INLINE bool fast_block(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                             Sums<F> *sums, Tally<F> *tally) {
  if constexpr (Places<F>::kPaired) {
    return paired_block<kOutput>(x, y, w0, w1, out, sums, tally);
  } else {
    return block<F, false, kOutput>(x, y, w0, w1, out, sums, tally);
  }
}

template <class F, Output kOutput>
__attribute__((noinline)) void careful_block(const uint8_t *x, const uint8_t *y, typename F::Value w0,
                                             typename F::Value w1, uint8_t *out, Sums<F> *sums, Tally<F> *tally) {
  Sums<F> in_order;
  block<F, true, kOutput>(x, y, w0, w1, out, &in_order, tally);
  typename F::Value from[kSums][kLanes], to[kSums][kLanes];
  __builtin_memcpy(from, in_order.terms, sizeof from);
  for (size_t k = 0; k < kSums; ++k) {
    for (size_t lane = 0; lane < kLanes; ++lane) to[k][Places<F>()(lane)] = from[k][lane];
  }
  __builtin_memcpy(sums->terms, to, sizeof to);
}

template <class F, Output kOutput>
LSWAP_INLINE void any_block(const uint8_t *x, const uint8_t *y, typename F::Value w0, typename F::Value w1, uint8_t *out,
                            Sums<F> *sums, Tally<F> *tally) {
  if (!__builtin_expect(fast_block<F, kOutput>(x, y, w0, w1, out, sums, tally), 1)) {
    careful_block<F, kOutput>(x, y, w0, w1, out, sums, tally);
  }
}

template <class F, Output kOutput>
void blend_stats(const uint8_t *x, const uint8_t *y, double weight, uint8_t *out, size_t count, double *sums,
                 Counts *counts) {
  using Value = typename F::Value;
  constexpr size_t kSize = sizeof(typename F::Code), kBytes = kBlock * kSize;
  const Value w1 = Value(weight), w0 = Value(1) - w1;
  Tally<F> tally;
  Sums<F> together[kTogether];
  size_t waiting = 0;
  for (; count >= kBlock; count -= kBlock, x += kBytes, y += kBytes) {
    any_block<F, kOutput>(x, y, w0, w1, out, together + waiting, &tally);
    if (kOutput != Output::kNone) out += kBytes;
    if (++waiting == kTogether) {
      fold(together, waiting, sums, Places<F>());
      sums += kTogether * kSums;
      waiting = 0;
    }
  }
  if (count) {  // padded with zeros, which add nothing and do not differ
    alignas(kLine) uint8_t x_last[kBytes] = {}, y_last[kBytes] = {}, out_last[kBytes];
    __builtin_memcpy(x_last, x, count * kSize);
    __builtin_memcpy(y_last, y, count * kSize);
    any_block<F, kOutput>(x_last, y_last, w0, w1, out_last, together + waiting++, &tally);
    if (kOutput != Output::kNone) __builtin_memcpy(out, out_last, count * kSize);
  }
  if (waiting) fold(together, waiting, sums, Places<F>());
  if (kOutput == Output::kStreamed) end_stream();
  tally.give(counts);
}

// The first `bytes` bytes of a vector, the rest zeros; and back.
template <class V>
LSWAP_INLINE V load_some(const uint8_t *from, size_t bytes) {
  V v = {};
  __builtin_memcpy(&v, from, bytes);
  return v;
}

// One vector of the weighted sum, of which only the first `bytes` bytes exist.
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

// fp64 rounded to fp32 towards zero, with the last bit set where the result is inexact (round to odd). A second rounding, to a
// type with at least two bits less, then gives the same result as one rounding.
LSWAP_INLINE float to_odd(double exact) {
  const float near = float(exact);
  const bool away = __builtin_fabs(double(near)) > __builtin_fabs(exact), lost = double(near) != exact;
  return bits_as<float>((bits_as<uint32_t>(near) - uint32_t(away)) | uint32_t(lost));
}

// A row of 16 elements, converted through the wider compute type.
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
#define LSWAP_STATS(F) blend_stats<F, Output::kNone>
#define LSWAP_BLEND(F) blend_stats<F, Output::kCached>
#define LSWAP_STREAM(F) blend_stats<F, Output::kStreamed>
#define LSWAP_MANY(F) blend_many<F>
#define LSWAP_CASTS(F) \
  { cast<F, F64>, cast<F, F32>, cast<F, F16>, cast<F, BF16>, cast<F, F8E4M3>, cast<F, F8E5M2> }

const Isa kTable = {LSWAP_NAME,
                    runs,
                    {LSWAP_EACH_FORMAT(LSWAP_STATS)},
                    {LSWAP_EACH_FORMAT(LSWAP_BLEND)},
                    {LSWAP_EACH_FORMAT(LSWAP_STREAM)},
                    {LSWAP_EACH_FORMAT(LSWAP_MANY)},
                    {LSWAP_EACH_FORMAT(LSWAP_CASTS)},
                    low_rank};
