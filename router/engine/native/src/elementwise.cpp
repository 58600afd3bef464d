// Norms, rotary positions and the gated unit: one pass over memory each, statistics in float32.
#include <cmath>

#include "kernels.h"

namespace native {
namespace {

constexpr int64_t kSerial = 1 << 15;  // elements below which waking threads costs more than it saves

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
void scale_row(T* out, const T* x, const T* weight, int64_t width, float factor) {
  int64_t i = 0;
  for (; i + W <= width; i += W) store(out + i, mul(mul(load(x + i), set1(factor)), load(weight + i)));
  for (; i < width; ++i) put(out + i, to_float(x[i]) * factor * to_float(weight[i]));
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

template <class T>
void rope_token(const RopeCall& call, int64_t token) {
  const int dim = call.dim, turned = call.heads + call.kv_heads;
  T* row = static_cast<T*>(call.qkv) + token * (turned + call.kv_heads) * dim;
  const int64_t at = static_cast<int64_t>(call.positions[token]) * dim;
  for (int h = 0; h < turned; ++h) rotate(row + h * dim, call.cos + at, call.sin + at, dim / 2);
  const int64_t block = call.slots[token] / kBlock, offset = call.slots[token] % kBlock;
  for (int h = 0; h < call.kv_heads; ++h) {
    const int64_t place = ((block * call.kv_heads + h) * kBlock + offset) * dim;
    std::memcpy(static_cast<T*>(call.k_cache) + place, row + (call.heads + h) * dim, dim * sizeof(T));
    std::memcpy(static_cast<T*>(call.v_cache) + place, row + (turned + h) * dim, dim * sizeof(T));
  }
}

}  // namespace

template <class T>
void rms_norm(T* out, T* residual, const T* x, const T* weight, int64_t rows, int64_t width, float eps,
              int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > kSerial && threads > 1)
  for (int64_t row = 0; row < rows; ++row) {
    T* kept = residual ? residual + row * width : nullptr;
    const T* from = x + row * width;
    const float squares = add_and_square(kept, from, width);
    const float factor = 1.0f / std::sqrt(squares / width + eps);
    scale_row(out + row * width, kept ? kept : from, weight, width, factor);
  }
}

template <class T>
void silu_mul(T* out, const T* gate_up, int64_t rows, int64_t inner, int threads) {
  const Vec one = set1(1.0f), minus_log2e = set1(-1.44269504f);
#pragma omp parallel for num_threads(threads) if (rows * inner > kSerial && threads > 1)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * inner, *up = gate + inner;
    T* to = out + row * inner;
    int64_t i = 0;
    for (; i + W <= inner; i += W) {
      const Vec g = load(gate + i);
      const Vec silu = div(g, add(one, exp2(mul(g, minus_log2e))));
      store(to + i, mul(silu, load(up + i)));
    }
    for (; i < inner; ++i) {
      const float g = to_float(gate[i]);
      put(to + i, g / (1.0f + std::exp(-g)) * to_float(up[i]));
    }
  }
}

template <class T>
void rope_write(const RopeCall& call, int threads) {
  const int64_t width = (call.heads + 2 * call.kv_heads) * call.dim;
#pragma omp parallel for num_threads(threads) if (call.tokens * width > kSerial && threads > 1)
  for (int64_t token = 0; token < call.tokens; ++token) rope_token<T>(call, token);
}

template void rms_norm(float*, float*, const float*, const float*, int64_t, int64_t, float, int);
template void rms_norm(bf16*, bf16*, const bf16*, const bf16*, int64_t, int64_t, float, int);
template void silu_mul(float*, const float*, int64_t, int64_t, int);
template void silu_mul(bf16*, const bf16*, int64_t, int64_t, int);
template void rope_write<float>(const RopeCall&, int);
template void rope_write<bf16>(const RopeCall&, int);

}  // namespace native
