// y = x w^T + bias for any number of rows. Weights lie in panels of kPanel columns, in the order they are
// read, so few rows run at the speed of memory and many at the speed of the multipliers. Each output is
// summed in one order whatever the number of rows: a row's result does not depend on its batch.
//
// Weights of int8 are widened on the way to the multipliers for few rows, else once for all rows. What is
// multiplied and summed is the same, and only the sum gets the column's scale.
//
// Where the processor has a matrix unit it takes all rows of bfloat16, one as well as many: its sums are not those of
// the vector units to the last bit.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "blocks.h"
#include "int8.h"
#include "kernels.h"
#include "scratch.h"
#include "tiles.h"

namespace native {
namespace {

constexpr int kMost = W == 16 ? 12 : 5;    // rows that fit the registers: two sums each, and 3 more
constexpr int kRows = W == 16 ? 8 : 5;     // rows at once if there are more than that
constexpr int kWidened = W == 16 ? 8 : 3;  // rows up to which int8 is widened on the way: that takes registers
constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 8192;           // bytes of weights asked for before they are read
constexpr int64_t kAheadTwo = 3072;        // with up to 2 rows: memory is all that takes time
constexpr int64_t kAheadFour = 6144;       // with up to 4
constexpr int64_t kFarPanel = 256 << 10;   // bytes of a panel up to which the next one is asked for

// Memory to ask for while multiplying, some bytes each step; at `turn` it goes on at `to`.
struct Wish {
  const char *at = nullptr, *turn = nullptr, *to = nullptr;

  // From some bytes behind `w` on.
  static Wish behind(const char* w, int64_t bytes, const Ahead& ahead) {
    const int64_t left = ahead.end - w;
    return bytes < left ? Wish{w + bytes, ahead.end, ahead.next} : Wish{ahead.next + (bytes - left), nullptr, nullptr};
  }
};

template <int Bytes>
inline void ask(Wish& wish) {
  for (int i = 0; i < Bytes; i += kLine) _mm_prefetch(wish.at + i, _MM_HINT_T1);
  wish.at += Bytes;
  wish.at = wish.at == wish.turn ? wish.to : wish.at;
}

// The same for any number of spans, of which the last is endless.
struct Wishes {
  Span now;
  const Span* then;
};

template <int Bytes>
inline void ask(Wishes& wishes) {
  for (int i = 0; i < Bytes; i += kLine) _mm_prefetch(wishes.now.at + i, _MM_HINT_T1);
  wishes.now.at += Bytes;
  if (wishes.now.at >= wishes.now.end) [[unlikely]] wishes.now = *wishes.then++;
}

template <class T>
struct Panel {
  T* y;
  const T* x;
  const void* w;
  const float* scales;  // of these columns, or null
  const T* bias;        // of these columns, or null
  int64_t in, out;
  int columns;          // of kPanel that exist
};

template <class T>
void finish(const Panel<T>& p, int n, float* sums) {
  if (p.scales)
    for (int c = 0; c < p.columns; ++c) sums[c] = std::fma(sums[c], p.scales[c], p.bias ? to_float(p.bias[c]) : 0.0f);
  else if (p.bias)
    for (int c = 0; c < p.columns; ++c) sums[c] += to_float(p.bias[c]);
  store_columns(p.y + n * p.out, sums, p.columns);
}

// The weights of kPanel columns and as many inputs as a lane holds.
template <class T>
inline void load_weights(const T* w, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
  first = Pack<T>::load(w);
  second = Pack<T>::load(w + W * Pack<T>::per);
}
template <class T>
inline void load_weights(const int8_t* w, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
  Int8<T>::load(w, first, second);
}

// Weights are of type S. Not inlined, and unrolled early: only so do compilers keep the sums in registers.
template <class T, class S, int N, int Ask, class Asked>
__attribute__((noinline)) void multiply(const Panel<T>& p, Asked& asked) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][2];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = zero();
  Asked ahead = asked;
  const S* w = static_cast<const S*>(p.w);
  const T* x = p.x;
  const int64_t in = p.in;
  for (int64_t i = 0; i < in; i += per, w += kPanel * per) {
    if constexpr (Ask > 0) ask<Ask>(ahead);
    typename Pack<T>::Reg w0, w1;
    load_weights<T>(w, w0, w1);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const auto xs = Pack<T>::spread(x + n * in + i);
      sums[n][0] = Pack<T>::dot(sums[n][0], w0, xs);
      sums[n][1] = Pack<T>::dot(sums[n][1], w1, xs);
    }
  }
  asked = ahead;
  float rows[N][kPanel];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    store(rows[n], sums[n][0]);
    store(rows[n] + W, sums[n][1]);
  }
  for (int n = 0; n < N; ++n) finish(p, n, rows[n]);
}

