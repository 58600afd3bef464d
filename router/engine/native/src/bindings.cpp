// Python's way in. Every argument is checked here; the kernels trust what they get, except for the
// adapters' addresses, which belong to tensors that the caller keeps alive.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include "kernels.h"

namespace {

using at::Tensor;
using native::bf16;

constexpr int64_t kRelease = 1 << 16;  // elements from which other Python threads get to run meanwhile

void check(const Tensor& t, const char* name, int64_t dims, at::ScalarType type) {
  TORCH_CHECK(t.device().is_cpu() && t.is_contiguous() && t.dim() == dims && t.scalar_type() == type, name,
              " must be a contiguous ", dims, "-dimensional ", type, " tensor on the CPU");
}

void check_real(const Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16,
              "float32 or bfloat16 is needed, got ", t.scalar_type());
}

void check_range(const Tensor& t, const char* name, int64_t limit) {
  const auto* p = t.const_data_ptr<int32_t>();
  int32_t low = 0, high = -1;
  for (int64_t i = 0, n = t.numel(); i < n; ++i) {
    low = std::min(low, p[i]);
    high = std::max(high, p[i]);
  }
  TORCH_CHECK(low >= 0 && high < limit, name, " holds values outside 0 .. ", limit - 1);
}

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

Tensor add_rms_norm(const std::optional<Tensor>& residual, const Tensor& x, const Tensor& weight, double eps) {
  check_real(x);
  check(x, "x", 2, x.scalar_type());
  check(weight, "weight", 1, x.scalar_type());
  TORCH_CHECK(weight.size(0) == x.size(1), "weight does not fit x");
  if (residual) {
    check(*residual, "residual", 2, x.scalar_type());
    TORCH_CHECK(residual->sizes() == x.sizes(), "residual does not fit x");
  }
  Tensor out = at::empty(x.sizes(), x.options());
  on_type(x, x.numel(), [&](auto t) {
    using T = decltype(t);
    native::rms_norm<T>(data<T>(out), residual ? data<T>(*residual) : nullptr, data<T>(x), data<T>(weight),
                        x.size(0), x.size(1), static_cast<float>(eps), at::get_num_threads());
  });
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return add_rms_norm(std::nullopt, x, weight, eps);
}

Tensor silu_mul(const Tensor& gate_up) {
  check_real(gate_up);
  check(gate_up, "gate_up", 2, gate_up.scalar_type());
  TORCH_CHECK(gate_up.size(1) % 2 == 0, "gate_up has an odd width");
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  Tensor out = at::empty({rows, inner}, gate_up.options());
  on_type(gate_up, gate_up.numel(), [&](auto t) {
    using T = decltype(t);
    native::silu_mul<T>(data<T>(out), data<T>(gate_up), rows, inner, at::get_num_threads());
  });
  return out;
}

void check_cache(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, int64_t heads) {
  check_real(qkv);
  check(qkv, "qkv", 2, qkv.scalar_type());
  check(k_cache, "k_cache", 4, qkv.scalar_type());
  check(v_cache, "v_cache", 4, qkv.scalar_type());
  const int64_t kv_heads = k_cache.size(1), dim = k_cache.size(3);
  TORCH_CHECK(v_cache.sizes() == k_cache.sizes() && k_cache.size(2) == native::kBlock, "bad cache shape");
  TORCH_CHECK(dim % 16 == 0 && dim > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
              "bad head shape");
  TORCH_CHECK(qkv.size(1) == (heads + 2 * kv_heads) * dim, "qkv does not fit the heads");
}

void rope_write(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& k_cache,
                const Tensor& v_cache, const Tensor& positions, const Tensor& slots, int64_t heads) {
  check_cache(qkv, k_cache, v_cache, heads);
  const int64_t dim = k_cache.size(3);
  check(cos, "cos", 2, at::kFloat);
  check(sin, "sin", 2, at::kFloat);
  check(positions, "positions", 1, at::kInt);
  check(slots, "slots", 1, at::kInt);
  TORCH_CHECK(cos.sizes() == sin.sizes() && cos.size(1) == dim, "cos and sin do not fit the heads");
  TORCH_CHECK(positions.size(0) == qkv.size(0) && slots.size(0) == qkv.size(0), "plan does not fit qkv");
  check_range(positions, "positions", cos.size(0));
  check_range(slots, "slots", k_cache.size(0) * native::kBlock);
  const native::RopeCall call{qkv.data_ptr(), data<float>(cos), data<float>(sin), k_cache.data_ptr(),
                              v_cache.data_ptr(), data<int32_t>(positions), data<int32_t>(slots), qkv.size(0),
                              static_cast<int>(heads), static_cast<int>(k_cache.size(1)),
                              static_cast<int>(dim)};
  on_type(qkv, qkv.numel(), [&](auto t) { native::rope_write<decltype(t)>(call, at::get_num_threads()); });
}

