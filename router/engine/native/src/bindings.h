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

// The functions of packing.cpp.
void add_packing(pybind11::module_& m);

}  // namespace bindings
