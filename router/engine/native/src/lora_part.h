// y += (x a^T) b for the tokens of one adapter at one site group: the arithmetic, without threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"

namespace native {

constexpr int kLoraRows = W == 16 ? 4 : 2;  // rows that share a weight in registers

// Weights are asked for some way ahead: the processor's own prefetcher stops at the border of a page.
constexpr int kQuads = 2;         // rows of a, in units of four
constexpr int64_t kAhead = 8192;  // bytes of b

template <class T>
inline void prefetch(const T* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

// z[n][c] for N rows and R ranks.
template <class T, int N, int R>
__attribute__((noinline)) void project_block(const T* x, const T* a, int64_t in, T* z, int64_t ldz, const T* ahead) {
  constexpr int step = W * Pack<T>::per;
  Vec sums[N][R];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[n][r] = zero();
  int64_t i = 0;
  for (; i + step <= in; i += step) {
    typename Pack<T>::Reg xs[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) xs[n] = Pack<T>::load(x + n * in + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      prefetch(ahead + r * in + i);
      const auto as = Pack<T>::load(a + r * in + i);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[n][r] = Pack<T>::dot(sums[n][r], xs[n], as);
    }
  }
  for (int n = 0; n < N; ++n) {
    float total[R];
    if constexpr (R % 4 == 0) {
      for (int r = 0; r < R; r += 4) sum4(sums[n] + r, total + r);
    } else {
      for (int r = 0; r < R; ++r) total[r] = sum(sums[n][r]);
    }
    for (int r = 0; r < R; ++r) {
      for (int64_t t = i; t < in; ++t) total[r] += to_float(x[n * in + t]) * to_float(a[r * in + t]);
      put(z + n * ldz + r, total[r]);
    }
  }
}

// y[n][o..o + C * W) += z[n] b for N rows.
template <class T, int N, int C>
__attribute__((noinline)) void expand_block(T* y, int64_t ldy, const T* z, int64_t ldz, const T* b, int64_t tile, int rank) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][C];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[n][c] = load(y + n * ldy + c * W);
  for (int r = 0; r < rank; r += per) {
    typename Pack<T>::Reg bs[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const T* from = b + r * tile + c * W * per;
      prefetch(from + kAhead / sizeof(T));
      bs[c] = Pack<T>::load(from);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const auto zs = Pack<T>::spread(z + n * ldz + r);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[n][c] = Pack<T>::dot(sums[n][c], bs[c], zs);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(y + n * ldy + c * W, sums[n][c]);
}

template <class T>
void expand_column(T* y, const T* z, const T* b, int64_t tile, int rank) {
  constexpr int per = Pack<T>::per;
  float total = to_float(*y);
  for (int r = 0; r < rank; ++r)
    total += to_float(z[r]) * to_float(b[(r / per) * tile * per + r % per]);
  put(y, total);
}

template <class T>
class PartProduct {
 public:
  // z [rows, ranks] is scratch that lives between `project` and `expand`, `width` apart.
  PartProduct(const LoraCall& call, const Part& part)
      : call_(call), x_(static_cast<const T*>(call.x) + part.start * call.in),
        y_(static_cast<T*>(call.y) + part.start * call.out), a_(address(call, part, 0)), b_(address(call, part, 1)),
        z_(static_cast<T*>(call.z) + part.start * call.width), rank_(call.rank(part.group)),
        ranks_(rank_ * call.layers), rows_(part.rows) {}

  // Ranks [first, last) of z = x a^T.
  void project(int first, int last) const {
    int c = first;
    if (rows_ <= 2)  // else too few sums at once
      for (; c + 8 <= last; c += 8) project_ranks<8, 2>(c);
    for (; c + 4 <= last; c += 4) project_ranks<4, kLoraRows>(c);
    for (; c + 2 <= last; c += 2) project_ranks<2, kLoraRows>(c);
  }

  // y += z b in the tile of columns that starts at `base`.
  void expand(int64_t base) const {
    const int64_t tile = std::min<int64_t>(kTile, call_.out - base);
    for (int layer = 0; layer < call_.layers; ++layer) {
      const int64_t first = std::max(base, call_.offsets[layer]);
      const int64_t last = std::min(base + tile, call_.offsets[layer + 1]);
      if (first < last) expand_range(layer, base, tile, first, last);
    }
  }

 private:
  static const T* address(const LoraCall& call, const Part& part, int which) {
    return reinterpret_cast<const T*>(call.table[3 * part.group + which]);
  }

  // Calls f(first row, number of rows as a constant) for all rows, N together while there are so many.
  template <int N, class F>
  void rows_by(F&& f, int64_t n = 0) const {
    for (; n + N <= rows_; n += N) f(n, std::integral_constant<int, N>{});
    if constexpr (N > 1) {
      if (n < rows_) rows_by<N - 1>(f, n);
    }
  }

  template <int R, int N>
  void project_ranks(int c) const {
    const int later = c + kQuads * R;
    const T* ahead = later < ranks_ ? a_ + later * call_.in : b_;
    rows_by<N>([&](int64_t n, auto rows) {
      project_block<T, decltype(rows)::value, R>(x_ + n * call_.in, a_ + c * call_.in, call_.in,
                                                 z_ + n * call_.width + c, call_.width, ahead);
    });
  }

  void expand_range(int layer, int64_t base, int64_t tile, int64_t first, int64_t last) const {
    int64_t o = first;
    for (; o + 4 * W <= last; o += 4 * W) expand_columns<4>(layer, base, tile, o);
    for (; o + W <= last; o += W) expand_columns<1>(layer, base, tile, o);
    for (; o < last; ++o)
      for (int64_t n = 0; n < rows_; ++n)
        expand_column(y_ + n * call_.out + o, z_ + n * call_.width + layer * rank_, column(base, o), tile, rank_);
  }

  template <int C>
  void expand_columns(int layer, int64_t base, int64_t tile, int64_t o) const {
    const T* b = column(base, o);
    const T* z = z_ + layer * rank_;
    rows_by<kLoraRows>([&](int64_t n, auto rows) {
      expand_block<T, decltype(rows)::value, C>(y_ + n * call_.out + o, call_.out, z + n * call_.width, call_.width, b,
                                                tile, rank_);
    });
  }

  const T* column(int64_t base, int64_t o) const { return b_ + base * rank_ + (o - base) * Pack<T>::per; }

  const LoraCall& call_;
  const T* x_;
  T* y_;
  const T* a_;
  const T* b_;
  T* z_;
  int rank_, ranks_;
  int64_t rows_;
};

}  // namespace native
