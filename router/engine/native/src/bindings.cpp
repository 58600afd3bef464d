// Python's way in. Every argument is checked here; the kernels trust what they get, except for the
// adapters' addresses, which belong to tensors that the caller keeps alive.
#include <ATen/ops/empty.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>

#include "bindings.h"
#include "blocks.h"
#include "sample.h"

namespace bindings {

native::Weights weights_of(const Linear& linear, int64_t in, int64_t out, at::ScalarType type) {
  const auto& [w, scales, bias] = linear;
  const int64_t per = type == at::kFloat ? 1 : 2, panels = (out + native::kPanel - 1) / native::kPanel;
  TORCH_CHECK(out > 0, "a linear layer has one output or more");
  const bool blocks = w.scalar_type() == at::kByte;
  if (blocks) {
    check(w, "w", 2, at::kByte);
    TORCH_CHECK(in > 0 && in % native::kGroupInputs == 0 && w.size(0) == panels && !scales &&
                    w.size(1) == native::kPanel * in / native::kGroupInputs * native::kGroupBytes,
                "w does not fit x");
  } else {
    check(w, "w", 3, scales ? at::kChar : type);
    TORCH_CHECK(w.size(0) == panels && w.size(1) * per == in && w.size(2) == native::kPanel * per, "w does not fit x");
  }
  if (scales) {
    check(*scales, "scales", 1, at::kFloat);
    TORCH_CHECK(scales->size(0) == panels * native::kPanel, "scales do not fit w");
  }
  if (bias) {
    check(*bias, "bias", 1, type);
    TORCH_CHECK(bias->size(0) == out, "bias does not fit w");
  }
  return {w.data_ptr(), scales ? data<float>(*scales) : nullptr, bias ? bias->data_ptr() : nullptr, in, out, blocks};
}

void check_angles(const Tensor& cos, const Tensor& sin, int64_t dim) {
  check(cos, "cos", 2, at::kFloat);
  check(sin, "sin", 2, at::kFloat);
  TORCH_CHECK(cos.sizes() == sin.sizes() && cos.size(1) % 2 == 0 && cos.size(1) <= dim, "cos and sin do not fit the heads");
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

void check_groups(const Tensor& starts, const Tensor& table, int64_t groups, int64_t tokens) {
  const auto* start = data<int32_t>(starts);
  const auto* row = data<int64_t>(table);
  TORCH_CHECK(table.size(1) == 3 && starts.size(0) == groups + 1, "table does not fit starts");
  TORCH_CHECK(start[0] >= 0 && start[groups] <= tokens, "starts do not fit y");
  for (int64_t g = 0; g < groups; ++g) TORCH_CHECK(start[g] <= start[g + 1], "starts must not fall");
  for (int64_t i = 0; i < table.size(0); ++i, row += 3) {
    TORCH_CHECK(row[2] >= 0 && row[2] % 2 == 0 && row[2] < 65536 && (row[2] == 0 || (row[0] && row[1])),
                "bad rank or address in table");
  }
}

}  // namespace bindings

namespace {

using namespace bindings;

constexpr int64_t kPartRows = 16;      // rows of one adapter that go together

Tensor add_rms_norm(const std::optional<Tensor>& residual, const Tensor& x, const Tensor& weight, double eps) {
  check_real(x);
  check(x, "x", 2, x.scalar_type());
  check(weight, "weight", 1, at::kFloat);
  TORCH_CHECK(weight.size(0) == x.size(1), "weight does not fit x");
  if (residual) {
    check(*residual, "residual", 2, x.scalar_type());
    TORCH_CHECK(residual->sizes() == x.sizes(), "residual does not fit x");
  }
  Tensor out = at::empty(x.sizes(), x.options());
  const int64_t width = x.size(1);
  on_type(x, x.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(x.size(0)), threads_for(x.numel()), [&](int row, const native::Share&) {
      const int64_t at = row * width;
      native::norm_row<T>(data<T>(out) + at, residual ? data<T>(*residual) + at : nullptr, data<T>(x) + at,
                          data<float>(weight), width, static_cast<float>(eps));
    });
  });
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return add_rms_norm(std::nullopt, x, weight, eps);
}

