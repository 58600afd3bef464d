// y = x w^T + bias with weights in 4 bits (blocks.h).
//
// The numbers of a group are widened on the way to the multipliers, which is exact in bfloat16, multiplied and summed;
// then the sum gets the group's scale, and the sum of the group's inputs its minimum. The order is the same for any
// number of rows, so a row's result does not depend on its batch. The matrix unit is not used: its sums are others to
// the last bit. Many rows widen the numbers again every kRows rows. That hides behind the products, and takes less time
// than to widen a panel once and read it from the caches.
//
// A panel has the groups of kPanel columns, one after the other along the inputs. Of each group: kPanel scales, kPanel
// minima (float16), numbers. Numbers lie in words of 32 bits, one a column, for eight inputs: input i at bit
// 16 * (i % 2) + 4 * (i / 2).
#include "blocks.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "scratch.h"

namespace native {
namespace {

constexpr int kRows = W == 16 ? 8 : 5;  // rows at once: two sums each
constexpr int64_t kLine = 64, kAhead = 8192;
constexpr int kHead = 4 * kPanel, kWords = 4 * kPanel;  // bytes of scales and minima, and of eight numbers of each column
constexpr int kPanelGroup = kGroupBytes * kPanel;       // bytes of a group of all columns

// -- numbers of a word

constexpr int shift(int i) { return 16 * (i % 2) + 4 * (i / 2); }

#if defined(__AVX512F__)

using Words = uint16_t __attribute__((vector_size(64)));
using Lanes = uint32_t __attribute__((vector_size(64)));

inline Bits words_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Words>(v) >> by); }
inline Bits lanes_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) >> by); }

#else

using Lanes = uint32_t __attribute__((vector_size(32)));

inline Bits lanes_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) >> by); }
inline Bits lanes_left(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) << by); }
inline Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
inline Bits either(Bits a, Bits b) { return _mm256_or_si256(a, b); }

#endif

// What numbers are multiplied with added to them: bfloat16 of 128 and a number has the number as its lowest bits, so no
// table is needed. The sum of the inputs takes it off again.
template <class T>
constexpr int kBias = W == 16 && std::is_same_v<T, bf16> ? 128 : 0;

struct Table {
  alignas(64) float floats[16];
  constexpr Table() : floats() {
    for (int i = 0; i < 16; ++i) floats[i] = static_cast<float>(i);
  }
};
inline constexpr Table kTable{};

// Number i of each word.
inline Vec number(Bits words, int i) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(lanes_right(words, shift(i)), load(kTable.floats));
#else
  return _mm256_cvtepi32_ps(both(lanes_right(words, shift(i)), spread_bits(15)));
#endif
}

// Numbers i and i + 1 side by side in bfloat16, which holds them exactly, with kBias.
inline Bits pair(Bits words, int i) {
#if defined(__AVX512F__)
  static_assert(kBias<bf16> == 128);
  const Bits at = words_right(words, shift(i));
  return _mm512_ternarylogic_epi32(at, _mm512_set1_epi16(15), _mm512_set1_epi16(0x4300), 0xea);  // (at & 15) | bits of 128
#else
  const Bits even = _mm256_castps_si256(number(words, i)), odd = _mm256_castps_si256(number(words, i + 1));
  return either(lanes_right(even, 16), odd);
#endif
}

// Numbers k * per .. of the words of all columns.
template <class T>
inline void numbers_of(const char* words, int k, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
  const Bits a = load_bits(words), b = load_bits(words + 4 * W);
  if constexpr (Pack<T>::per == 2) {
    first = pair(a, 2 * k);
    second = pair(b, 2 * k);
  } else {
    first = number(a, k);
    second = number(b, k);
  }
}

// -- scales

