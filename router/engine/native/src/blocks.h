// Weights in 4 bits: kGroupInputs neighbouring inputs of an output are kGroupBytes: scale and minimum in float16, then whole
// numbers from 0 to 15, where byte i has number i in its low half and number i + 16 in its high one. A weight is
// scale * number + minimum. A panel holds the same numbers and scales in another order.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace native {

// Rows [out, in / kGroupInputs * kGroupBytes] -> a panel.
void pack_panel(const uint8_t* rows, int64_t in, int64_t out, int panel, char* to);

// One panel of columns for all rows, as linear_panel.
template <class T>
void block_panel(const LinearCall& call, int panel, const Ahead& ahead);

// Up to W rows of a matrix [rows, in] in 4 bits.
template <class T>
void quantise_rows(const T* weight, int64_t in, int64_t rows, uint8_t* to);

}  // namespace native
