// Dot products over elements packed in 32-bit lanes: one float, or two bfloat16.
#pragma once

#include "vec.h"

namespace native {

template <class T>
struct Pack;

template <>
struct Pack<float> {
  static constexpr int per = 1;  // elements in a lane
  using Reg = Vec;
  static Reg load(const float* p) { return native::load(p); }
  static void store(float* p, Reg v) { native::store(p, v); }
  static Reg spread(const float* p) { return set1(*p); }
  static Vec dot(Vec sum, Reg a, Reg b) { return fma(a, b, sum); }
};

template <>
struct Pack<bf16> {
  static constexpr int per = 2;
  using Reg = Bits;
  static Reg load(const bf16* p) { return load_bits(p); }
  static void store(bf16* p, Reg v) { store_bits(p, v); }
  static Reg spread(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return spread_bits(pair);
  }
  static Vec dot(Vec sum, Reg a, Reg b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    return fma(high_half(a), high_half(b), fma(low_half(a), low_half(b), sum));
#endif
  }
};

// The sums of four vectors.
inline void sum4(const Vec* v, float* to) {
  const __m256 a = _mm256_hadd_ps(halves_added(v[0]), halves_added(v[1]));
  const __m256 b = _mm256_hadd_ps(halves_added(v[2]), halves_added(v[3]));
  const __m256 c = _mm256_hadd_ps(a, b);
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
}

// 2^x with a relative error under 2e-7; 0 where it would be denormal, which takes the processor thirty times as long, and
// infinity where float ends. Keeps NaN.
inline Vec exp2(Vec given) {
  const Vec least = set1(-126.0f), x = min(set1(128.0f), max(least, given));
  const Vec n = nearest(x);
  const Vec f = sub(x, n);
  Vec p = set1(1.5403530e-4f);
  p = fma(p, f, set1(1.3333558e-3f));
  p = fma(p, f, set1(9.6181291e-3f));
  p = fma(p, f, set1(5.5504109e-2f));
  p = fma(p, f, set1(2.4022651e-1f));
  p = fma(p, f, set1(6.9314718e-1f));
  p = fma(p, f, set1(1.0f));
  return zero_below(times_power_of_two(p, n), given, least);
}

}  // namespace native
