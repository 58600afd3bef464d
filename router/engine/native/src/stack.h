// A stack of decoder layers as one job of the team: norm, q/k/v, rotary positions, attention, o, norm, gated
// unit, down, with the adapters of each token; before it the embedding, behind it the head.
#pragma once

#include <memory>

#include "kernels.h"

namespace native {

struct LayerWeights {
  const void *norm1, *norm2;           // [hidden]
  const void *q_norm, *k_norm;         // [dim], or null
  Weights qkv, o, gate_up, down;
  void *k_cache, *v_cache;             // [blocks, kv_heads, kBlock, dim]
};

struct StackWeights {
  std::vector<LayerWeights> layers;
  const void* embed;                   // [vocabulary, hidden], or null: rows of the head
  const void* norm;                    // [hidden]
  Weights head;
  const float *cos, *sin;              // [positions, dim]
  int64_t hidden, inner;
  int heads, kv_heads, dim;
  float eps, scale;

  int64_t qkv_width() const { return static_cast<int64_t>(heads + 2 * kv_heads) * dim; }
};

// What the time of steps went into. The second product of adapters counts among the linear layers it is added to.
struct Spent {
  static constexpr int kParts = 15;
  static constexpr const char* kNames[kParts] = {
      "embedding and first norm", "adapters: into q, k, v", "q, k, v", "rotary", "attention", "adapters: into o", "o",
      "norm", "adapters: into gate, up", "gate, up", "silu", "adapters: into down", "down", "next norm", "head"};
  double seconds[kParts] = {};
  int64_t steps = 0;
};

// One step through the layers [first, last).
struct StepCall {
  void* hidden;                        // [T, hidden]: what comes in and, after the layers, goes out
  const int64_t* tokens;               // [T]: embedded first; null if `hidden` is there
  int64_t count;                       // T
  const int32_t *cu_q, *context, *table, *positions, *slots;
  int rows, table_width;
  const int64_t* adapters;             // [4 * layers, groups, 3] of all layers, or null
  const int32_t* starts;               // [groups + 1]
  int groups;
  int first, last;
  const int64_t* scored;               // [score]: tokens whose logits are wanted, after the last layer
  int64_t score;
  void* logits;                        // [score, vocabulary]
};

template <class T>
void run_stack(const StackWeights& weights, const StepCall& call, int threads, Spent& spent);

}  // namespace native
