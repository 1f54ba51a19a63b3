// The element types, on the vectors of one instruction set; see vectors.inc.h.
//
// A format has a Code (an element's bits), a Value (the compute type), and for vectors of kWidth elements
//   decode(codes) -> values   exactly;
//   encode(values) -> codes   to nearest, ties to even; a NaN must be the canonical one of Value.
// kKeepsEqual: where x == y and both are finite, rounding (1-w)*x + w*y gives x's bits without a test, since the compute type
// has so many more bits that its three roundings stay below half a unit of the last place.

// Constants that depend only on the compute type.
template <class T>
struct Computing;

template <>
struct Computing<float> {
  using Bits = uint32_t;
  using Signed = int32_t;
  static constexpr Bits kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u, kNan = 0x7fc00000u;
};

template <>
struct Computing<double> {
  using Bits = uint64_t;
  using Signed = int64_t;
  static constexpr Bits kMagnitude = ~0ull >> 1, kInfinity = 0x7ffull << 52, kNan = 0x7ff8ull << 48;
};

template <class ValueType, class CodeType>
struct Format {
  using Value = ValueType;
  using Code = CodeType;
  static constexpr int kWidth = LSWAP_VECTOR_BYTES / int(sizeof(Value));  // elements per vector
  static constexpr int kParts = int(kLanes) / kWidth;                     // vectors per row of 16 lanes
  using Values = Vector<Value, kWidth>;
  using Bits = Vector<typename Computing<Value>::Bits, kWidth>;
  using Signed = Vector<typename Computing<Value>::Signed, kWidth>;
  using Codes = Vector<Code, kWidth>;
};

template <class T>
struct Plain : Format<T, typename Computing<T>::Bits> {
  using Base = Format<T, typename Computing<T>::Bits>;
  static constexpr bool kKeepsEqual = false;
  LSWAP_INLINE typename Base::Values decode(typename Base::Codes codes) { return bits_as<typename Base::Values>(codes); }
  LSWAP_INLINE typename Base::Codes encode(typename Base::Values v) { return bits_as<typename Base::Codes>(v); }
};
using F64 = Plain<double>;
using F32 = Plain<float>;

struct BF16 : Format<float, uint16_t> {
  static constexpr bool kKeepsEqual = true;
  LSWAP_INLINE Values decode(Codes codes) { return bits_as<Values>(widen(codes) << 16); }
  // In integers: the processors' own conversion flushes subnormals.
  LSWAP_INLINE Bits rounded_high(Values v) {
    const Bits bits = bits_as<Bits>(v);
    return bits + (((bits >> 16) & 1) + 0x7fff);
  }
  LSWAP_INLINE Codes encode(Values v) { return narrow_16(rounded_high(v) >> 16); }
};

// A small format with subnormals: kExponent and kMantissa bits below the sign. kLargest: its last finite pattern; the
// next one is the result of overflow. kNan: its canonical NaN.
template <class CodeType, int kExponent, int kMantissa, unsigned kLargest, unsigned kNan>
struct Mini : Format<float, CodeType> {
  using Base = Format<float, CodeType>;
  using Values = typename Base::Values;
  using Bits = typename Base::Bits;
  using Signed = typename Base::Signed;
  using Codes = typename Base::Codes;
  static constexpr bool kKeepsEqual = true;
  static constexpr int kShift = 23 - kMantissa, kSize = kExponent + kMantissa + 1;
  static constexpr uint32_t kRebias = 127 - ((1u << (kExponent - 1)) - 1);
  static constexpr uint32_t kSign = 1u << (kSize - 1);

  // A subnormal is decoded with a leading one, which is then subtracted: fp32 subnormals would cost time.
  LSWAP_INLINE Values decode(Codes codes) {
    const Bits wide = widen(codes), magnitude = wide & (kSign - 1);
    const Bits normal = (magnitude << kShift) + (kRebias << 23);
    const Values tiny = bits_as<Values>(normal + (1u << 23)) - bits_as<float>((kRebias + 1) << 23);
    const Signed ordered = bits_as<Signed>(magnitude);
    const Bits value = ordered < (1 << kMantissa) ? bits_as<Bits>(tiny) : normal;
    const Bits beyond = bits_as<Bits>(ordered > int(kLargest)) & 0x7f800000u;
    return bits_as<Values>(value | beyond | (wide & kSign) << (32 - kSize));
  }

  LSWAP_INLINE Codes encode(Values v) {
    const Bits bits = bits_as<Bits>(v), magnitude = bits & 0x7fffffffu;
    const Bits half_up = magnitude + (((magnitude >> kShift) & 1) + ((1u << (kShift - 1)) - 1));
    const Bits normal = (half_up >> kShift) - (kRebias << kMantissa);
    // A sum with this value has the smallest subnormal as its unit, so the addition rounds.
    constexpr uint32_t kMagic = (kRebias + 1 + 23 - kMantissa) << 23;
    const Bits tiny = bits_as<Bits>(bits_as<Values>(magnitude) + bits_as<float>(kMagic)) - kMagic;
    const Signed ordered = bits_as<Signed>(magnitude);
    Signed code = bits_as<Signed>(ordered < int((kRebias + 1) << 23) ? tiny : normal);
    code = code > int(kLargest) ? Signed{} + int(kLargest + 1) : code;
    code = ordered > 0x7f800000 ? Signed{} + int(kNan) : code;
    Bits sign = (bits >> (32 - kSize)) & kSign;
    if (kLargest + 1 == kNan) sign &= bits_as<Bits>(code != int(kNan));  // overflow is NaN, which has one form
    const Bits wide = bits_as<Bits>(code) | sign;
    if constexpr (sizeof(CodeType) == 1) {
      return narrow_8(wide);
    } else {
      return narrow_16(wide);
    }
  }
};
using GenericF16 = Mini<uint16_t, 5, 10, 0x7bff, 0x7e00>;
using F8E4M3 = Mini<uint8_t, 4, 3, 0x7e, 0x7f>;
using F8E5M2 = Mini<uint8_t, 5, 2, 0x7b, 0x7f>;