template <class T, class S, int Ask, int N, class Asked>
void multiply_rows(const Panel<T>& p, int64_t rows, Asked& ahead) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, S, N, Ask>(p, ahead);
    multiply_rows<T, S, Ask, N - 1>(p, rows, ahead);
  }
}

// Some inputs of a panel of int8 as one of T.
template <class T>
inline void widen(T* to, const int8_t* w, int64_t inputs) {
  constexpr int per = Pack<T>::per;
  for (T* end = to + inputs * kPanel; to < end; to += kPanel * per, w += kPanel * per) {
    typename Pack<T>::Reg first, second;
    load_weights<T>(w, first, second);
    Pack<T>::store(to, first);
    Pack<T>::store(to + W * per, second);
  }
}

// All of them, in memory of this thread's own that the next call overwrites.
template <class T>
const T* widened_panel(const void* w, int64_t in) {
  static thread_local Scratch<T> scratch;
  T* const panel = scratch.get(in * kPanel);
  widen(panel, static_cast<const int8_t*>(w), in);
  return panel;
}

#if defined(NATIVE_TILES)

constexpr int kTileStep = kTilePairs * kPanel * 2;  // weights in a step: two tiles side by side

// The weights of one step after the other: as they lie, or of int8, widened a step before they are used.
template <class S>
struct Steps {
  explicit Steps(const void* w) : w(static_cast<const bf16*>(w)) {}
  const bf16* next(bool) { return std::exchange(w, w + kTileStep); }
  const bf16* w;
};
template <>
struct Steps<int8_t> {
  explicit Steps(const void* w) : w(static_cast<const int8_t*>(w)) { widen(wide[0], this->w, 2 * kTilePairs); }
  const bf16* next(bool more) {
    const bf16* now = wide[at];
    w += kTileStep;
    at ^= 1;
    if (more) widen(wide[at], w, 2 * kTilePairs);
    return now;
  }
  alignas(64) bf16 wide[2][kTileStep];
  const int8_t* w;
  int at = 0;
};

// Up to 2 * kTileRows rows. Weights are of type S.
template <class S, bool Second, int Ask>
void multiply_tiles(const Panel<bf16>& p, int rows, Wish ahead) {
  constexpr int64_t line = kPanel * 2 * sizeof(bf16);
  shape_tiles(std::min(rows, kTileRows), Second ? rows - kTileRows : kTileRows);
  Steps<S> steps(p.w);
  const bf16* x = p.x;
  const int64_t stride = p.in * sizeof(bf16);
  _tile_zero(0);
  _tile_zero(1);
  if (Second) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < p.in; i += 2 * kTilePairs) {
    if constexpr (Ask > 0) ask<Ask>(ahead);
    const bf16* w = steps.next(i + 2 * kTilePairs < p.in);
    _tile_loadd(6, w, line);
    _tile_loadd(7, w + kPanel, line);
    _tile_loadd(4, x + i, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (!Second) continue;
    _tile_loadd(5, x + kTileRows * p.in + i, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float sums[2 * kTileRows][kPanel];
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + kPanel / 2, sizeof sums[0]);
  if (Second) {
    _tile_stored(2, sums[kTileRows], sizeof sums[0]);
    _tile_stored(3, sums[kTileRows] + kPanel / 2, sizeof sums[0]);
  }
  for (int n = 0; n < rows; ++n) finish(p, n, sums[n]);
}

template <class S, int Ask>
void multiply_tiles(const Panel<bf16>& p, int rows, const Wish& ahead) {
  if (rows > kTileRows) return multiply_tiles<S, true, Ask>(p, rows, ahead);
  multiply_tiles<S, false, Ask>(p, rows, ahead);
}

void multiply_by_tiles(const LinearCall& call, Panel<bf16> panel, int64_t bytes, const Ahead& ahead) {
  constexpr int step = kTileStep * sizeof(bf16), small = kTileStep;
  const int64_t blocks = (call.rows + 2 * kTileRows - 1) / (2 * kTileRows);
  const auto* w = static_cast<const char*>(panel.w);
  if (panel.scales && blocks > 1) panel.w = widened_panel<bf16>(w, panel.in);
  for (int64_t b = 0; b < blocks; ++b) {
    const auto rows = static_cast<int>(std::min<int64_t>(call.rows - b * 2 * kTileRows, 2 * kTileRows));
    const Wish wish = Wish::behind(w, blocks == 1 ? kAhead : bytes, ahead);
    if (b > 0 || (blocks > 1 && bytes > kFarPanel))
      multiply_tiles<bf16, 0>(panel, rows, wish);
    else if (panel.scales && blocks == 1)
      multiply_tiles<int8_t, small>(panel, rows, wish);
    else if (panel.scales)
      multiply_tiles<bf16, small>(panel, rows, wish);
    else
      multiply_tiles<bf16, step>(panel, rows, wish);
    panel.y += 2 * kTileRows * panel.out;
    panel.x += 2 * kTileRows * panel.in;
  }
}

#endif

}  // namespace

