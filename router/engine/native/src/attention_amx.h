// The products of attention by the matrix unit, on the cache as it lies: a block's keys are weights of 16 columns, its
// values weights of 16 inputs.
#pragma once

#include "kernels.h"
#include "tiles.h"

#if defined(NATIVE_TILES)

namespace native {

// Whether heads of this size are read in whole tiles.
constexpr bool tiles_fit(int dim) { return dim % (2 * kTilePairs) == 0; }

// Sums of `rows` queries in 0 to 3; queries in 4 with keys in 6; shares in 5 with values in 7, which are of one block.
inline void shape_attention(int rows) {
  TileShapes wanted;
  for (const int tile : {0, 1, 2, 3, 4, 5}) wanted.rows[tile] = static_cast<uint8_t>(rows);
  wanted.bytes[5] = kBlock * sizeof(bf16);
  wanted.rows[7] = kBlock / 2;
  shape_tiles(wanted);
}

// scores [rows, 4 * kBlock], `lds` apart, of queries [rows, dim] with the keys of four blocks.
inline void score_blocks(float* scores, int64_t lds, const bf16* queries, int dim, const bf16* const* blocks) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t stride = dim * static_cast<int64_t>(sizeof(bf16));
  for (int d = 0; d < dim; d += 2 * kTilePairs) {
    const int64_t at = static_cast<int64_t>(d) * kBlock;
    _tile_loadd(4, queries + d, stride);
    _tile_loadd(6, blocks[0] + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(6, blocks[1] + at, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(6, blocks[2] + at, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(6, blocks[3] + at, 64);
    _tile_dpbf16ps(3, 4, 6);
  }
  const int64_t line = lds * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, scores, line);
  _tile_stored(1, scores + kBlock, line);
  _tile_stored(2, scores + 2 * kBlock, line);
  _tile_stored(3, scores + 3 * kBlock, line);
}

// sums [rows, 32 of dim] += shares [rows, blocks * kBlock], `lds` apart, times the values of these blocks.
inline void add_blocks(float* sums, int dim, const bf16* shares, int64_t lds, const bf16* const* blocks, int count) {
  const int64_t line = dim * static_cast<int64_t>(sizeof(float)), stride = lds * static_cast<int64_t>(sizeof(bf16));
  _tile_loadd(0, sums, line);
  _tile_loadd(1, sums + 16, line);
  for (int i = 0; i < count; ++i) {
    _tile_loadd(5, shares + i * kBlock, stride);
    _tile_loadd(7, blocks[i], line);  // a pair of values takes as much as a sum
    _tile_dpbf16ps(0, 5, 7);
    _tile_loadd(7, blocks[i] + 32, line);
    _tile_dpbf16ps(1, 5, 7);
  }
  _tile_stored(0, sums, line);
  _tile_stored(1, sums + 16, line);
}

}  // namespace native

#endif
