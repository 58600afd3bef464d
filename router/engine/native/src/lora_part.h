// y += (x a^T) b for the tokens of one adapter at one site group: the arithmetic, without threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"
#include "tiles.h"

namespace native {

constexpr int kTogetherRows = W == 16 ? 4 : 2;  // rows that share a weight in registers
constexpr int kPanelsAhead = 2;                 // of b: the processor's own prefetcher stops at the border of a page

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// z [N][kSlice] of a slice of ranks, in two sums for the even and the odd lanes of inputs. Asks for as much at `after`.
template <class T, int N>
inline void project_slice(const T* x, int64_t ldx, const T* a, int64_t in, T* z, int64_t ldz, const T* after) {
  constexpr int per = Pack<T>::per, line = kSlice * per;
  Vec even[N], odd[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) even[n] = odd[n] = zero();
  int64_t i = 0;
  for (; i + 2 * per <= in; i += 2 * per, a += 2 * line, after += 2 * line) {
    prefetch(after);
    if (W == 16) prefetch(after + line);
    const auto first = Pack<T>::load(a), second = Pack<T>::load(a + line);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      even[n] = Pack<T>::dot(even[n], first, Pack<T>::spread(x + n * ldx + i));
      odd[n] = Pack<T>::dot(odd[n], second, Pack<T>::spread(x + n * ldx + i + per));
    }
  }
  for (; i < in; i += per, a += line) {
    const auto last = Pack<T>::load(a);
    for (int n = 0; n < N; ++n) {
      T pair[per] = {};  // what lies behind a row may be NaN
      for (int k = 0; k < per && i + k < in; ++k) pair[k] = x[n * ldx + i + k];
      even[n] = Pack<T>::dot(even[n], last, Pack<T>::spread(pair));
    }
  }
  for (int n = 0; n < N; ++n) store(z + n * ldz, add(even[n], odd[n]));
}

#if defined(NATIVE_TILES)

// The same by tiles, for up to kTileRows rows.
inline void project_by_tiles(const bf16* x, int64_t in, int rows, const bf16* a, bf16* z, int64_t ldz, const bf16* after) {
  constexpr int tile = kTilePairs * kSlice * 2;
  shape_tiles(rows, rows);
  const int64_t stride = in * static_cast<int64_t>(sizeof(bf16));
  _tile_zero(0);
  _tile_zero(2);
  for (int64_t i = 0; i < in; i += 2 * kTilePairs, a += tile, after += tile) {
    for (int line = 0; line < tile; line += 32) prefetch(after + line);
    if (i / (2 * kTilePairs) % 2 == 0) {
      _tile_loadd(4, x + i, stride);
      _tile_loadd(6, a, 64);
      _tile_dpbf16ps(0, 4, 6);
    } else {
      _tile_loadd(5, x + i, stride);
      _tile_loadd(7, a, 64);
      _tile_dpbf16ps(2, 5, 7);
    }
  }
  alignas(64) float even[kTileRows][kSlice], odd[kTileRows][kSlice];
  _tile_stored(0, even, sizeof even[0]);
  _tile_stored(2, odd, sizeof odd[0]);
  for (int n = 0; n < rows; ++n) store(z + n * ldz, add(load(even[n]), load(odd[n])));
}

#endif

// y[n][o..o + C * W) += z[n] b for N rows.
template <class T, int N, int C>
inline void expand_block(T* y, int64_t ldy, const T* z, int64_t ldz, const T* b, int64_t tile, int rank) {
  constexpr int per = Pack<T>::per;
  const int64_t ahead = kPanelsAhead * tile * rank;
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
      prefetch(from + ahead);
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
  // z [rows, slices * kSlice] is scratch that lives between `project` and `expand`, `width` apart.
  PartProduct(const LoraCall& call, const Part& part)
      : call_(call), x_(static_cast<const T*>(call.x) + part.start * call.in),
        y_(static_cast<T*>(call.y) + part.start * call.out), a_(address(call, part, 0)), b_(address(call, part, 1)),
        z_(static_cast<T*>(call.z) + part.start * call.width), rank_(call.rank(part.group)),
        rows_(part.rows) {}

  // Slices [first, last) of z = x a^T; asks for `after` at the end.
  void project(int first, int last, const T* after) const {
    const int64_t slice = (call_.in + Pack<T>::per - 1) / Pack<T>::per * Pack<T>::per * kSlice;
    for (int c = first; c < last; ++c) {
      const T* a = a_ + c * slice;
      const T* next = c + 1 < last ? a + slice : after;
      T* z = z_ + c * kSlice;
#if defined(NATIVE_TILES)
      if constexpr (std::is_same_v<T, bf16>)
        if (call_.in % (2 * kTilePairs) == 0) {
          for (int64_t n = 0; n < rows_; n += kTileRows, next = a)
            project_by_tiles(x_ + n * call_.in, call_.in, static_cast<int>(std::min<int64_t>(rows_ - n, kTileRows)), a,
                             z + n * call_.width, call_.width, next);
          continue;
        }
#endif
      rows_by<kTogetherRows>([&](int64_t n, auto rows) {
        project_slice<T, decltype(rows)::value>(x_ + n * call_.in, call_.in, a, call_.in, z + n * call_.width, call_.width,
                                                n == 0 ? next : a);
      });
    }
  }

  // Columns [first, last) of a layer, y += z b, in the panel of `width` columns that starts at `base`.
  void expand(int layer, int64_t base, int64_t width, int64_t first, int64_t last) const {
    int64_t o = first;
    for (; o + 2 * W <= last; o += 2 * W) expand_columns<2>(layer, base, width, o);
    for (; o + W <= last; o += W) expand_columns<1>(layer, base, width, o);
    for (; o < last; ++o)
      for (int64_t n = 0; n < rows_; ++n)
        expand_column(y_ + n * call_.out + o, z_ + n * call_.width + layer * rank_, column(base, o), width, rank_);
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

  template <int C>
  void expand_columns(int layer, int64_t base, int64_t tile, int64_t o) const {
    const T* b = column(base, o);
    const T* z = z_ + layer * rank_;
    rows_by<kTogetherRows>([&](int64_t n, auto rows) {
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
  int rank_;
  int64_t rows_;
};

}  // namespace native
