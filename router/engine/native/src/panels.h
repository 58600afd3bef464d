// Packed weights: [panels, in / per, kPanel, per], in a panel kPanel rows of the matrix beside each other, `per` inputs of
// each at a time. All that writes or reads this layout but the products themselves is here.
#pragma once

#include "kernels.h"

namespace native {

enum class Stored { kFloat, kBf16, kInt8 };

inline int64_t bytes_of(Stored type) { return type == Stored::kFloat ? 4 : type == Stored::kBf16 ? 2 : 1; }

// Where rows are packed: numbers of `type`, with scales where that is int8.
struct Packed {
  char* panels;
  float* scales;  // [panels * kPanel], or null where int8 comes as it is
  Stored type;
  int64_t in;
  int per;
};

// Rows [count, in] of a matrix, in memory or in a file.
struct Rows {
  const char* memory;  // or null
  int file;            // a descriptor
  int64_t start;       // bytes before the first row in the file
  int64_t count;
  Stored type;
};

// Packs `rows` as rows `first` on of the matrix, by a team. Numbers are rounded to bfloat16 where `narrow`, then to what is
// packed: int8 as `quantise` (router/engine/ops.py) does it. Returns false if the file ends before the rows do.
bool pack(const Packed& to, int64_t first, const Rows& rows, bool narrow, int threads);

// A row of a matrix of activations' type.
template <class T>
void unpack_row(T* out, const void* panels, int64_t in, int64_t row);

}  // namespace native
