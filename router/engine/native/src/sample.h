// Choosing the next token of a row of logits. Rows know nothing of each other: a result depends neither on the
// batch nor on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace native {

// What a row is asked for; `Choice` in router/engine/ops.py says what it means.
struct Choice {
  double temperature = 0, top_p = 1, min_p = 0, uniform = 0;
  int64_t top_k = 0;
  float repetition = 1, frequency = 0, presence = 0;
  const int64_t* seen = nullptr;    // [seen_count] distinct tokens
  const float* counts = nullptr;    // [seen_count]
  int64_t seen_count = 0;
  std::vector<int64_t> forbidden;
  const int32_t* allowed = nullptr;  // [>= width / 32] bits, or null: all
  int64_t logprobs = 0;
  int64_t near = 0;
  int64_t proposed = -1;

  bool adjusts() const { return seen_count || !forbidden.empty() || allowed; }
  bool permits(int64_t token) const {
    if (allowed && !(allowed[token / 32] >> token % 32 & 1)) return false;
    return std::find(forbidden.begin(), forbidden.end(), token) == forbidden.end();
  }
};

struct Chosen {
  int64_t token = -1;  // the row failed
  float logprob = 0;
  std::vector<std::pair<int64_t, float>> top;
  double lacks = -1;  // less than 0: the token is kept for certain
  std::vector<std::pair<int64_t, float>> near;
};

// logits [width], which stay as they are.
template <class T>
Chosen choose(const T* logits, int64_t width, const Choice& choice);

}  // namespace native
