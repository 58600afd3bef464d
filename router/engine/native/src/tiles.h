// The matrix unit (AMX): tiles of up to 16 rows of 64 bytes, in eight registers that are given their shapes first.
#pragma once

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define NATIVE_TILES

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace native {

constexpr int kTileRows = 16;
constexpr int kTilePairs = 16;  // inputs that one product takes, in pairs

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Shapes as they are wanted from here on. Others use the unit too and leave shapes of their own, so those are looked at.
inline void shape_tiles(const TileShapes& wanted) {
  TileShapes now;
  _tile_storeconfig(&now);
  if (_mm512_cmpneq_epi64_mask(_mm512_load_si512(&now), _mm512_load_si512(&wanted))) _tile_loadconfig(&wanted);
}

// Sums in 0, 1 of the `first` rows and 2, 3 of the `second`; their inputs in 4 and 5; weights in 6 and 7.
inline void shape_tiles(int first, int second) {
  TileShapes wanted;
  wanted.rows[0] = wanted.rows[1] = wanted.rows[4] = static_cast<uint8_t>(first);
  wanted.rows[2] = wanted.rows[3] = wanted.rows[5] = static_cast<uint8_t>(second);
  shape_tiles(wanted);
}

}  // namespace native

#endif
