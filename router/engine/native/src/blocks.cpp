// y = x w^T + bias with weights in blocks of few bits (blocks.h).
//
// The numbers of a group are widened on the way to the multipliers, which is exact in bfloat16, multiplied and summed;
// then the sum gets the group's scale, and the sum of the group's inputs its minimum. The order is the same for any
// number of rows, so a row's result does not depend on its batch. The matrix unit is not used: its sums are others to
// the last bit. Many rows widen the numbers again every kRows rows. That hides behind the products, and takes less time
// than to widen a panel once and read it from the caches.
//
// A panel has the blocks of kPanel columns, one after the other along the inputs. Of each block (P = kPanel):
//   q4_0   P scales (float16); numbers
//   q4_1   P scales, P minima (float16); numbers
//   q4_k   P scales, P scales of minima (float16); eight times: P scales, P minima (uint8); numbers
//   q6_k   P scales (float16); sixteen times: P scales (int8); low four bits; high two bits
//   q8_0   P scales (float16); numbers as in a panel of int8
// Numbers of four bits lie in words of 32 bits, one a column, for eight inputs: input i at bit 16 * (i % 2) + 4 * (i / 2).
// Those of two bits are for sixteen inputs: input i at bit 16 * (i % 2) + 2 * (i / 2).
#include "blocks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>

#include "int8.h"
#include "scratch.h"

namespace native {
namespace {

constexpr int kRows = W == 16 ? 8 : 5;  // rows at once: two sums each
constexpr int64_t kLine = 64, kAhead = 8192;

// -- numbers of a word

constexpr int shift4(int i) { return 16 * (i % 2) + 4 * (i / 2); }
constexpr int shift2(int i) { return 16 * (i % 2) + 2 * (i / 2); }

#if defined(__AVX512F__)

using Words = uint16_t __attribute__((vector_size(64)));
using Lanes = uint32_t __attribute__((vector_size(64)));

inline Bits words_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Words>(v) >> by); }
inline Bits words_left(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Words>(v) << by); }
inline Bits lanes_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) >> by); }
inline Vec to_floats(Bits v) { return _mm512_cvtepi32_ps(v); }
inline Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
inline Bits either(Bits a, Bits b) { return _mm512_or_si512(a, b); }
inline Bits lanes_left(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) << by); }

#else

using Lanes = uint32_t __attribute__((vector_size(32)));

inline Bits lanes_right(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) >> by); }
inline Bits lanes_left(Bits v, int by) { return reinterpret_cast<Bits>(reinterpret_cast<Lanes>(v) << by); }
inline Vec to_floats(Bits v) { return _mm256_cvtepi32_ps(v); }
inline Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
inline Bits either(Bits a, Bits b) { return _mm256_or_si256(a, b); }

#endif

// A whole number of at most 8 bits as bfloat16.
constexpr uint16_t bf16_of(int v) {
  if (v == 0) return 0;
  const int size = v < 0 ? -v : v;
  int exponent = 0;
  while (size >> (exponent + 1)) ++exponent;
  return static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | (127 + exponent) << 7 | ((size << 7 >> exponent) & 127));
}

// Where numbers of four bits are multiplied with kBias added to them: bfloat16 of 128 and a number has the number as its
// lowest bits, so no table is needed. The sum of the inputs takes it off again.
template <class T>
constexpr int kBias = W == 16 && std::is_same_v<T, bf16> ? 128 : 0;

// The numbers from `First` on.
template <int First>
struct Table4 {
  alignas(64) float floats[16];
  constexpr Table4() : floats() {
    for (int i = 0; i < 16; ++i) floats[i] = static_cast<float>(First + i);
  }
};
template <int First>
inline constexpr Table4<First> kTable4{};

struct Table6 {
  alignas(64) uint16_t pairs[64];
  constexpr Table6() : pairs() {
    for (int i = 0; i < 64; ++i) pairs[i] = bf16_of(i - 32);
  }
};
inline constexpr Table6 kTable6{};