void check_rows(const Tensor& cu_q, const Tensor& context, int64_t tokens, int64_t most) {
  const auto *start = data<int32_t>(cu_q), *seen = data<int32_t>(context);
  const int64_t rows = context.size(0);
  TORCH_CHECK(cu_q.size(0) == rows + 1 && start[0] == 0 && start[rows] == tokens, "cu_q does not fit qkv");
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t queries = start[row + 1] - start[row];
    TORCH_CHECK(queries >= 0 && seen[row] >= queries && seen[row] <= most, "row ", row, " has ", queries,
                " queries and a context of ", seen[row], ", the block table holds ", most);
  }
}

Tensor attention(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_q,
                 const Tensor& context, const Tensor& table, int64_t heads, double scale) {
  check_cache(qkv, k_cache, v_cache, heads);
  check(cu_q, "cu_q", 1, at::kInt);
  check(context, "context", 1, at::kInt);
  check(table, "block_table", 2, at::kInt);
  TORCH_CHECK(table.size(0) == context.size(0), "block_table does not fit context");
  check_rows(cu_q, context, qkv.size(0), table.size(1) * native::kBlock);
  check_range(table, "block_table", k_cache.size(0));
  const int64_t dim = k_cache.size(3);
  Tensor out = at::empty({qkv.size(0), heads * dim}, qkv.options());
  const native::AttentionCall call{out.data_ptr(), qkv.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
                                   data<int32_t>(cu_q), data<int32_t>(context), data<int32_t>(table),
                                   static_cast<int>(context.size(0)), static_cast<int>(table.size(1)),
                                   static_cast<int>(heads), static_cast<int>(k_cache.size(1)),
                                   static_cast<int>(dim), qkv.size(1), static_cast<float>(scale)};
  on_type(qkv, qkv.numel(), [&](auto t) { native::attention<decltype(t)>(call, at::get_num_threads()); });
  return out;
}

Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t out) {
  check_real(x);
  check(x, "x", 2, x.scalar_type());
  check(w, "w", 3, x.scalar_type());
  const int64_t rows = x.size(0), in = x.size(1), per = x.scalar_type() == at::kFloat ? 1 : 2;
  TORCH_CHECK(out > 0 && w.size(0) == (out + native::kPanel - 1) / native::kPanel && w.size(1) * per == in &&
                  w.size(2) == native::kPanel * per,
              "w does not fit x");
  if (bias) {
    check(*bias, "bias", 1, x.scalar_type());
    TORCH_CHECK(bias->size(0) == out, "bias does not fit w");
  }
  Tensor y = at::empty({rows, out}, x.options());
  on_type(x, y.numel(), [&](auto t) {
    using T = decltype(t);
    native::linear<T>(data<T>(y), data<T>(x), data<T>(w), bias ? data<T>(*bias) : nullptr, rows, in, out,
                      at::get_num_threads());
  });
  return y;
}

void check_groups(const Tensor& starts, const Tensor& table, int64_t tokens) {
  const auto* start = data<int32_t>(starts);
  const auto* row = data<int64_t>(table);
  const int64_t groups = table.size(0);
  TORCH_CHECK(table.size(1) == 3 && starts.size(0) == groups + 1, "table does not fit starts");
  TORCH_CHECK(start[0] >= 0 && start[groups] <= tokens, "starts do not fit y");
  for (int64_t g = 0; g < groups; ++g, row += 3) {
    TORCH_CHECK(start[g] <= start[g + 1], "starts must not fall");
    TORCH_CHECK(row[2] >= 0 && row[2] % 2 == 0 && row[2] < 65536 && (row[2] == 0 || (row[0] && row[1])),
                "bad rank or address in table");
  }
}

void lora(const Tensor& y, const Tensor& x, const Tensor& starts, const Tensor& table,
          const std::vector<int64_t>& offsets) {
  check_real(y);
  check(y, "y", 2, y.scalar_type());
  check(x, "x", 2, y.scalar_type());
  check(starts, "starts", 1, at::kInt);
  check(table, "table", 2, at::kLong);
  TORCH_CHECK(x.size(0) == y.size(0), "x and y differ in tokens");
  TORCH_CHECK(offsets.size() > 1 && offsets.front() == 0 && offsets.back() == y.size(1) &&
                  std::is_sorted(offsets.begin(), offsets.end()),
              "offsets do not fit y");
  check_groups(starts, table, y.size(0));
  const native::LoraCall call{y.data_ptr(), x.data_ptr(), data<int32_t>(starts), data<int64_t>(table),
                              static_cast<int>(table.size(0)), offsets.data(),
                              static_cast<int>(offsets.size()) - 1, x.size(1), y.size(1)};
  on_type(y, y.numel(), [&](auto t) { native::lora<decltype(t)>(call, at::get_num_threads()); });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("panel") = native::kPanel;
  m.attr("tile") = native::kTile;
  m.def("rms_norm", &rms_norm);
  m.def("add_rms_norm", &add_rms_norm);
  m.def("silu_mul", &silu_mul);
  m.def("rope_write", &rope_write);
  m.def("attention", &attention);
  m.def("linear", &linear);
  m.def("lora", &lora);
}
