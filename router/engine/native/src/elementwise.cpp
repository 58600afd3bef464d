// Norms, rotary positions and the gated unit: one pass over memory each, statistics in float32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace native {
namespace {

template <class T>
float add_and_square(T* residual, const T* x, int64_t width) {
  Vec squares = zero();
  int64_t i = 0;
  for (; i + W <= width; i += W) {
    Vec v = load(x + i);
    if (residual) {
      store(residual + i, add(load(residual + i), v));
      v = load(residual + i);
    }
    squares = fma(v, v, squares);
  }
  float total = sum(squares);
  for (; i < width; ++i) {
    float v = to_float(x[i]);
    if (residual) {
      put(residual + i, to_float(residual[i]) + v);
      v = to_float(residual[i]);
    }
    total += v * v;
  }
  return total;
}

template <class T>
void weigh_row(T* out, const T* x, const float* weight, int64_t width, float factor) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store(out + i, mul(mul(load(x + i), set1(factor)), load(weight + i)));
  for (; i < width; ++i) put(out + i, to_float(x[i]) * factor * weight[i]);
}

// Fewer than W numbers, as the first lanes of a vector.
template <class T>
Vec load_some(const T* from, int64_t count) {
  T lanes[W] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
void store_some(T* to, Vec v, int64_t count) {
  T lanes[W];
  store(lanes, v);
  std::memcpy(to, lanes, count * sizeof(T));
}

template <class T>
bool has_nan(const T* x, int64_t width) {
  int64_t i = 0;
  uint32_t found = 0;
  for (; i + W <= width; i += W) found |= mask_nan(load(x + i));
  for (; i < width; ++i) found |= std::isnan(to_float(x[i]));
  return found;
}

template <class T>
void rotate(T* head, const float* cos, const float* sin, int half) {
  T *low = head, *high = head + half;
  int i = 0;
  for (; i + W <= half; i += W) {
    const Vec a = load(low + i), b = load(high + i);
    store(low + i, sub(mul(a, load(cos + i)), mul(b, load(sin + i))));
    store(high + i, fma(b, load(cos + half + i), mul(a, load(sin + half + i))));
  }
  for (; i < half; ++i) {
    const float a = to_float(low[i]), b = to_float(high[i]);
    put(low + i, a * cos[i] - b * sin[i]);
    put(high + i, b * cos[half + i] + a * sin[half + i]);
  }
}

// A key or value of dim numbers to its place in a block; attention_tile.h says how they lie there.
template <class T>
void keep_key(T* block, const T* key, int64_t offset, int dim) {
  constexpr int per = Pack<T>::per;
  for (int d = 0; d < dim; d += per) std::memcpy(block + d * kBlock + offset * per, key + d, per * sizeof(T));
}

template <class T>
void keep_value(T* block, const T* value, int64_t offset, int dim) {
  constexpr int per = Pack<T>::per;
  T* at = block + offset / per * per * dim + offset % per;
  for (int d = 0; d < dim; ++d) at[d * per] = value[d];
}

}  // namespace

template <class T>
void rope_token(const RopeCall& call, int64_t token, int first, int last) {
  const int dim = call.dim, group = call.heads / call.kv_heads, turned = call.heads + call.kv_heads;
  T* row = static_cast<T*>(call.qkv) + token * (turned + call.kv_heads) * dim;
  const int64_t at = static_cast<int64_t>(call.positions[token]) * call.turned;
  const float *cos = call.cos + at, *sin = call.sin + at;
  for (int h = first * group; h < last * group; ++h) rotate(row + h * dim, cos, sin, call.turned / 2);
  const int64_t block = call.slots[token] / kBlock, offset = call.slots[token] % kBlock;
  for (int h = first; h < last; ++h) {
    const int64_t place = (block * call.kv_heads + h) * kBlock * dim;
    T *key = row + (call.heads + h) * dim, *value = row + (turned + h) * dim;
    rotate(key, cos, sin, call.turned / 2);
    keep_key(static_cast<T*>(call.k_cache) + place, key, offset, dim);
    keep_value(static_cast<T*>(call.v_cache) + place, value, offset, dim);
  }
}

template <class T>
void norm_row(T* out, T* residual, const T* x, const float* weight, int64_t width, float eps) {
  const float squares = add_and_square(residual, x, width);
  const float factor = 1.0f / std::sqrt(squares / width + eps);
  weigh_row(out, residual ? residual : x, weight, width, factor);
}

template <class T>
void scale_row(T* out, const T* x, int64_t width, float factor) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store(out + i, mul(load(x + i), set1(factor)));
  for (; i < width; ++i) put(out + i, to_float(x[i]) * factor);
}