// Two floats that bfloat16 holds exactly, side by side.
inline Bits paired(Vec even, Vec odd) {
#if defined(__AVX512F__)
  return either(lanes_right(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
#else
  return either(lanes_right(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd));
#endif
}

// Number i of words of four bits, counted from `First`.
template <int First>
inline Vec number4(Bits words, int i) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(lanes_right(words, shift4(i)), load(kTable4<First>.floats));
#else
  return add(to_floats(both(lanes_right(words, shift4(i)), spread_bits(15))), set1(static_cast<float>(First)));
#endif
}

// Numbers i and i + 1, with kBias.
template <int First>
inline Bits pair4(Bits words, int i) {
#if defined(__AVX512F__)
  static_assert(kBias<bf16> == 128);
  const Bits at = words_right(words, shift4(i));
  return _mm512_ternarylogic_epi32(at, _mm512_set1_epi16(15), _mm512_set1_epi16(0x4300), 0xea);  // (at & 15) | bits of 128
#else
  return paired(number4<First>(words, i), number4<First>(words, i + 1));
#endif
}

inline Vec number6(Bits low, Bits high, int i, int j) {
  const Bits four = both(lanes_right(low, shift4(i)), spread_bits(15));
  const Bits two = both(lanes_right(high, shift2(j)), spread_bits(3));
  return add(to_floats(either(four, lanes_left(two, 4))), set1(-32.0f));
}

inline Bits pair6(Bits low, Bits high, int i, int j) {
#if defined(__AVX512F__)
  const int at = shift2(j) - 4;
  const Bits two = at < 0 ? words_left(high, -at) : words_right(high, at);
  // Bits 0 to 3 of one, 4 and 5 of the other; more are not looked at.
  const Bits index = _mm512_ternarylogic_epi32(_mm512_set1_epi16(15), words_right(low, shift4(i)), two, 0xca);
  return _mm512_permutex2var_epi16(load_bits(kTable6.pairs), index, load_bits(kTable6.pairs + 32));
#else
  return paired(number6(low, high, i, j), number6(low, high, i + 1, j + 1));
#endif
}

// -- scales

#if defined(__AVX512F__)
inline Vec from_half(const char* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec from_bytes(const char* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#else
inline Vec from_half(const char* p) {
  const Bits given = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const Bits size = both(given, spread_bits(0x7fff));
  const Vec scaled = mul(_mm256_castsi256_ps(lanes_left(size, 13)), set1(0x1p112f));  // the exponent's other bias
  const Bits endless = both(_mm256_cmpgt_epi32(size, spread_bits(0x7bff)), spread_bits(0x7f800000));
  const Bits sign = lanes_left(both(given, spread_bits(0x8000)), 16);
  return _mm256_castsi256_ps(either(either(_mm256_castps_si256(scaled), endless), sign));
}
inline Vec from_bytes(const char* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#endif

struct Scales {
  Vec scale[2], minimum[2];
};

// -- one block in a panel: `head` bytes, then for each group `each` bytes, of which `before` are scales. `Lump` inputs
// of a group are widened by code of their own.

template <class T, Form F>
struct Block;

template <class T, int First>
struct Nibbles {
  static constexpr bool biased = kBias<T> != 0;
  static constexpr int lump = 8, lump_bytes = 4 * kPanel, per = Pack<T>::per;
  // Numbers k * per .. of a lump.
  static void get(const char* at, int k, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
    const Bits a = load_bits(at), b = load_bits(at + 4 * W);
    if constexpr (per == 2) {
      first = pair4<First>(a, 2 * k);
      second = pair4<First>(b, 2 * k);
    } else {
      first = number4<First>(a, k);
      second = number4<First>(b, k);
    }
  }
  // The bias, and where there is one First, as part of the minima.
  static void unbias(Scales& s) {
    if constexpr (biased)
      for (int c = 0; c < 2; ++c) s.minimum[c] = fma(set1(First - static_cast<float>(kBias<T>)), s.scale[c], s.minimum[c]);
  }
};

template <class T>
struct Block<T, Form::q4_0> : Nibbles<T, -8> {
  static constexpr int head = 2 * kPanel, before = 0, each = 16 * kPanel;
  static void scales(const char* block, const char*, Scales& s) {
    for (int c = 0; c < 2; ++c) {
      s.scale[c] = from_half(block + 2 * W * c);
      s.minimum[c] = zero();
    }
    Nibbles<T, -8>::unbias(s);
  }
};

template <class T>
struct Block<T, Form::q4_1> : Nibbles<T, 0> {
  static constexpr int head = 4 * kPanel, before = 0, each = 16 * kPanel;
  static void scales(const char* block, const char*, Scales& s) {
    for (int c = 0; c < 2; ++c) {
      s.scale[c] = from_half(block + 2 * W * c);
      s.minimum[c] = from_half(block + 2 * kPanel + 2 * W * c);
    }
    Nibbles<T, 0>::unbias(s);
  }
};

template <class T>
struct Block<T, Form::q4_k> : Nibbles<T, 0> {
  static constexpr int head = 4 * kPanel, before = 2 * kPanel, each = 18 * kPanel;
  static void scales(const char* block, const char* group, Scales& s) {
    for (int c = 0; c < 2; ++c) {
      s.scale[c] = mul(from_half(block + 2 * W * c), from_bytes(group + W * c));
      s.minimum[c] = sub(zero(), mul(from_half(block + 2 * kPanel + 2 * W * c), from_bytes(group + kPanel + W * c)));
    }
    Nibbles<T, 0>::unbias(s);
  }
};

template <class T>
struct Block<T, Form::q6_k> {
  static constexpr bool biased = false;
  static constexpr int head = 2 * kPanel, before = kPanel, each = 13 * kPanel;
  static constexpr int lump = 16, lump_bytes = 12 * kPanel, per = Pack<T>::per;
  static void scales(const char* block, const char* group, Scales& s) {
    for (int c = 0; c < 2; ++c)
      s.scale[c] = mul(from_half(block + 2 * W * c), from_int8(reinterpret_cast<const int8_t*>(group) + W * c));
  }
  static void get(const char* at, int k, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
    const int j = k * per, i = j % 8;
    const char *low = at + j / 8 * 4 * kPanel, *high = at + 8 * kPanel;
    if constexpr (per == 2) {
      first = pair6(load_bits(low), load_bits(high), i, j);
      second = pair6(load_bits(low + 4 * W), load_bits(high + 4 * W), i, j);
    } else {
      first = number6(load_bits(low), load_bits(high), i, j);
      second = number6(load_bits(low + 4 * W), load_bits(high + 4 * W), i, j);
    }
  }
};

template <class T>
struct Block<T, Form::q8_0> {
  static constexpr bool biased = false;
  static constexpr int head = 2 * kPanel, before = 0, each = 32 * kPanel;
  static constexpr int lump = 8, lump_bytes = 8 * kPanel, per = Pack<T>::per;
  static void scales(const char* block, const char*, Scales& s) {
    for (int c = 0; c < 2; ++c) s.scale[c] = from_half(block + 2 * W * c);
  }
  static void get(const char* at, int k, typename Pack<T>::Reg& first, typename Pack<T>::Reg& second) {
    Int8<T>::load(reinterpret_cast<const int8_t*>(at) + k * per * kPanel, first, second);
  }
};

template <class T, Form F>
struct Packed : Block<T, F> {
  static constexpr BlockShape shape = shape_of(F);
  static constexpr int group = shape.group, groups = shape.inputs / shape.group;
  static constexpr bool minimum = shape.minimum || Block<T, F>::biased;  // the sum of a group's inputs counts
  static constexpr int bytes = Block<T, F>::head + groups * Block<T, F>::each;
};

// -- the product

template <class T>
struct Panel {
  T* y;
  const T* x;
  const float* sums;  // [rows, in / group] of the inputs, or null where there are no minima
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
template <class T, class B, int N, bool Ask>
__attribute__((noinline)) void multiply(Panel<T> p) {
  constexpr int per = Pack<T>::per;
  alignas(64) float totals[N][kPanel] = {};
  const int64_t groups = p.in / B::group;
  const T* x = p.x;
  const float* sums = p.sums;
  for (const char *block = p.w, *end = block + groups / B::groups * B::bytes; block < end; block += B::bytes) {
    if constexpr (Ask) ask(p, B::head);
    for (int g = 0; g < B::groups; ++g, x += B::group) {
      const char* const group = block + B::head + g * B::each;
      if constexpr (Ask) ask(p, B::each);
      Vec of[N][2];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) of[n][0] = of[n][1] = zero();
#pragma GCC unroll 1
      for (int l = 0; l < B::group / B::lump; ++l) {
        const char* const lump = group + B::before + l * B::lump_bytes;
#pragma GCC unroll 16
        for (int k = 0; k < B::lump / per; ++k) {
          typename Pack<T>::Reg w0, w1;
          B::get(lump, k, w0, w1);
#pragma GCC unroll 16
          for (int n = 0; n < N; ++n) {
            const auto xs = Pack<T>::spread(x + n * p.in + l * B::lump + k * per);
            of[n][0] = Pack<T>::dot(of[n][0], w0, xs);
            of[n][1] = Pack<T>::dot(of[n][1], w1, xs);
          }
        }
      }
      Scales s;
      B::scales(block, group, s);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          Vec total = fma(s.scale[c], of[n][c], load(totals[n] + W * c));
          if constexpr (B::minimum) total = fma(s.minimum[c], set1(sums[n * groups]), total);
          store(totals[n] + W * c, total);
        }
      }
      if constexpr (B::minimum) ++sums;
    }
  }
  for (int n = 0; n < N; ++n) finish(p, n, totals[n]);
}

template <class T, class B, bool Ask, int N>
void multiply_rows(const Panel<T>& p, int64_t rows) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, B, N, Ask>(p);
    multiply_rows<T, B, Ask, N - 1>(p, rows);
  }
}

