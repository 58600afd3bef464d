// Weights in 8 bits as the multipliers take them. Numbers up to 127 are exact in bfloat16, so widening rounds nothing.
#pragma once

#include "pack.h"

namespace native {

template <class T>
struct Int8;

template <>
struct Int8<float> {
  // 2 * W weights, of one input.
  static void load(const int8_t* p, Vec& first, Vec& second) {
    first = from_int8(p);
    second = from_int8(p + W);
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

// The upper or lower byte of the bfloat16 of 0 .. 127.
struct Int8Table {
  alignas(64) uint8_t high[128], low[128];

  constexpr Int8Table() : high(), low() {
    for (int v = 1; v < 128; ++v) {
      int exponent = 0;
      while (v >> (exponent + 1)) ++exponent;
      const int bits = (127 + exponent) << 7 | ((v << (7 - exponent)) & 127);
      high[v] = static_cast<uint8_t>(bits >> 8);
      low[v] = static_cast<uint8_t>(bits & 255);
    }
  }
};

inline constexpr Int8Table kInt8Table{};

// Indices that put byte `first + i` of one vector before the same of another.
struct Int8Pairs {
  alignas(64) uint8_t at[64];

  constexpr explicit Int8Pairs(int first) : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(first + i / 2 + (i % 2 ? 64 : 0));
  }
};

inline constexpr Int8Pairs kFirstPairs{0}, kSecondPairs{32};

template <>
struct Int8<bf16> {
  // 4 * W weights, two inputs of each column: 64 look-ups at once of either byte, and the sign.
  static void load(const int8_t* p, Bits& first, Bits& second) {
    const Bits given = load_bits(p), size = _mm512_abs_epi8(given);
    const Bits low = _mm512_permutex2var_epi8(load_bits(kInt8Table.low), size, load_bits(kInt8Table.low + 64));
    Bits high = _mm512_permutex2var_epi8(load_bits(kInt8Table.high), size, load_bits(kInt8Table.high + 64));
    high = _mm512_ternarylogic_epi64(high, given, _mm512_set1_epi8(-128), 0xf8);  // high | (given & sign)
    first = _mm512_permutex2var_epi8(low, load_bits(kFirstPairs.at), high);
    second = _mm512_permutex2var_epi8(low, load_bits(kSecondPairs.at), high);
  }
};

#else

template <>
struct Int8<bf16> {
  static void load(const int8_t* p, Bits& first, Bits& second) {
    first = pairs_from_int8(p);
    second = pairs_from_int8(p + 2 * W);
  }
};

#endif

}  // namespace native