template <class T>
void add_row(T* residual, const T* x, int64_t width) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store(residual + i, add(load(residual + i), load(x + i)));
  for (; i < width; ++i) put(residual + i, to_float(residual[i]) + to_float(x[i]));
}

// out = g / (1 + 2^exponent(g)) * up
template <class T, class F>
void gate_by(F&& exponent, T* out, const T* gate, int64_t inner, int64_t first, int64_t last) {
  const Vec one = set1(1.0f);
  const T* up = gate + inner;
  for (int64_t i = first; i < last; i += W) {
    const bool whole = i + W <= last;
    const Vec g = whole ? load(gate + i) : load_some(gate + i, last - i);
    const Vec gated = mul(div(g, add(one, exp2(exponent(g)))), whole ? load(up + i) : load_some(up + i, last - i));
    if (whole)
      store(out + i, gated);
    else
      store_some(out + i, gated, last - i);
  }
}

template <class T>
void gate_columns(Gate gate, T* out, const T* gate_up, int64_t inner, int64_t first, int64_t last) {
  constexpr float kLog2E = 1.44269504f;
  if (gate == Gate::kSilu)
    return gate_by([&](Vec g) { return mul(g, set1(-kLog2E)); }, out, gate_up, inner, first, last);
  // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) with u = sqrt(2 / pi) * (g + 0.044715 g^3), Hendrycks & Gimpel 2016
  constexpr float kScale = -2.0f * kLog2E * 0.79788456f;
  const auto exponent = [&](Vec g) { return mul(g, fma(mul(g, g), set1(0.044715f * kScale), set1(kScale))); };
  gate_by(exponent, out, gate_up, inner, first, last);
}

template <class T>
void cap_row(T* x, int64_t width, float cap) {  // tanh(x) = 1 - 2 / (1 + e^2x)
  const Vec one = set1(1.0f), factor = set1(2.0f * 1.44269504f / cap);
  const auto capped = [&](Vec v) { return mul(set1(cap), sub(one, div(set1(2.0f), add(one, exp2(mul(v, factor)))))); };
  int64_t i = 0;
  for (; i + W <= width; i += W) store(x + i, capped(load(x + i)));
  if (i < width) store_some(x + i, capped(load_some(x + i, width - i)), width - i);
}

template <class T>
int64_t largest_of(const T* x, int64_t width) {
  constexpr int64_t kStretch = 512;
  const float low = -std::numeric_limits<float>::infinity();
  Vec odd = zero();  // NaN once there is a NaN or an infinity: the maximum passes over NaN
  float most = low;
  int64_t where = 0;
  for (int64_t begin = 0; begin < width; begin += kStretch) {
    const int64_t end = std::min(width, begin + kStretch);
    Vec best = set1(low);
    int64_t i = begin;
    for (; i + W <= end; i += W) {
      const Vec v = load(x + i);
      best = max(v, best);
      odd = fma(v, zero(), odd);
    }
    float here = largest(best);
    for (; i < end; ++i) {
      here = std::max(here, to_float(x[i]));
      odd = add(odd, set1(to_float(x[i]) * 0.0f));
    }
    if (here > most) most = here, where = begin;
  }
  if (sum(odd) != 0.0f && has_nan(x, width)) return -1;
  if (!(std::fabs(most) <= std::numeric_limits<float>::max())) return -1;
  while (to_float(x[where]) != most) ++where;
  return where;
}

void touch(const char* from, int64_t bytes) {
  constexpr int64_t kAhead = 8192;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    _mm_prefetch(from + i + kAhead, _MM_HINT_T1);
    for (int at = 0; at < 64; at += static_cast<int>(sizeof(Bits))) {
      const Bits line = load_bits(from + i + at);
      asm volatile("" : : "v"(line));
    }
  }
}

template void rope_token<float>(const RopeCall&, int64_t, int, int);
template void norm_row(float*, float*, const float*, const float*, int64_t, float);
template void scale_row(float*, const float*, int64_t, float);
template void cap_row(float*, int64_t, float);
template void add_row(float*, const float*, int64_t);
template void gate_columns(Gate, float*, const float*, int64_t, int64_t, int64_t);
template int64_t largest_of(const float*, int64_t);
template void rope_token<bf16>(const RopeCall&, int64_t, int, int);
template void norm_row(bf16*, bf16*, const bf16*, const float*, int64_t, float);
template void scale_row(bf16*, const bf16*, int64_t, float);
template void cap_row(bf16*, int64_t, float);
template void add_row(bf16*, const bf16*, int64_t);
template void gate_columns(Gate, bf16*, const bf16*, int64_t, int64_t, int64_t);
template int64_t largest_of(const bf16*, int64_t);

}  // namespace native