// A block of rows multiplies the panel, and asks for memory meanwhile: if it is the only block for the panel
// itself and what follows, some way ahead, else the first two for what comes after the panel, half of it each, so that memory
// works as long as the multipliers do. The second then also asks for what is beside it.
template <class T>
void linear_panel(const LinearCall& call, int index, const Ahead& ahead) {
  const Weights& weights = *call.weights;
  if (weights.blocks) return block_panel<T>(call, index, ahead);
  const int64_t in = weights.in, at = static_cast<int64_t>(index) * kPanel, rows = call.rows;
  constexpr int pairs = kPanel * Pack<T>::per;
  constexpr int step = pairs * sizeof(T), small = pairs;  // bytes of weights at a time, of int8 fewer
  const int64_t bytes = weights.panel_bytes(sizeof(T));
  const int64_t blocks = rows <= kMost ? 1 : (rows + kRows - 1) / kRows;
  const char* w = weights.panel(index, sizeof(T));
  T* y = static_cast<T*>(call.y) + at;
  const T* x = static_cast<const T*>(call.x);
  Panel<T> panel{y, x, w, weights.scales ? weights.scales + at : nullptr,
                 weights.bias ? static_cast<const T*>(weights.bias) + at : nullptr, in, weights.out,
                 static_cast<int>(std::min<int64_t>(kPanel, weights.out - at))};
#if defined(NATIVE_TILES)
  if constexpr (std::is_same_v<T, bf16>)
    if (in % (2 * kTilePairs) == 0) return multiply_by_tiles(call, panel, bytes, ahead);
#endif
  const bool widened = weights.scales && rows > kWidened;
  if (widened) panel.w = widened_panel<T>(w, in);
  Wish wish = Wish::behind(w, blocks > 1 ? bytes : rows <= 2 ? kAheadTwo : rows <= 4 ? kAheadFour : kAhead, ahead);
  const Span last = Span::endless(w);
  Wishes wishes{{wish.at, wish.at + bytes}, ahead.beside ? ahead.beside : &last};
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = rows * b / blocks, count = rows * (b + 1) / blocks - begin;
    panel.y = y + begin * weights.out;
    panel.x = x + begin * in;
    if (blocks == 1 && !widened) {
      if (weights.scales)
        multiply_rows<T, int8_t, small, kWidened>(panel, count, wish);
      else
        multiply_rows<T, T, step, kMost>(panel, count, wish);
    } else if (b == 0 && weights.scales) {
      multiply_rows<T, T, small, kMost>(panel, count, wish);
    } else if (weights.scales || bytes > kFarPanel || b > 1) {
      multiply_rows<T, T, 0, kRows>(panel, count, wish);
    } else if (b == 1 && ahead.beside) {
      multiply_rows<T, T, step, kRows>(panel, count, wishes);
    } else {
      multiply_rows<T, T, step / 2, kRows>(panel, count, wishes);
    }
  }
}

template <class T>
int64_t beside_bytes(const Weights& weights, int64_t rows) {
  if (weights.blocks || weights.scales || rows <= kMost) return 0;
#if defined(NATIVE_TILES)
  if (std::is_same_v<T, bf16> && weights.in % (2 * kTilePairs) == 0) return 0;
#endif
  const int64_t bytes = weights.panel_bytes(sizeof(T));
  return bytes > kFarPanel ? 0 : bytes / 2;
}

template int64_t beside_bytes<float>(const Weights&, int64_t);
template int64_t beside_bytes<bf16>(const Weights&, int64_t);
template void linear_panel<float>(const LinearCall&, int, const Ahead&);
template void linear_panel<bf16>(const LinearCall&, int, const Ahead&);

}  // namespace native
