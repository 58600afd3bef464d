// Weights in blocks of few bits with a scale for each group of inputs, in the forms of GGUF (ggml-common.h of llama.cpp,
// MIT): Q4_0, Q4_1, Q4_K, Q6_K, Q8_0. No number of the file is rounded: a panel holds the same whole numbers and scales
// in another order.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace native {

// One block of one column in a file: `inputs` weights in `bytes`, and the inputs that share a scale.
struct BlockShape {
  int inputs, bytes, group;
  bool minimum;  // a weight is scale * number + minimum, else scale * number
};

constexpr BlockShape shape_of(Form form) {
  switch (form) {
    case Form::q4_0: return {32, 18, 32, false};
    case Form::q4_1: return {32, 20, 32, true};
    case Form::q4_k: return {256, 144, 32, true};
    case Form::q6_k: return {256, 210, 16, false};
    case Form::q8_0: return {32, 34, 32, false};
    default: return {1, 0, 1, false};
  }
}

// Rows of blocks as they lie in a file [out, in / inputs * bytes] -> panels, for activations of type T.
template <class T>
void pack_panel(Form form, const uint8_t* rows, int64_t in, int64_t out, int panel, char* to);

// One panel of columns for all rows, as linear_panel.
template <class T>
void block_panel(const LinearCall& call, int panel, const Ahead& ahead);

// A row of the matrix, each number rounded once.
template <class T>
void block_row(T* out, const Weights& weights, int64_t row);

}  // namespace native