// Of silu, or of gelu by its approximation with tanh.
Tensor gated(const Tensor& gate_up, bool gelu) {
  check_real(gate_up);
  check(gate_up, "gate_up", 2, gate_up.scalar_type());
  TORCH_CHECK(gate_up.size(1) % 2 == 0, "gate_up has an odd width");
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  Tensor out = at::empty({rows, inner}, gate_up.options());
  on_type(gate_up, gate_up.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(rows), threads_for(gate_up.numel()), [&](int row, const native::Share&) {
      native::gate_columns<T>(gelu ? native::Gate::kGelu : native::Gate::kSilu, data<T>(out) + row * inner, data<T>(gate_up) + row * 2 * inner, inner, 0, inner);
    });
  });
  return out;
}

// In place.
void cap(const Tensor& x, double limit) {
  check_real(x);
  check(x, "x", 2, x.scalar_type());
  TORCH_CHECK(limit > 0, "a cap is positive");
  const int64_t width = x.size(1);
  on_type(x, x.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(x.size(0)), threads_for(x.numel()), [&](int row, const native::Share&) {
      native::cap_row<T>(data<T>(x) + row * width, width, static_cast<float>(limit));
    });
  });
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
  check(positions, "positions", 1, at::kInt);
  check(slots, "slots", 1, at::kInt);
  check_angles(cos, sin, dim);
  TORCH_CHECK(positions.size(0) == qkv.size(0) && slots.size(0) == qkv.size(0), "plan does not fit qkv");
  check_range(positions, "positions", cos.size(0));
  check_range(slots, "slots", k_cache.size(0) * native::kBlock);
  const native::RopeCall call{qkv.data_ptr(), data<float>(cos), data<float>(sin), k_cache.data_ptr(),
                              v_cache.data_ptr(), data<int32_t>(positions), data<int32_t>(slots),
                              static_cast<int>(heads), static_cast<int>(k_cache.size(1)), static_cast<int>(dim),
                              static_cast<int>(cos.size(1))};
  on_type(qkv, qkv.numel(), [&](auto t) {
    native::each(static_cast<int>(qkv.size(0)), threads_for(qkv.numel()), [&](int token, const native::Share&) {
      native::rope_token<decltype(t)>(call, token, 0, call.kv_heads);
    });
  });
}

Tensor attention(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_q,
                 const Tensor& context, const Tensor& table, int64_t heads, double scale, int64_t window, double cap) {
  check_cache(qkv, k_cache, v_cache, heads);
  check(cu_q, "cu_q", 1, at::kInt);
  check(context, "context", 1, at::kInt);
  check(table, "block_table", 2, at::kInt);
  TORCH_CHECK(table.size(0) == context.size(0), "block_table does not fit context");
  check_rows(cu_q, context, qkv.size(0), table.size(1) * native::kBlock);
  check_range(table, "block_table", k_cache.size(0));
  TORCH_CHECK(window >= 0 && window <= std::numeric_limits<int>::max() && cap >= 0, "a window or cap is negative");
  const int64_t dim = k_cache.size(3);
  Tensor out = at::empty({qkv.size(0), heads * dim}, qkv.options());
  const native::AttentionCall call{out.data_ptr(), qkv.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
                                   data<int32_t>(cu_q), data<int32_t>(context), data<int32_t>(table),
                                   static_cast<int>(context.size(0)), static_cast<int>(table.size(1)),
                                   static_cast<int>(heads), static_cast<int>(k_cache.size(1)),
                                   static_cast<int>(dim), qkv.size(1), static_cast<float>(scale),
                                   static_cast<int>(window), static_cast<float>(cap)};
  on_type(qkv, native::kBlock * kRelease, [&](auto t) {
    const int threads = team_size.load();
    const native::AttentionItems items(call, threads);
    native::each(items.chunks(), threads, [&](int chunk, const native::Share&) {
      native::attention_chunk<decltype(t)>(call, items, chunk);
    });
  });
  return out;
}

