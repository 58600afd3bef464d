// A stack of decoder layers as one job of the team: norm, q/k/v, rotary positions, attention, o, norm, gated
// unit, down, with the adapters of each token; before it the embedding, behind it the head. Some architectures norm
// what attention and the gated unit add, too.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "kernels.h"

namespace native {

struct LayerWeights {
  const float *norm1, *norm2;          // [hidden]: before attention and before the gated unit
  const float *out1, *out2;            // [hidden], or null: of what these add
  const float *q_norm, *k_norm;        // [dim], or null
  const float *cos, *sin;              // [positions, turned]
  int turned, window;
  Weights qkv, o, gate_up, down;
  // A mixture of experts has these in place of gate_up and down: scores of experts, and gate_up and down of each.
  Weights router;
  std::vector<Weights> gate_ups, downs;
  void *k_cache, *v_cache;             // [blocks, kv_heads, kBlock, dim]
};

struct StackWeights {
  std::vector<LayerWeights> layers;
  const void* embed;                   // [vocabulary, hidden], or null: rows of the head
  const float* norm;                   // [hidden]
  Weights head;
  int64_t hidden, inner;
  int heads, kv_heads, dim;
  float eps, scale;
  float embed_scale, score_cap, logit_cap;  // caps: 0 for none
  Gate gate;
  int top;                             // experts of a token, 0 where there are none
  bool shares;                         // their weights sum to 1
  std::array<std::vector<int64_t>, 4> sites;  // of each site, where the columns of its linear layers begin and end

  int64_t qkv_width() const { return static_cast<int64_t>(heads + 2 * kv_heads) * dim; }
};

// What the time of steps went into. The second product of adapters counts among the linear layers it is added to.
struct Spent {
  static constexpr int kParts = 16;
  static constexpr const char* kNames[kParts] = {
      "embedding and first norm", "adapters: into q, k, v", "q, k, v", "rotary", "attention", "adapters: into o", "o",
      "norm", "adapters: into gate, up, or experts chosen", "tokens to experts", "gate, up", "silu", "adapters: into down",
      "down", "next norm", "head"};
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
  int ring;                            // an eventfd that is written to once all threads are at work, or -1
};

template <class T>
void run_stack(const StackWeights& weights, const StepCall& call, int threads, Spent& spent);

}  // namespace native
