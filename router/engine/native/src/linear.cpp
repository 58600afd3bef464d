// y = x w^T + bias for any number of rows. Weights lie in panels of kPanel columns, in the order they are
// read, so few rows run at the speed of memory and many at the speed of the multipliers. Each output is
// summed in one order whatever the number of rows: a row's result does not depend on its batch.
#include <omp.h>

#include <algorithm>

#include "kernels.h"

namespace native {
namespace {

constexpr int kRows = W == 16 ? 12 : 5;  // rows in registers: kRows x 2 sums, and 3 more
constexpr int64_t kAhead = 8192;         // bytes of weights asked for before they are read

template <class T>
struct Panel {
  T* y;
  const T* x;
  const T* w;
  const T* bias;  // of these columns, or null
  int64_t in, out;
  int columns;  // of kPanel that exist
};

template <class T, int N, bool First>
void multiply(const Panel<T>& p) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][2];
  for (auto& row : sums) row[0] = row[1] = zero();
  const T* w = p.w;
  for (int64_t i = 0; i < p.in; i += per, w += kPanel * per) {
    typename Pack<T>::Reg ws[2];
    for (int c = 0; c < 2; ++c) {
      if constexpr (First) _mm_prefetch(reinterpret_cast<const char*>(w + c * W * per) + kAhead, _MM_HINT_T1);
      ws[c] = Pack<T>::load(w + c * W * per);
    }
    for (int n = 0; n < N; ++n) {
      const auto xs = Pack<T>::spread(p.x + n * p.in + i);
      for (int c = 0; c < 2; ++c) sums[n][c] = Pack<T>::dot(sums[n][c], ws[c], xs);
    }
  }
  for (int n = 0; n < N; ++n) {
    float row[kPanel];
    for (int c = 0; c < 2; ++c) store(row + c * W, sums[n][c]);
    if (p.bias)
      for (int c = 0; c < p.columns; ++c) row[c] += to_float(p.bias[c]);
    T* y = p.y + n * p.out;
    if (p.columns == kPanel)
      for (int c = 0; c < 2; ++c) store(y + c * W, load(row + c * W));
    else
      for (int c = 0; c < p.columns; ++c) put(y + c, row[c]);
  }
}

// First: the first rows that use this panel, whose weights still come from memory.
template <class T, bool First, int N = kRows>
void multiply_rows(const Panel<T>& p, int64_t rows) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, N, First>(p);
    multiply_rows<T, First, N - 1>(p, rows);
  }
}

}  // namespace

template <class T>
void linear(T* y, const T* x, const T* w, const T* bias, int64_t rows, int64_t in, int64_t out, int threads) {
  const int64_t panels = (out + kPanel - 1) / kPanel, blocks = (rows + kRows - 1) / kRows;
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t p = panels * me / all; p < panels * (me + 1) / all; ++p)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = rows * b / blocks, last = rows * (b + 1) / blocks, at = p * kPanel;
        const Panel<T> panel{y + first * out + at, x + first * in, w + at * in, bias ? bias + at : nullptr, in,
                             out, static_cast<int>(std::min<int64_t>(kPanel, out - at))};
        b == 0 ? multiply_rows<T, true>(panel, last - first) : multiply_rows<T, false>(panel, last - first);
      }
  }
}

template void linear(float*, const float*, const float*, const float*, int64_t, int64_t, int64_t, int);
template void linear(bf16*, const bf16*, const bf16*, const bf16*, int64_t, int64_t, int64_t, int);

}  // namespace native
