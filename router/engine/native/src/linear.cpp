// y = x w^T + bias for any number of rows. Weights lie in panels of kPanel columns, in the order they are
// read, so few rows run at the speed of memory and many at the speed of the multipliers. Each output is
// summed in one order whatever the number of rows: a row's result does not depend on its batch.
#include <omp.h>

#include <algorithm>

#include "kernels.h"

namespace native {
namespace {

constexpr int kMost = W == 16 ? 12 : 5;    // rows that fit the registers: two sums each, and 3 more
constexpr int kRows = W == 16 ? 8 : 5;     // rows at once if there are more than that
constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 8192;           // bytes of weights asked for before they are read
constexpr int64_t kFarPanel = 256 << 10;   // bytes of a panel up to which the next one is asked for

// Memory to ask for while multiplying, some bytes each step.
struct Wish {
  const char *begin = nullptr, *last = nullptr;
};

template <int Bytes>
inline void ask(const char*& at, const char* last) {
  for (int i = 0; i < Bytes; i += kLine) _mm_prefetch(at + i, _MM_HINT_T1);
  at = std::min(at + Bytes, last);
}

template <class T>
struct Panel {
  T* y;
  const T* x;
  const T* w;
  const T* bias;  // of these columns, or null
  int64_t in, out;
  int columns;         // of kPanel that exist
  Wish ahead;
};

template <class T>
void finish(const Panel<T>& p, int n, float* sums) {
  if (p.bias)
    for (int c = 0; c < p.columns; ++c) sums[c] += to_float(p.bias[c]);
  T* y = p.y + n * p.out;
  if (p.columns == kPanel)
    for (int c = 0; c < kPanel; c += W) store(y + c, load(sums + c));
  else
    for (int c = 0; c < p.columns; ++c) put(y + c, sums[c]);
}

// Not inlined, and unrolled early: only so do compilers keep the sums in registers.
template <class T, int N, int Ask>
__attribute__((noinline)) void multiply(const Panel<T>& p) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][2];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = zero();
  const char* ahead = p.ahead.begin;
  const T *w = p.w, *x = p.x;
  const int64_t in = p.in;
  for (int64_t i = 0; i < in; i += per, w += kPanel * per) {
    if constexpr (Ask > 0) ask<Ask>(ahead, p.ahead.last);
    const auto w0 = Pack<T>::load(w), w1 = Pack<T>::load(w + W * per);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const auto xs = Pack<T>::spread(x + n * in + i);
      sums[n][0] = Pack<T>::dot(sums[n][0], w0, xs);
      sums[n][1] = Pack<T>::dot(sums[n][1], w1, xs);
    }
  }
  float rows[N][kPanel];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    store(rows[n], sums[n][0]);
    store(rows[n] + W, sums[n][1]);
  }
  for (int n = 0; n < N; ++n) finish(p, n, rows[n]);
}

template <class T, int Ask, int N>
void multiply_rows(const Panel<T>& p, int64_t rows) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, N, Ask>(p);
    multiply_rows<T, Ask, N - 1>(p, rows);
  }
}

template <class T>
struct Layer {
  T* y;
  const T* x;
  const T* w;
  const T* bias;
  int64_t rows, in, out;

  int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  int64_t blocks() const { return rows <= kMost ? 1 : (rows + kRows - 1) / kRows; }
};

// A block of rows multiplies a panel, and asks for memory meanwhile: its own panel some way ahead if it is
// the only block, else half of the next panel, so that memory is busy all the time.
template <class T>
void run_block(Panel<T>& panel, const Layer<T>& layer, int64_t block, int64_t rows) {
  constexpr int64_t step = kPanel * Pack<T>::per * sizeof(T);  // bytes of weights: one line or two
  const int64_t bytes = layer.in / Pack<T>::per * step;
  const char* w = reinterpret_cast<const char*>(panel.w);
  if (layer.blocks() == 1) {
    panel.ahead = {w + kAhead, w + kAhead + bytes - 1};
    return multiply_rows<T, step, kMost>(panel, rows);
  }
  if (block >= 2 || bytes > kFarPanel) return multiply_rows<T, 0, kRows>(panel, rows);
  panel.ahead = {w + bytes + block * bytes / 2, w + bytes + (block + 1) * bytes / 2 - 1};
  multiply_rows<T, step / 2, kRows>(panel, rows);
}

template <class T>
void run_panels(const Layer<T>& layer, int me, int all) {
  for (int64_t p = layer.panels() * me / all; p < layer.panels() * (me + 1) / all; ++p)
    for (int64_t b = 0; b < layer.blocks(); ++b) {
      const int64_t begin = layer.rows * b / layer.blocks(), end = layer.rows * (b + 1) / layer.blocks();
      const int64_t at = p * kPanel;
      Panel<T> panel{layer.y + begin * layer.out + at, layer.x + begin * layer.in, layer.w + at * layer.in,
                     layer.bias ? layer.bias + at : nullptr, layer.in, layer.out,
                     static_cast<int>(std::min<int64_t>(kPanel, layer.out - at)), {}};
      run_block(panel, layer, b, end - begin);
    }
}

}  // namespace

template <class T>
void linear(T* y, const T* x, const T* w, const T* bias, int64_t rows, int64_t in, int64_t out, int threads) {
  const Layer<T> layer{y, x, w, bias, rows, in, out};
#pragma omp parallel num_threads(threads)
  run_panels(layer, omp_get_thread_num(), omp_get_num_threads());
}

template void linear(float*, const float*, const float*, const float*, int64_t, int64_t, int64_t, int);
template void linear(bf16*, const bf16*, const bf16*, const bf16*, int64_t, int64_t, int64_t, int);

}  // namespace native