// A weight in 4 bits, uint8 [out, in / kGroupInputs * kGroupBytes], into panels.
void pack_blocks(const Tensor& blocks, const Tensor& to) {
  check(blocks, "blocks", 2, at::kByte);
  check(to, "to", 2, at::kByte);
  const int64_t out = blocks.size(0), width = blocks.size(1), in = width / native::kGroupBytes * native::kGroupInputs;
  TORCH_CHECK(in > 0 && width % native::kGroupBytes == 0, "blocks has no whole groups of inputs");
  TORCH_CHECK(to.size(0) == (out + native::kPanel - 1) / native::kPanel && to.size(1) == native::kPanel * width,
              "to does not fit blocks");
  pybind11::gil_scoped_release release;
  native::each(static_cast<int>(to.size(0)), threads_for(out * in), [&](int panel, const native::Share&) {
    native::pack_panel(data<uint8_t>(blocks), in, out, panel, data<char>(to) + panel * to.size(1));
  });
}

// A weight [out, in] in 4 bits, uint8 [out, in / kGroupInputs * kGroupBytes].
Tensor quantise_blocks(const Tensor& weight) {
  check_real(weight);
  check(weight, "weight", 2, weight.scalar_type());
  const int64_t out = weight.size(0), in = weight.size(1), width = in / native::kGroupInputs * native::kGroupBytes;
  TORCH_CHECK(in % native::kGroupInputs == 0, "weight has no whole groups of inputs");
  const Tensor blocks = at::empty({out, width}, weight.options().dtype(at::kByte));
  on_type(weight, weight.numel(), [&](auto t) {
    using T = decltype(t);
    const int parts = static_cast<int>((out + native::W - 1) / native::W);
    native::each(parts, threads_for(weight.numel()), [&](int part, const native::Share&) {
      const int64_t row = int64_t{part} * native::W;
      native::quantise_rows<T>(data<T>(weight) + row * in, in, out - row, data<uint8_t>(blocks) + row * width);
    });
  });
  return blocks;
}

Tensor linear(const Tensor& x, const Linear& given, int64_t out) {
  check_real(x);
  check(x, "x", 2, x.scalar_type());
  const native::Weights weights = weights_of(given, x.size(1), out, x.scalar_type());
  Tensor y = at::empty({x.size(0), out}, x.options());
  on_type(x, y.numel(), [&](auto t) {
    const native::LinearCall call{y.data_ptr(), x.data_ptr(), x.size(0), &weights, native::fresh_stamps(1)};
    native::each(weights.panels(), threads_for(out * x.size(1)), [&](int panel, const native::Share& share) {
      const char* end = weights.panel(share.end, x.element_size());
      native::linear_panel<decltype(t)>(call, panel, {end, end});
    });
  });
  return y;
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
  check_groups(starts, table, table.size(0), y.size(0));
  const int64_t* row = data<int64_t>(table);
  const int groups = static_cast<int>(table.size(0)), layers = static_cast<int>(offsets.size()) - 1;
  int64_t width = 0;
  for (int g = 0; g < groups; ++g) width = std::max(width, row[3 * g + 2] * layers);
  width = (width + native::kSlice - 1) / native::kSlice * native::kSlice;
  const Tensor z = at::empty({y.size(0), width}, y.options());
  const native::LoraCall call{y.data_ptr(), x.data_ptr(), z.data_ptr(), width, row, offsets.data(), layers, x.size(1),
                              y.size(1)};
  on_type(y, y.numel(), [&](auto t) {
    using T = decltype(t);
    const auto parts = native::parts_of(data<int32_t>(starts), groups, kPartRows, false);
    native::each(static_cast<int>(parts.size()), threads_for(kSerial + 1), [&](int chunk, const native::Share&) {
      const native::Part& part = parts[chunk];
      native::lora_project<T>(call, part, 0, call.slices(part.group), static_cast<const char*>(x.data_ptr()));
      for (int panel = 0; panel * native::kPanel < call.out; ++panel) native::lora_expand<T>(call, &part, 1, panel);
    });
  });
}