// The sums of each group of inputs of all rows. A thread keeps those of the call it worked on last.
template <class T>
const float* sums_of(const LinearCall& call, int group) {
  static thread_local Scratch<float> scratch;
  static thread_local uint64_t known = 0;
  const int64_t count = call.rows * call.weights->in / group;
  float* const sums = scratch.get(count);
  if (call.stamp && call.stamp == known) return sums;
  const T* x = static_cast<const T*>(call.x);
  for (int64_t i = 0; i < count; ++i, x += group) {
    Vec part = load(x);
    for (int j = W; j < group; j += W) part = add(part, load(x + j));
    sums[i] = sum(part);
  }
  known = call.stamp;
  return sums;
}

template <class T, Form F>
void panel_of(const LinearCall& call, Panel<T> panel, const Ahead& ahead) {
  using From = Packed<T, F>;
  if (From::minimum) panel.sums = sums_of<T>(call, From::group);
  const char* const w = panel.w;
  const int64_t left = ahead.end - w, rows = call.rows;
  const bool near = kAhead < left;
  panel.ahead = near ? w + kAhead : ahead.next + (kAhead - left);
  panel.turn = near ? ahead.end : nullptr;
  panel.to = ahead.next;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = rows * b / blocks, count = rows * (b + 1) / blocks - begin;
    Panel<T> some = panel;
    some.y += begin * panel.out;
    some.x += begin * panel.in;
    if (From::minimum) some.sums += begin * (panel.in / From::group);
    if (b == 0)
      multiply_rows<T, From, true, kRows>(some, count);
    else
      multiply_rows<T, From, false, kRows>(some, count);
  }
}

