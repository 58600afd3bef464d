// The operations on raw memory, cut into chunks that any thread may take; a result never depends on how it was
// cut. bindings.cpp checks shapes and dtypes before it calls them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pack.h"
#include "team.h"

namespace native {

constexpr int kBlock = 16;  // tokens in a block of the KV cache
constexpr int kPanel = 2 * W;  // columns in a panel of weights: [panels, in / per, kPanel, per]; of an adapter's b the last is narrower

constexpr int kSlice = W;      // ranks in a slice of an adapter's a: [slices, in / per, kSlice, per], what is missing is 0

constexpr int kGroupInputs = 32, kGroupBytes = 20;  // of an output's weights in 4 bits that share a scale and a minimum

struct Weights {
  const void* w = nullptr;        // panels, of the activations' type; with scales of int8; with blocks of 4 bits
  const float* scales = nullptr;  // [panels * kPanel] of each column, or null
  const void* bias = nullptr;     // [out], or null
  int64_t in = 0, out = 0;
  bool blocks = false;

  int panels() const { return static_cast<int>((out + kPanel - 1) / kPanel); }
  // `size`: bytes of an activation.
  int64_t panel_bytes(int64_t size) const {
    return kPanel * (blocks ? in / kGroupInputs * kGroupBytes : in * (scales ? 1 : size));
  }
  const char* panel(int64_t index, int64_t size) const { return static_cast<const char*>(w) + index * panel_bytes(size); }
};

// y [rows, out] = x [rows, in] w^T + bias.
struct LinearCall {
  void* y;
  const void* x;
  int64_t rows;
  const Weights* weights;
  uint64_t stamp = 0;  // the same for the panels of one call and no others; 0: there is none
};

// A stamp, and the `count` - 1 behind it.
uint64_t fresh_stamps(uint64_t count);

// Neighbouring tokens of one adapter, or of the base, which has rank 0.
struct Part {
  int64_t start, rows;
  int group;
};

// y [T, out] += (x [T, in] a^T) b at one site group, which has `layers` linear layers.
struct LoraCall {
  void* y;
  const void* x;
  void* z;                  // [T, width] scratch between the products
  int64_t width;
  const int64_t* table;     // [groups, 3]: a, b, rank
  const int64_t* offsets;   // [layers + 1] columns of each layer
  int layers;
  int64_t in, out;

  int rank(int group) const { return group < 0 ? 0 : static_cast<int>(table[3 * group + 2]); }
  int slices(int group) const { return (rank(group) * layers + kSlice - 1) / kSlice; }
};

struct AttentionCall {
  void* out;                // [T, heads * dim]
  const void* qkv;          // [T, width]
  const void* k_cache;      // [blocks, kv_heads, dim / per, kBlock, per]
  const void* v_cache;      // [blocks, kv_heads, kBlock / per, dim, per]
  const int32_t* cu_q;      // [rows + 1]
  const int32_t* context;   // [rows]
  const int32_t* table;     // [rows, table_width]
  int rows, table_width, heads, kv_heads, dim;
  int64_t width;
  float scale;
  int window;               // keys that a query sees, its own included; 0: all before it
  float cap;                // scores are cap * tanh(score / cap); 0: as they are
};

struct RopeCall {
  void* qkv;                // [T, (heads + 2 * kv_heads) * dim]
  const float* cos;         // [positions, turned]
  const float* sin;
  void* k_cache;             // as AttentionCall's
  void* v_cache;
  const int32_t* positions;  // [T]
  const int32_t* slots;      // [T]
  int heads, kv_heads, dim;
  int turned;                // numbers at the beginning of a head that are rotated
};

// Memory that is asked for before it is read.
struct Span {
  const char *at, *end;

  static Span endless(const char* at) { return {at, reinterpret_cast<const char*>(UINTPTR_MAX)}; }
};

// What a thread reads after a panel: the panels up to `end`, and then what begins at `next`. `beside`: other memory that it
// reads soon, in spans of which the last is endless; or null.
struct Ahead {
  const char *end, *next;
  const Span* beside = nullptr;
};

// Writes a row's sums of the first `columns` of a panel to y.
template <class T>
inline void store_columns(T* y, const float* sums, int columns) {
  if (columns == kPanel)
    for (int c = 0; c < kPanel; c += W) store(y + c, load(sums + c));
  else
    for (int c = 0; c < columns; ++c) put(y + c, sums[c]);
}

// One panel of columns for all rows.
template <class T>
void linear_panel(const LinearCall& call, int panel, const Ahead& ahead);
// Bytes that a panel asks for of what is `beside`; 0: it does not ask.
template <class T>
int64_t beside_bytes(const Weights& weights, int64_t rows);

// Slices [first, last) of z for a part's rows. `after`: what this thread reads next.
template <class T>
void lora_project(const LoraCall& call, const Part& part, int first, int last, const char* after);
// A panel of columns of y for the rows of some parts.
template <class T>
void lora_expand(const LoraCall& call, const Part* parts, size_t count, int panel);

// Parts of at most `most` rows, in order, of the tokens up to starts[groups]; before starts[0] is the base.
std::vector<Part> parts_of(const int32_t* starts, int groups, int64_t most, bool base);

// One KV head and some neighbouring queries of one row.
struct Item {
  int row, kv_head;
  int64_t token;  // the first query, in the step
  int count;      // queries
  int from;       // the key at which reading begins: of a tile that some query sees
  int seen;       // keys up to the last that the last of them sees
};

// What attention has to do in a step, the same in each layer, cut into chunks of about the same cost.
struct AttentionItems {
  std::vector<Item> items;
  std::vector<int> bounds;  // of chunks: [chunks + 1]

  AttentionItems(const AttentionCall& call, int threads);
  int chunks() const { return static_cast<int>(bounds.size()) - 1; }
};

template <class T>
void attention_chunk(const AttentionCall& call, const AttentionItems& items, int chunk);

// Rotates q and k of a token and writes k and v to the cache, for the KV heads [first, last) and their queries.
template <class T>
void rope_token(const RopeCall& call, int64_t token, int first, int last);

// residual is null, or gets x added and takes its place.
template <class T>
void norm_row(T* out, T* residual, const T* x, const float* weight, int64_t width, float eps);
template <class T>
void add_row(T* residual, const T* x, int64_t width);
template <class T>
void scale_row(T* out, const T* x, int64_t width, float factor);

enum class Gate { kSilu, kGelu };  // x * sigmoid(x), and the Gaussian one by its approximation with tanh
// Columns [first, last) of gate(x) * up, where x and up lie `inner` columns apart.
template <class T>
void gate_columns(Gate gate, T* out, const T* gate_up, int64_t inner, int64_t first, int64_t last);
// x = cap * tanh(x / cap)
template <class T>
void cap_row(T* x, int64_t width, float cap);
// Reads memory and nothing else.
void touch(const char* from, int64_t bytes);
// The first of the largest of x, or -1 if that is not finite or there is a NaN.
template <class T>
int64_t largest_of(const T* x, int64_t width);

}  // namespace native
