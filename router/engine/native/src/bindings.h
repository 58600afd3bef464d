// What every way in from Python needs: checks of tensors, the team's size, and the kernel for a tensor's type.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <atomic>

#include "kernels.h"

namespace bindings {

using at::Tensor;
using native::bf16;

constexpr int64_t kRelease = 1 << 16;  // elements from which other Python threads get to run meanwhile

inline void check(const Tensor& t, const char* name, int64_t dims, at::ScalarType type) {
  TORCH_CHECK(t.device().is_cpu() && t.is_contiguous() && t.dim() == dims && t.scalar_type() == type, name,
              " must be a contiguous ", dims, "-dimensional ", type, " tensor on the CPU");
}

inline void check_real(const Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16,
              "float32 or bfloat16 is needed, got ", t.scalar_type());
}

inline void check_range(const Tensor& t, const char* name, int64_t limit) {
  const auto* p = t.const_data_ptr<int32_t>();
  int32_t low = 0, high = -1;
  for (int64_t i = 0, n = t.numel(); i < n; ++i) {
    low = std::min(low, p[i]);
    high = std::max(high, p[i]);
  }
  TORCH_CHECK(low >= 0 && high < limit, name, " holds values outside 0 .. ", limit - 1);
}

// Threads of the team, and elements below which waking it costs more than it saves.
inline std::atomic<int> team_size{1};
constexpr int64_t kSerial = 1 << 15;

inline int threads_for(int64_t elements) { return elements > kSerial ? team_size.load() : 1; }

template <class F>
void on_type(const Tensor& t, int64_t elements, F&& f) {
  const auto run = [&] {
    if (t.scalar_type() == at::kFloat)
      f(float{});
    else
      f(bf16{});
  };
  if (elements < kRelease) return run();
  pybind11::gil_scoped_release release;
  run();
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Panels (of the activations' type, of int8, or uint8 of 4 bits), scales if they are of int8, bias.
using Linear = std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>>;

native::Weights weights_of(const Linear& linear, int64_t in, int64_t out, at::ScalarType type);

// cos and sin [positions, turned], of all numbers of a head or of some at its beginning.
void check_angles(const Tensor& cos, const Tensor& sin, int64_t dim);
// Queries of each row, and contexts of at most `most` tokens.
void check_rows(const Tensor& cu_q, const Tensor& context, int64_t tokens, int64_t most);
// `table` has one row or more for each of the groups.
void check_groups(const Tensor& starts, const Tensor& table, int64_t groups, int64_t tokens);

// What packing.cpp and bindings_stack.cpp bring.
void add_packing(pybind11::module_& m);
void add_stack(pybind11::module_& m);

}  // namespace bindings
