// Low-rank changes, products of two small matrices. lswap_core/kernels/low_rank.py defines the order of the sums.

constexpr size_t kMostTerms = 192;  // in one chain

constexpr size_t kVectors = 2, kRows = 4;  // sums in registers: eight, which hide the latency of a fused multiply-add
constexpr size_t kFloats = sizeof(Floats) / sizeof(float), kPanel = kVectors * kFloats;

// Rows of left times a panel of right, one fused multiply-add after the other. left: rows are `rank` apart.
template <size_t kHigh>
LSWAP_INLINE void chains(const float *left, size_t rank, const float *panel, size_t terms, float *sums) {
  Floats held[kHigh][kVectors] = {};
  for (size_t k = 0; k < terms; ++k) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kVectors; ++v) {
      const Floats of_panel = load<Floats>(reinterpret_cast<const uint8_t *>(panel + k * kPanel + v * kFloats));
#pragma GCC unroll 4
      for (size_t row = 0; row < kHigh; ++row) held[row][v] = fused(left[row * rank + k], of_panel, held[row][v]);
    }
  }
#pragma GCC unroll 4
  for (size_t row = 0; row < kHigh; ++row) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kVectors; ++v) {
      store(reinterpret_cast<uint8_t *>(sums + row * kPanel + v * kFloats), held[row][v]);
    }
  }
}

template <size_t kHigh>
LSWAP_INLINE void put_chains(const float *left, size_t rank, const float *panel, size_t terms, bool first, float scale,
                             float *change, size_t width, size_t part) {
  float sums[kHigh * kPanel];
  chains<kHigh>(left, rank, panel, terms, sums);
  for (size_t row = 0; row < kHigh; ++row, change += width) {
    const float *sum = sums + row * kPanel;
    for (size_t i = 0; i < part; ++i) change[i] = (first ? sum[i] : change[i] + sum[i]) * scale;
  }
}

// A panel is packed, since rows a power of two apart would evict each other from the L1 cache. All rows use it.
void low_rank(const float *left, const float *right, size_t rank, size_t columns, size_t rows, size_t width, float scale,
              float *change) {
  const size_t half = rank / 2, most = rank <= kMostTerms ? rank : half < kMostTerms ? half : kMostTerms;
  float panel[kMostTerms * kPanel] = {};
  for (size_t column = 0; column < width; column += kPanel) {
    const size_t part = width - column < kPanel ? width - column : kPanel;
    for (size_t from = 0; from < rank; from += most) {
      const size_t terms = rank - from < most ? rank - from : most;
      const float factor = from + terms == rank ? scale : 1;
      for (size_t k = 0; k < terms; ++k) {
        __builtin_memcpy(panel + k * kPanel, right + (from + k) * columns + column, part * sizeof(float));
      }
      size_t row = 0;
      for (; row + kRows <= rows; row += kRows) {
        put_chains<kRows>(left + row * rank + from, rank, panel, terms, !from, factor, change + row * width + column, width, part);
      }
      for (; row < rows; ++row) {
        put_chains<1>(left + row * rank + from, rank, panel, terms, !from, factor, change + row * width + column, width, part);
      }
    }
  }
}