#if defined(__AVX512F__)
inline Vec from_half(const char* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
#else
inline Vec from_half(const char* p) {
  const Bits given = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const Bits size = both(given, spread_bits(0x7fff));
  const Vec scaled = mul(_mm256_castsi256_ps(lanes_left(size, 13)), set1(0x1p112f));  // the exponent's other bias
  const Bits endless = both(_mm256_cmpgt_epi32(size, spread_bits(0x7bff)), spread_bits(0x7f800000));
  const Bits sign = lanes_left(both(given, spread_bits(0x8000)), 16);
  return _mm256_castsi256_ps(either(either(_mm256_castps_si256(scaled), endless), sign));
}
#endif

struct Scales {
  Vec scale[2], minimum[2];  // the minimum takes kBias off
};

template <class T>
inline void scales_of(const char* group, Scales& s) {
  for (int c = 0; c < 2; ++c) {
    s.scale[c] = from_half(group + 2 * W * c);
    s.minimum[c] = from_half(group + 2 * kPanel + 2 * W * c);
    if constexpr (kBias<T> != 0) s.minimum[c] = fma(set1(-static_cast<float>(kBias<T>)), s.scale[c], s.minimum[c]);
  }
}

// -- the product

template <class T>
struct Panel {
  T* y;
  const T* x;
  const float* sums;  // [rows, in / kGroupInputs] of the inputs
  const char* w;
  const T* bias;      // of these columns, or null
  int64_t in, out;
  int columns;        // of kPanel that exist
  const char *ahead, *turn, *to;  // memory to ask for while multiplying: from `ahead` on, at `turn` it goes on at `to`
};

template <class T>
inline void ask(Panel<T>& p, int bytes) {
  for (int i = 0; i < bytes; i += kLine) _mm_prefetch(p.ahead + i, _MM_HINT_T1);
  p.ahead += bytes;
  if (p.turn && p.ahead >= p.turn) {
    p.ahead = p.to;
    p.turn = nullptr;
  }
}

template <class T>
void finish(const Panel<T>& p, int n, float* sums) {
  if (p.bias)
    for (int c = 0; c < p.columns; ++c) sums[c] += to_float(p.bias[c]);
  store_columns(p.y + n * p.out, sums, p.columns);
}

// N rows. Not inlined, and unrolled early: only so do compilers keep the sums in registers.
template <class T, int N, bool Ask>
__attribute__((noinline)) void multiply(Panel<T> p) {
  constexpr int per = Pack<T>::per;
  alignas(64) float totals[N][kPanel] = {};
  const int64_t groups = p.in / kGroupInputs;
  const T* x = p.x;
  const float* sums = p.sums;
  for (const char *group = p.w, *end = group + groups * kPanelGroup; group < end; group += kPanelGroup) {
    if constexpr (Ask) ask(p, kPanelGroup);
    Vec of[N][2];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) of[n][0] = of[n][1] = zero();
#pragma GCC unroll 1
    for (int l = 0; l < kGroupInputs / 8; ++l) {
      const char* const words = group + kHead + l * kWords;
#pragma GCC unroll 16
      for (int k = 0; k < 8 / per; ++k) {
        typename Pack<T>::Reg w0, w1;
        numbers_of<T>(words, k, w0, w1);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          const auto xs = Pack<T>::spread(x + n * p.in + l * 8 + k * per);
          of[n][0] = Pack<T>::dot(of[n][0], w0, xs);
          of[n][1] = Pack<T>::dot(of[n][1], w1, xs);
        }
      }
    }
    Scales s;
    scales_of<T>(group, s);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        const Vec total = fma(s.scale[c], of[n][c], load(totals[n] + W * c));
        store(totals[n] + W * c, fma(s.minimum[c], set1(sums[n * groups]), total));
      }
    }
    x += kGroupInputs;
    ++sums;
  }
  for (int n = 0; n < N; ++n) finish(p, n, totals[n]);
}

template <class T, bool Ask, int N>
void multiply_rows(const Panel<T>& p, int64_t rows) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, N, Ask>(p);
    multiply_rows<T, Ask, N - 1>(p, rows);
  }
}

// The sums of each group of inputs of all rows. A thread keeps those of the call it worked on last.
template <class T>
const float* sums_of(const LinearCall& call) {
  static thread_local Scratch<float> scratch;
  static thread_local uint64_t known = 0;
  const int64_t count = call.rows * call.weights->in / kGroupInputs;
  float* const sums = scratch.get(count);
  if (call.stamp && call.stamp == known) return sums;
  const T* x = static_cast<const T*>(call.x);
  for (int64_t i = 0; i < count; ++i, x += kGroupInputs) {
    Vec part = load(x);
    for (int j = W; j < kGroupInputs; j += W) part = add(part, load(x + j));
    sums[i] = sum(part);
  }
  known = call.stamp;
  return sums;
}

// -- packing

void pack_column(const uint8_t* row, int64_t in, int column, char* to) {
  for (int64_t i = 0; i < in; i += kGroupInputs, row += kGroupBytes, to += kPanelGroup) {
    std::memcpy(to + 2 * column, row, 2);
    std::memcpy(to + 2 * kPanel + 2 * column, row + 2, 2);
    uint8_t numbers[kGroupInputs];
    for (int j = 0; j < kGroupInputs / 2; ++j) {
      numbers[j] = row[4 + j] & 15;
      numbers[kGroupInputs / 2 + j] = row[4 + j] >> 4;
    }
    for (int l = 0; l < kGroupInputs / 8; ++l) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j) word |= static_cast<uint32_t>(numbers[8 * l + j]) << shift(j);
      std::memcpy(to + kHead + l * kWords + 4 * column, &word, 4);
    }
  }
}

}  // namespace

uint64_t fresh_stamps(uint64_t count) {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(count);
}

void pack_panel(const uint8_t* rows, int64_t in, int64_t out, int panel, char* to) {
  const int64_t width = in / kGroupInputs * kGroupBytes, first = int64_t{panel} * kPanel;
  for (int c = 0; c < kPanel && first + c < out; ++c) pack_column(rows + (first + c) * width, in, c, to);
}

template <class T>
void block_panel(const LinearCall& call, int index, const Ahead& ahead) {
  const Weights& weights = *call.weights;
  const int64_t at = int64_t{index} * kPanel, rows = call.rows;
  Panel<T> panel{static_cast<T*>(call.y) + at, static_cast<const T*>(call.x), sums_of<T>(call), weights.panel(index, sizeof(T)),
                 weights.bias ? static_cast<const T*>(weights.bias) + at : nullptr, weights.in, weights.out,
                 static_cast<int>(std::min<int64_t>(kPanel, weights.out - at)), nullptr, nullptr, nullptr};
  const int64_t left = ahead.end - panel.w;
  const bool near = kAhead < left;
  panel.ahead = near ? panel.w + kAhead : ahead.next + (kAhead - left);
  panel.turn = near ? ahead.end : nullptr;
  panel.to = ahead.next;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = rows * b / blocks, count = rows * (b + 1) / blocks - begin;
    Panel<T> some = panel;
    some.y += begin * panel.out;
    some.x += begin * panel.in;
    some.sums += begin * (panel.in / kGroupInputs);
    if (b == 0)
      multiply_rows<T, true, kRows>(some, count);
    else
      multiply_rows<T, false, kRows>(some, count);
  }
}

template void block_panel<float>(const LinearCall&, int, const Ahead&);
template void block_panel<bf16>(const LinearCall&, int, const Ahead&);

}  // namespace native
