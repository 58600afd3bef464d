// Float vectors of the machine's width, and products of two elements packed in one 32-bit lane.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace native {

struct bf16 {
  uint16_t bits;
};

// min and max return b where a or b is NaN, as the instructions do.

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof result);
  return result;
}

inline void put(float* to, float v) { *to = v; }
inline void put(bf16* to, float v) {
  uint32_t wide;
  std::memcpy(&wide, &v, sizeof wide);
  const bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
  to->bits = nan ? 0x7fc0 : static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

constexpr int W = 16;  // floats in a vector
using Vec = __m512;
using Bits = __m512i;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float v) { return _mm512_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
inline float largest(Vec v) { return _mm512_reduce_max_ps(v); }
inline __m256 halves_added(Vec v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline __m256i narrow(Vec v) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
  const Bits wide = _mm512_castps_si512(v);
  const Bits odd = _mm512_and_si512(_mm512_srli_epi32(wide, 16), _mm512_set1_epi32(1));
  const Bits rounded =
      _mm512_srli_epi32(_mm512_add_epi32(wide, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
#endif
}
inline void store(bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
// Lanes from `count` on become `other`.
inline Vec keep_first(Vec v, int count, Vec other) {
  const __mmask16 kept = count >= W ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  return _mm512_mask_mov_ps(other, kept, v);
}
inline Vec nearest(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }

// A bit for each lane where v is no smaller than the limit, or larger.
inline uint32_t mask_from(Vec v, Vec limit) { return _mm512_cmp_ps_mask(v, limit, _CMP_GE_OQ); }
inline uint32_t mask_above(Vec v, Vec limit) { return _mm512_cmp_ps_mask(v, limit, _CMP_GT_OQ); }
inline uint32_t mask_nan(Vec v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
// Lanes that the mask leaves out become `other`.
inline Vec keep_lanes(Vec v, uint32_t mask, Vec other) {
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>(mask), v);
}
// Lanes below the limit become 0.
inline Vec keep_from(Vec v, Vec limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, limit, _CMP_GE_OQ), v);
}
// Lanes where x is below the limit become 0.
inline Vec zero_below(Vec v, Vec x, Vec limit) {
  return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), zero());
}
// The lanes of the mask side by side, and where the next come; a whole vector is written.
inline float* compress(float* to, Vec v, uint32_t mask) {
  store(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), v));
  return to + __builtin_popcount(mask);
}
inline double wide_sum(Vec v) {
  return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
                                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))));
}
inline Vec from_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// 2 * W numbers as pairs of bfloat16.
inline Bits pairs_from_int8(const int8_t* p) {
  const Bits v = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const Vec even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 16), 16));
  const Vec odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 16));
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
}

inline Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bits(void* p, Bits v) { _mm512_storeu_si512(p, v); }
inline Bits spread_bits(int32_t v) { return _mm512_set1_epi32(v); }
inline Vec low_half(Bits v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline Vec high_half(Bits v) {
  return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int W = 8;
using Vec = __m256;
using Bits = __m256i;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float v) { return _mm256_set1_ps(v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256 halves_added(Vec v) { return v; }
inline float sum(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float largest(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store(bf16* p, Vec v) {
  const Bits wide = _mm256_castps_si256(v);
  const Bits odd = _mm256_and_si256(_mm256_srli_epi32(wide, 16), _mm256_set1_epi32(1));
  Bits rounded =
      _mm256_srli_epi32(_mm256_add_epi32(wide, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const Bits nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline Vec keep_first(Vec v, int count, Vec other) {
  const Bits lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
}
inline Vec nearest(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// n up to 128; below -126 gives 0.
inline Vec times_power_of_two(Vec v, Vec n) {
  const Bits shifted = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const Vec normal = _mm256_cmp_ps(n, set1(-126.0f), _CMP_GE_OQ);
  return _mm256_and_ps(mul(v, _mm256_castsi256_ps(shifted)), normal);
}

inline uint32_t mask_from(Vec v, Vec limit) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GE_OQ)));
}
inline uint32_t mask_above(Vec v, Vec limit) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GT_OQ)));
}
inline uint32_t mask_nan(Vec v) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q))); }
inline Vec keep_lanes(Vec v, uint32_t mask, Vec other) {
  const Bits lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const Bits kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), lane), lane);
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(kept));
}
inline Vec keep_from(Vec v, Vec limit) { return _mm256_and_ps(v, _mm256_cmp_ps(v, limit, _CMP_GE_OQ)); }
inline Vec zero_below(Vec v, Vec x, Vec limit) { return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), v); }
// For each mask, the lanes it has, in order.
struct LaneTable {
  uint8_t lanes[256][8] = {};
  constexpr LaneTable() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane)
        if (mask >> lane & 1) lanes[mask][next++] = static_cast<uint8_t>(lane);
  }
};
inline constexpr LaneTable kLanes;
inline float* compress(float* to, Vec v, uint32_t mask) {
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLanes.lanes[mask]));
  store(to, _mm256_permutevar8x32_ps(v, _mm256_cvtepu8_epi32(lanes)));
  return to + __builtin_popcount(mask);
}
inline double wide_sum(Vec v) {
  const __m256d four = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                                     _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline Vec from_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// 2 * W numbers as pairs of bfloat16.
inline Bits pairs_from_int8(const int8_t* p) {
  const Bits v = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const Vec even = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16));
  const Vec odd = _mm256_cvtepi32_ps(_mm256_srai_epi32(v, 16));
  return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd));
}

inline Bits load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_bits(void* p, Bits v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Bits spread_bits(int32_t v) { return _mm256_set1_epi32(v); }
inline Vec low_half(Bits v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
inline Vec high_half(Bits v) {
  return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

#else
#error "needs AVX2 and FMA, or AVX512F, BW, VL and DQ"
#endif

}  // namespace native