// What Python asks of a row, the fields of `Choice` (router/engine/ops.py) in their order, with the arrays it reads.
class AskedChoice : public native::Choice {
 public:
  AskedChoice(const pybind11::tuple& fields, int64_t width) {
    TORCH_CHECK(fields.size() == 15, "a choice has 15 fields");
    temperature = fields[0].cast<double>();
    top_k = fields[1].cast<int64_t>();
    top_p = fields[2].cast<double>();
    min_p = fields[3].cast<double>();
    uniform = fields[4].cast<double>();
    repetition = fields[5].cast<float>();
    frequency = fields[6].cast<float>();
    presence = fields[7].cast<float>();
    if (!fields[8].is_none()) take_seen(fields[8].cast<Array<int64_t>>(), fields[9].cast<Array<float>>(), width);
    forbidden = fields[10].cast<std::vector<int64_t>>();
    if (!fields[11].is_none()) take_allowed(fields[11].cast<Array<int32_t>>(), width);
    logprobs = fields[12].cast<int64_t>();
    near = fields[13].cast<int64_t>();
    proposed = fields[14].cast<int64_t>();
    TORCH_CHECK(temperature >= 0 && uniform >= 0 && uniform < 1 && logprobs >= 0 && near >= 0 && proposed < width, "a choice is out of range");
    for (const int64_t token : forbidden) TORCH_CHECK(token >= 0 && token < width, "forbidden does not fit logits");
  }

 private:
  template <class T>
  using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

  void take_seen(Array<int64_t> ids, Array<float> times, int64_t width) {
    TORCH_CHECK(ids.ndim() == 1 && times.ndim() == 1 && ids.size() == times.size(), "counts do not fit seen");
    seen = ids.data();
    counts = times.data();
    seen_count = ids.size();
    for (int64_t i = 0; i < seen_count; ++i)
      TORCH_CHECK(seen[i] >= 0 && seen[i] < width, "seen does not fit logits");
    arrays_ = {std::move(ids), std::move(times)};
  }

  void take_allowed(Array<int32_t> bits, int64_t width) {
    TORCH_CHECK(bits.ndim() == 1 && bits.size() * 32 >= width, "allowed does not fit logits");
    allowed = bits.data();
    arrays_.push_back(std::move(bits));
  }

  std::vector<pybind11::array> arrays_;
};

using Likely = std::vector<std::pair<int64_t, float>>;
using Chosen = std::tuple<int64_t, float, Likely, double, Likely>;

// logits [rows, width], whose rows may lie apart; a choice for each.
std::vector<Chosen> choose(const Tensor& logits, const std::vector<pybind11::tuple>& asked) {
  check_real(logits);
  TORCH_CHECK(logits.device().is_cpu() && logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) == 1),
              "logits must be rows on the CPU");
  const int64_t rows = logits.size(0), width = logits.size(1);
  TORCH_CHECK(static_cast<int64_t>(asked.size()) == rows && width > 0, "choices do not fit logits");
  std::vector<AskedChoice> choices;
  choices.reserve(asked.size());
  for (size_t i = 0; i < asked.size(); ++i) {
    if (i && asked[i].is(asked[i - 1]))
      choices.push_back(choices.back());
    else
      choices.emplace_back(asked[i], width);
  }
  std::vector<native::Chosen> chosen(asked.size());
  on_type(logits, logits.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(rows), threads_for(logits.numel()), [&](int row, const native::Share&) {
      chosen[row] = native::choose<T>(data<T>(logits) + row * logits.stride(0), width, choices[row]);
    });
  });
  std::vector<Chosen> out;
  for (auto& one : chosen) out.emplace_back(one.token, one.logprob, std::move(one.top), one.lacks, std::move(one.near));
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("panel") = native::kPanel;
  m.attr("slice") = native::kSlice;
  m.def("rms_norm", &rms_norm);
  m.def("add_rms_norm", &add_rms_norm);
  m.def("gated", &gated);
  m.def("cap", &cap);
  m.def("rope_write", &rope_write);
  m.def("attention", &attention);
  m.def("linear", &linear);
  m.def("quantise_blocks", &quantise_blocks);
  m.def("pack_blocks", &pack_blocks);
  m.def("lora", &lora);
  bindings::add_packing(m);
  m.def("choose", &choose);
  m.def("set_threads", [](int threads) {
    TORCH_CHECK(threads > 0, "a team has one thread or more");
    team_size.store(threads);
  });
  m.def("threads", [] { return team_size.load(); });
  bindings::add_stack(m);
}
