// Weights in 4 bits: for each 32 inputs of an output a scale and a minimum, and numbers from 0 to 15.
//
// Several ranges are tried, from that of the weights to 0.7 of it. For each the numbers are the nearest, and then scale
// and minimum the best for the numbers (least squares), twice over. What has the least squared error is taken. A weight's
// error counts by its size and that of its group, since large weights matter more (as in the quantisers of llama.cpp).
// A lane is a group, so W outputs are done at once.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"

namespace native {
namespace {

constexpr int kGroup = kGroupInputs, kRanges = 7, kRefits = 2;
constexpr float kMost = 15.0f, kNarrower = 0.05f;

struct Fit {
  Vec scale, minimum;
};

struct Group {
  Vec values[kGroup], counts[kGroup];  // and what an error of each counts
  Vec low, high;

  void weigh() {
    Vec squares = zero();
    low = high = values[0];
    for (int i = 0; i < kGroup; ++i) {
      squares = fma(values[i], values[i], squares);
      low = min(low, values[i]);
      high = max(high, values[i]);
    }
    const Vec size = root(mul(squares, set1(1.0f / kGroup)));
    for (int i = 0; i < kGroup; ++i) counts[i] = add(size, max(values[i], sub(zero(), values[i])));
  }

  static Vec root(Vec v) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(v);
#else
    return _mm256_sqrt_ps(v);
#endif
  }
};

// 1 / scale, 0 where that is 0.
inline Vec inverse(Vec scale) { return keep_lanes(div(set1(1.0f), scale), mask_above(scale, zero()), zero()); }

inline Vec number(Vec value, Vec inverse, Vec minimum) {
  return min(set1(kMost), max(nearest(mul(sub(value, minimum), inverse)), zero()));
}

Fit best_fit(const Group& g) {
  const Vec range = sub(g.high, g.low);
  Fit best{div(range, set1(kMost)), g.low};
  Vec least = set1(3.0e38f);
  for (int r = 0; r < kRanges; ++r) {
    const float cut = kNarrower * static_cast<float>(r);
    Fit now{mul(range, set1((1.0f - cut) / kMost)), fma(range, set1(cut / 2.0f), g.low)};
    for (int f = 0; f <= kRefits; ++f) {
      const Vec by = inverse(now.scale);
      Vec error = zero(), c = zero(), cn = zero(), cnn = zero(), cv = zero(), cnv = zero();
      for (int i = 0; i < kGroup; ++i) {
        const Vec n = number(g.values[i], by, now.minimum), count = g.counts[i], v = g.values[i];
        const Vec off = sub(fma(n, now.scale, now.minimum), v), weighed = mul(count, n);
        error = fma(count, mul(off, off), error);
        c = add(c, count);
        cn = add(cn, weighed);
        cnn = fma(weighed, n, cnn);
        cv = fma(count, v, cv);
        cnv = fma(weighed, v, cnv);
      }
      const uint32_t better = mask_above(least, error);
      least = keep_lanes(error, better, least);
      best.scale = keep_lanes(now.scale, better, best.scale);
      best.minimum = keep_lanes(now.minimum, better, best.minimum);
      const Vec whole = sub(mul(c, cnn), mul(cn, cn));
      const Vec scale = div(sub(mul(c, cnv), mul(cn, cv)), whole);
      const uint32_t fits = mask_above(whole, zero()) & mask_above(scale, zero());
      now.scale = keep_lanes(scale, fits, now.scale);
      now.minimum = keep_lanes(div(sub(cv, mul(scale, cn)), c), fits, now.minimum);
    }
  }
  return best;
}

// The nearest float16; larger than the largest: infinity.
inline uint16_t half_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (size < 0x38800000) {  // no normal number there: as many of 2^-24 as are nearest
    float small;
    std::memcpy(&small, &size, sizeof small);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(small * 0x1p24f)));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

inline float float_of(uint16_t half) {
  const uint32_t size = half & 0x7fff, bits = (size << 13) | (half & 0x8000u) << 16;
  if (size >= 0x7c00) {
    const uint32_t endless = bits | 0x7f800000;
    float v;
    std::memcpy(&v, &endless, sizeof v);
    return v;
  }
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v * 0x1p112f;
}

}  // namespace

template <class T>
void quantise_rows(const T* weight, int64_t in, int64_t rows, uint8_t* to) {
  const int64_t width = in / kGroup * kGroupBytes;
  const int count = static_cast<int>(std::min<int64_t>(rows, W));
  for (int64_t at = 0; at < in; at += kGroup, to += kGroupBytes) {
    alignas(64) float values[kGroup][W] = {}, scales[W], minima[W], strange[W];
    for (int row = 0; row < count; ++row)
      for (int i = 0; i < kGroup; ++i) values[i][row] = to_float(weight[row * in + at + i]);
    Group g;
    Vec none = zero();  // 0 but where a value is not finite
    for (int i = 0; i < kGroup; ++i) {
      g.values[i] = load(values[i]);
      none = fma(g.values[i], zero(), none);
    }
    g.weigh();
    const Fit fit = best_fit(g);
    store(scales, fit.scale);
    store(minima, fit.minimum);
    store(strange, none);
    for (int row = 0; row < count; ++row) {
      uint8_t* block = to + row * width;
      const uint16_t halves[2] = {half_of(scales[row] + strange[row]), half_of(minima[row] + strange[row])};
      std::memcpy(block, halves, sizeof halves);
      const float scale = float_of(halves[0]), minimum = float_of(halves[1]), by = scale > 0.0f ? 1.0f / scale : 0.0f;
      uint8_t numbers[kGroup];
      for (int i = 0; i < kGroup; ++i)
        numbers[i] = static_cast<uint8_t>(std::min(kMost, std::max(0.0f, std::nearbyint((values[i][row] - minimum) * by))));
      for (int i = 0; i < kGroup / 2; ++i) block[4 + i] = static_cast<uint8_t>(numbers[i] | numbers[i + kGroup / 2] << 4);
    }
  }
}

template void quantise_rows<float>(const float*, int64_t, int64_t, uint8_t*);
template void quantise_rows<bf16>(const bf16*, int64_t, int64_t, uint8_t*);

}  // namespace native
