// The operations on raw memory; bindings.cpp checks shapes and dtypes before it calls them.
#pragma once

#include <cstdint>

#include "pack.h"

namespace native {

constexpr int kBlock = 16;  // tokens in a block of the KV cache
constexpr int kPanel = 2 * W;  // columns in a panel of a linear layer's weights: [panels, in / per, kPanel, per]
constexpr int kTile = 64;   // columns in a tile of a packed b: [tiles, r / per, kTile, per], the last narrower

struct LoraCall {
  void* y;                  // [T, out]
  const void* x;            // [T, in]
  const int32_t* starts;    // [groups + 1]
  const int64_t* table;     // [groups, 3]: a, b, rank
  int groups;
  const int64_t* offsets;   // [layers + 1] columns of each layer
  int layers;
  int64_t in, out;
};

struct AttentionCall {
  void* out;                // [T, heads * dim]
  const void* qkv;          // [T, width]
  const void* k_cache;      // [blocks, kv_heads, kBlock, dim]
  const void* v_cache;
  const int32_t* cu_q;      // [rows + 1]
  const int32_t* context;   // [rows]
  const int32_t* table;     // [rows, table_width]
  int rows, table_width, heads, kv_heads, dim;
  int64_t width;
  float scale;
};

struct RopeCall {
  void* qkv;                // [T, (heads + 2 * kv_heads) * dim]
  const float* cos;         // [positions, dim]
  const float* sin;
  void* k_cache;
  void* v_cache;
  const int32_t* positions;  // [T]
  const int32_t* slots;      // [T]
  int64_t tokens;
  int heads, kv_heads, dim;
};

template <class T>
void linear(T* y, const T* x, const T* w, const T* bias, int64_t rows, int64_t in, int64_t out, int threads);
template <class T>
void lora(const LoraCall& call, int threads);
template <class T>
void attention(const AttentionCall& call, int threads);
template <class T>
void rope_write(const RopeCall& call, int threads);
// residual is null, or gets x added and takes its place.
template <class T>
void rms_norm(T* out, T* residual, const T* x, const T* weight, int64_t rows, int64_t width, float eps,
              int threads);
template <class T>
void silu_mul(T* out, const T* gate_up, int64_t rows, int64_t inner, int threads);

}  // namespace native