// -- from a file

// The numbers of a block, without an offset, and what is before them, as they are in the file.
struct Numbers {
  uint8_t of[256];
};

inline uint8_t k_scale(const uint8_t* s, int g) {
  return g < 4 ? s[g] & 63 : static_cast<uint8_t>((s[g + 4] & 15) | (s[g - 4] >> 6 << 4));
}
inline uint8_t k_minimum(const uint8_t* s, int g) {
  return g < 4 ? s[g + 4] & 63 : static_cast<uint8_t>((s[g + 4] >> 4) | (s[g] >> 6 << 4));
}

void numbers_of(Form form, const uint8_t* block, Numbers& to) {
  switch (form) {
    case Form::q4_0:
    case Form::q4_1: {
      const uint8_t* from = block + (form == Form::q4_0 ? 2 : 4);
      for (int i = 0; i < 16; ++i) {
        to.of[i] = from[i] & 15;
        to.of[16 + i] = from[i] >> 4;
      }
      return;
    }
    case Form::q4_k:
      for (int part = 0; part < 4; ++part)
        for (int i = 0; i < 32; ++i) {
          const uint8_t two = block[16 + 32 * part + i];
          to.of[64 * part + i] = two & 15;
          to.of[64 * part + 32 + i] = two >> 4;
        }
      return;
    case Form::q6_k:
      for (int half = 0; half < 2; ++half) {
        const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
        uint8_t* at = to.of + 128 * half;
        for (int i = 0; i < 32; ++i) {
          at[i] = static_cast<uint8_t>((low[i] & 15) | (high[i] & 3) << 4);
          at[i + 32] = static_cast<uint8_t>((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
          at[i + 64] = static_cast<uint8_t>(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
          at[i + 96] = static_cast<uint8_t>(low[i + 32] >> 4 | (high[i] >> 6) << 4);
        }
      }
      return;
    default: std::memcpy(to.of, block + 2, 32);
  }
}

inline void put_word(char* at, int column, uint32_t word) { std::memcpy(at + 4 * column, &word, 4); }

// Of the words of all columns one behind the other, the `index`th.
inline int word_of(const char* at, int index, int64_t column) {
  int32_t word;
  std::memcpy(&word, at + 4 * (index * kPanel + column), 4);
  return word;
}

void put_nibbles(const uint8_t* numbers, int count, int column, char* to) {
  for (int i = 0; i < count; i += 8, to += 4 * kPanel) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) word |= static_cast<uint32_t>(numbers[i + j] & 15) << shift4(j);
    put_word(to, column, word);
  }
}

template <class T, Form F>
void pack_column(const uint8_t* row, int64_t in, int column, char* to) {
  using To = Packed<T, F>;
  constexpr BlockShape shape = To::shape;
  const auto copy = [column](char* at, const uint8_t* from, int bytes) { std::memcpy(at + bytes * column, from, bytes); };
  Numbers n;
  for (int64_t i = 0; i < in; i += shape.inputs, row += shape.bytes, to += To::bytes) {
    numbers_of(F, row, n);
    copy(to, F == Form::q6_k ? row + 208 : row, 2);
    if (shape.minimum) copy(to + 2 * kPanel, row + 2, 2);
    for (int g = 0; g < To::groups; ++g) {
      char* const group = to + To::head + g * To::each;
      const uint8_t* numbers = n.of + g * shape.group;
      if constexpr (F == Form::q4_k) {
        group[column] = static_cast<char>(k_scale(row + 4, g));
        group[kPanel + column] = static_cast<char>(k_minimum(row + 4, g));
      }
      if constexpr (F == Form::q6_k) {
        group[column] = static_cast<char>(row[192 + g]);
        uint32_t word = 0;
        for (int j = 0; j < 16; ++j) word |= static_cast<uint32_t>(numbers[j] >> 4) << shift2(j);
        put_word(group + 9 * kPanel, column, word);
      }
      if constexpr (F == Form::q8_0) {
        constexpr int per = Pack<T>::per;
        for (int j = 0; j < 32; ++j) group[j / per * per * kPanel + column * per + j % per] = static_cast<char>(numbers[j]);
      } else {
        put_nibbles(numbers, shape.group, column, group + To::before);
      }
    }
  }
}

// f with the form as a constant.
template <class F>
void with_form(Form form, F&& f) {
  switch (form) {
    case Form::q4_0: return f(std::integral_constant<Form, Form::q4_0>{});
    case Form::q4_1: return f(std::integral_constant<Form, Form::q4_1>{});
    case Form::q4_k: return f(std::integral_constant<Form, Form::q4_k>{});
    case Form::q6_k: return f(std::integral_constant<Form, Form::q6_k>{});
    case Form::q8_0: return f(std::integral_constant<Form, Form::q8_0>{});
    default: return;
  }
}

}  // namespace

