// y = x w^T + bias for any number of rows. Weights lie in panels of kPanel columns, in the order they are
// read, so few rows run at the speed of memory and many at the speed of the multipliers. Each output is
// summed in one order whatever the number of rows: a row's result does not depend on its batch.
#include <algorithm>

#include "kernels.h"

namespace native {
namespace {

constexpr int kMost = W == 16 ? 12 : 5;    // rows that fit the registers: two sums each, and 3 more
constexpr int kRows = W == 16 ? 8 : 5;     // rows at once if there are more than that
constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 8192;           // bytes of weights asked for before they are read
constexpr int64_t kFarPanel = 256 << 10;   // bytes of a panel up to which the next one is asked for

// Memory to ask for while multiplying, some bytes each step; at `turn` it goes on at `to`.
struct Wish {
  const char *at = nullptr, *turn = nullptr, *to = nullptr;
};

template <int Bytes>
inline void ask(Wish& wish) {
  for (int i = 0; i < Bytes; i += kLine) _mm_prefetch(wish.at + i, _MM_HINT_T1);
  wish.at += Bytes;
  wish.at = wish.at == wish.turn ? wish.to : wish.at;
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
  Wish ahead = p.ahead;
  const T *w = p.w, *x = p.x;
  const int64_t in = p.in;
  for (int64_t i = 0; i < in; i += per, w += kPanel * per) {
    if constexpr (Ask > 0) ask<Ask>(ahead);
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

}  // namespace

// A block of rows multiplies the panel, and asks for memory meanwhile: if it is the only block for the panel
// itself some way ahead, else the first for what comes after the panel and the second for what is read soon.
template <class T>
void linear_panel(const LinearCall& call, int index, const Soon& soon) {
  const Weights& weights = *call.weights;
  const int64_t in = weights.in, at = static_cast<int64_t>(index) * kPanel, rows = call.rows;
  constexpr int64_t step = kPanel * Pack<T>::per * sizeof(T);  // bytes of weights: one line or two
  const int64_t bytes = in / Pack<T>::per * step;
  const int64_t blocks = rows <= kMost ? 1 : (rows + kRows - 1) / kRows;
  const T* w = static_cast<const T*>(weights.w) + at * in;
  const char* next = reinterpret_cast<const char*>(w) + bytes;
  Panel<T> panel{nullptr, nullptr, w, weights.bias ? static_cast<const T*>(weights.bias) + at : nullptr, in,
                 weights.out, static_cast<int>(std::min<int64_t>(kPanel, weights.out - at)), {}};
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = rows * b / blocks, count = rows * (b + 1) / blocks - begin;
    panel.y = static_cast<T*>(call.y) + begin * weights.out + at;
    panel.x = static_cast<const T*>(call.x) + begin * in;
    if (blocks == 1) {
      panel.ahead = {next - bytes + kAhead, next, soon.after};
      if (bytes <= kAhead) panel.ahead = {soon.after, nullptr, nullptr};
      multiply_rows<T, step, kMost>(panel, count);
    } else if (b == 0 && bytes <= kFarPanel) {
      panel.ahead = {soon.after, nullptr, nullptr};
      multiply_rows<T, step, kRows>(panel, count);
    } else if (b == 1 && soon.bytes > 0) {
      const char* end = soon.beside + (soon.bytes + kLine - 1) / kLine * kLine;
      panel.ahead = {soon.beside, end, end - kLine};
      multiply_rows<T, kLine, kRows>(panel, count);
    } else {
      multiply_rows<T, 0, kRows>(panel, count);
    }
  }
}

template void linear_panel<float>(const LinearCall&, int, const Soon&);
template void linear_panel<bf16>(const LinearCall&, int, const Soon&);

}  // namespace native