uint64_t fresh_stamps(uint64_t count) {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(count);
}

int64_t block_panel_bytes(Form form, int64_t in) {
  int64_t bytes = 0;
  with_form(form, [&](auto f) {
    using B = Packed<float, f.value>;
    static_assert(int{B::bytes} == int{Packed<bf16, f.value>::bytes});
    bytes = in / B::shape.inputs * B::bytes;
  });
  return bytes;
}

template <class T>
void pack_panel(Form form, const uint8_t* rows, int64_t in, int64_t out, int panel, char* to) {
  with_form(form, [&](auto f) {
    const int64_t width = in / shape_of(form).inputs * shape_of(form).bytes, first = int64_t{panel} * kPanel;
    for (int c = 0; c < kPanel && first + c < out; ++c) pack_column<T, f.value>(rows + (first + c) * width, in, c, to);
  });
}

template <class T>
void block_panel(const LinearCall& call, int index, const Ahead& ahead) {
  const Weights& weights = *call.weights;
  const int64_t at = int64_t{index} * kPanel;
  const Panel<T> panel{static_cast<T*>(call.y) + at, static_cast<const T*>(call.x), nullptr, weights.panel(index, sizeof(T)),
                       weights.bias ? static_cast<const T*>(weights.bias) + at : nullptr, weights.in, weights.out,
                       static_cast<int>(std::min<int64_t>(kPanel, weights.out - at)), nullptr, nullptr, nullptr};
  with_form(weights.form(index), [&](auto f) { panel_of<T, f.value>(call, panel, ahead); });
}

template <class T>
void block_row(T* out, const Weights& weights, int64_t row) {
  const int64_t panel = row / kPanel, column = row % kPanel;
  with_form(weights.form(panel), [&](auto f) {
    using B = Packed<float, f.value>;  // scales lie in the same place for any T
    constexpr int per = Pack<T>::per;
    const char* block = weights.panel(panel, sizeof(T));
    float scales[kPanel], minima[kPanel] = {};
    for (int64_t i = 0; i < weights.in; i += B::shape.inputs, block += B::bytes) {
      for (int g = 0; g < B::groups; ++g) {
        const char* const group = block + B::head + g * B::each;
        Scales s;
        B::scales(block, group, s);
        for (int c = 0; c < 2; ++c) {
          store(scales + W * c, s.scale[c]);
          if constexpr (B::minimum) store(minima + W * c, s.minimum[c]);
        }
        for (int j = 0; j < B::group; ++j) {
          const char* const at = group + B::before;
          int number;
          if constexpr (f.value == Form::q8_0)
            number = static_cast<int8_t>(at[j / per * per * kPanel + column * per + j % per]);
          else if constexpr (f.value == Form::q6_k)
            number = (word_of(at, j / 8, column) >> shift4(j % 8) & 15) + (word_of(at, 2, column) >> shift2(j) & 3) * 16 - 32;
          else
            number = (word_of(at, j / 8, column) >> shift4(j % 8) & 15) - (f.value == Form::q4_0 ? 8 : 0);
          put(out++, std::fma(scales[column], static_cast<float>(number), minima[column]));
        }
      }
    }
  });
}

template void block_row<float>(float*, const Weights&, int64_t);
template void block_row<bf16>(bf16*, const Weights&, int64_t);
template void pack_panel<float>(Form, const uint8_t*, int64_t, int64_t, int, char*);
template void pack_panel<bf16>(Form, const uint8_t*, int64_t, int64_t, int, char*);
template void block_panel<float>(const LinearCall&, int, const Ahead&);
template void block_panel<bf16>(const LinearCall&, int, const Ahead&);

}  // namespace native
