// Python's way in. Every argument is checked here; the kernels trust what they get, except for the
// adapters' addresses, which belong to tensors that the caller keeps alive.
#include <ATen/ops/empty.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "bindings.h"
#include "blocks.h"
#include "sample.h"
#include "stack.h"

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

// cos and sin [positions, turned], of all numbers of a head or of some at its beginning.
void check_angles(const Tensor& cos, const Tensor& sin, int64_t dim) {
  check(cos, "cos", 2, at::kFloat);
  check(sin, "sin", 2, at::kFloat);
  TORCH_CHECK(cos.sizes() == sin.sizes() && cos.size(1) % 2 == 0 && cos.size(1) <= dim, "cos and sin do not fit the heads");
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

// Panels, scales if they are of int8, bias, and of blocks each run of panels of one form: the form and how many.
using Linear = std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>, std::vector<std::pair<int, int>>>;

native::Form form_of(int number) {
  const auto form = static_cast<native::Form>(number);
  TORCH_CHECK(native::shape_of(form).bytes, "no form of blocks has the number ", number);
  return form;
}

// The runs of blocks that are all of `w`.
std::vector<native::Run> runs_of(const Linear& linear, int64_t in, int64_t panels) {
  const auto& [w, scales, bias, forms] = linear;
  std::vector<native::Run> runs;
  int64_t bytes = 0;
  for (const auto& [number, count] : forms) {
    const native::Form form = form_of(number);
    TORCH_CHECK(count > 0 && in > 0 && in % native::shape_of(form).inputs == 0, "blocks do not fit x");
    runs.push_back({form, count, native::block_panel_bytes(form, in)});
    bytes += count * runs.back().bytes;
    panels -= count;
  }
  check(w, "w", 1, at::kByte);
  TORCH_CHECK(panels == 0 && w.size(0) == bytes && !scales, "w does not fit x");
  return runs;
}

native::Weights weights_of(const Linear& linear, int64_t in, int64_t out, at::ScalarType type) {
  const auto& [w, scales, bias, forms] = linear;
  const int64_t per = type == at::kFloat ? 1 : 2, panels = (out + native::kPanel - 1) / native::kPanel;
  TORCH_CHECK(out > 0, "a linear layer has one output or more");
  std::vector<native::Run> runs;
  if (!forms.empty()) {
    runs = runs_of(linear, in, panels);
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
  return {w.data_ptr(), scales ? data<float>(*scales) : nullptr, bias ? bias->data_ptr() : nullptr, in, out,
          std::move(runs)};
}

// Blocks as they lie in a file, uint8 [out, bytes], into panels for activations of a type: uint8, flat, in `to`.
void pack_blocks(const Tensor& blocks, int number, int64_t in, bool wide, const Tensor& to) {
  const native::Form form = form_of(number);
  const native::BlockShape shape = native::shape_of(form);
  check(blocks, "blocks", 2, at::kByte);
  check(to, "to", 1, at::kByte);
  const int64_t out = blocks.size(0), panels = (out + native::kPanel - 1) / native::kPanel;
  const int64_t bytes = native::block_panel_bytes(form, in);
  TORCH_CHECK(in > 0 && in % shape.inputs == 0 && blocks.size(1) == in / shape.inputs * shape.bytes,
              "blocks do not fit their number of inputs");
  TORCH_CHECK(to.size(0) == panels * bytes, "to does not fit blocks");
  pybind11::gil_scoped_release release;
  native::each(static_cast<int>(panels), threads_for(out * in), [&](int panel, const native::Share&) {
    const auto pack = wide ? native::pack_panel<float> : native::pack_panel<native::bf16>;
    pack(form, data<uint8_t>(blocks), in, out, panel, data<char>(to) + panel * bytes);
  });
}

// A weight [out, in] -> blocks of Q4_1, uint8 [out, bytes].
Tensor quantise_blocks(const Tensor& weight) {
  check_real(weight);
  check(weight, "weight", 2, weight.scalar_type());
  const native::BlockShape shape = native::shape_of(native::Form::q4_1);
  const int64_t out = weight.size(0), in = weight.size(1), width = in / shape.inputs * shape.bytes;
  TORCH_CHECK(in % shape.inputs == 0, "weight has no whole groups of inputs");
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

// Rows `indices` of a weight in blocks [rows, in] into out [T, in].
void unpack_block_rows(const Linear& given, int64_t rows, const Tensor& indices, const Tensor& out) {
  check_real(out);
  check(out, "out", 2, out.scalar_type());
  check(indices, "indices", 1, at::kLong);
  const native::Weights weights = weights_of(given, out.size(1), rows, out.scalar_type());
  TORCH_CHECK(indices.size(0) == out.size(0) && !weights.runs.empty(), "indices do not fit out");
  const auto* row = data<int64_t>(indices);
  for (int64_t i = 0; i < indices.size(0); ++i) TORCH_CHECK(row[i] >= 0 && row[i] < rows, "there is no row ", row[i]);
  on_type(out, out.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(out.size(0)), threads_for(out.numel()), [&](int i, const native::Share&) {
      native::block_row<T>(data<T>(out) + i * weights.in, weights, row[i]);
    });
  });
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

// `table` has one row or more for each of the groups.
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

// The layers of a model; keeps its tensors alive.
class Stack {
 public:
  // wide: float32, else bfloat16. norm: the last. embed: none where its rows are those of the head. shape: heads, kv_heads,
  // dim, inner, experts of a token (0: there are none). sites: where the columns of each linear layer begin and end, of four
  // sites. numbers: eps, scale of scores, scale of embeddings, caps of scores and of logits (0: none).
  Stack(bool wide, const Tensor& norm, const std::optional<Tensor>& embed, const std::vector<int64_t>& shape,
        const std::array<std::vector<int64_t>, 4>& sites, const std::vector<double>& numbers, bool gelu, bool shares)
      : type_(wide ? at::kFloat : at::kBFloat16) {
    w_.heads = static_cast<int>(shape.at(0));
    w_.kv_heads = static_cast<int>(shape.at(1));
    w_.dim = static_cast<int>(shape.at(2));
    w_.inner = shape.at(3);
    w_.top = static_cast<int>(shape.at(4));
    w_.shares = shares;
    TORCH_CHECK(w_.top >= 0, "top is negative");
    w_.hidden = norm.size(0);
    w_.norm = norm_of(norm, w_.hidden);
    TORCH_CHECK(w_.kv_heads > 0 && w_.heads > 0 && w_.heads % w_.kv_heads == 0 && w_.dim > 0 && w_.dim % 16 == 0,
                "bad head shape");
    const int64_t widths[4] = {w_.qkv_width(), w_.hidden, w_.top ? 0 : 2 * w_.inner, w_.top ? 0 : w_.hidden};
    for (int s = 0; s < 4; ++s)
      TORCH_CHECK(!sites[s].empty() && sites[s].front() == 0 && sites[s].back() == widths[s] &&
                      std::is_sorted(sites[s].begin(), sites[s].end()),
                  "sites do not fit the layers");
    w_.sites = sites;
    TORCH_CHECK(numbers.size() == 5, "five numbers are needed");
    w_.eps = static_cast<float>(numbers[0]);
    w_.scale = static_cast<float>(numbers[1]);
    w_.embed_scale = static_cast<float>(numbers[2]);
    w_.score_cap = static_cast<float>(numbers[3]);
    w_.logit_cap = static_cast<float>(numbers[4]);
    w_.gate = gelu ? native::Gate::kGelu : native::Gate::kSilu;
    if (embed) {
      check(*embed, "embed", 2, type_);
      TORCH_CHECK(embed->size(1) == w_.hidden, "embed does not fit the norm");
      w_.embed = keep(*embed);
      vocabulary_ = embed->size(0);
    }
  }

  // norms: norm1, norm2, of what attention and the gated unit add, of heads q and k; the last four may be missing.
  // linears: of qkv, o, and gate_up and down, or of a mixture the router and then gate_up and down of each expert.
  void add(const std::array<std::optional<Tensor>, 6>& norms, const std::vector<Linear>& linears, const Tensor& cos,
           const Tensor& sin, int64_t window, const Tensor& k_cache, const Tensor& v_cache) {
    TORCH_CHECK(norms[0] && norms[1], "a layer has 2 norms");
    const int64_t experts = w_.top ? (static_cast<int64_t>(linears.size()) - 3) / 2 : 0;
    TORCH_CHECK(static_cast<int64_t>(linears.size()) == (w_.top ? 3 + 2 * experts : 4) && experts >= w_.top,
                "a layer has 4 linears, or 3 and 2 of each expert");
    TORCH_CHECK(w_.layers.empty() || static_cast<int64_t>(w_.layers[0].gate_ups.size()) == experts,
                "layers differ in experts");
    TORCH_CHECK(!norms[2] == !norms[3] && !norms[4] == !norms[5], "one norm of two is missing");
    check_angles(cos, sin, w_.dim);
    TORCH_CHECK(w_.layers.empty() || cos.size(0) == positions_, "layers differ in positions");
    positions_ = cos.size(0);
    TORCH_CHECK(window >= 0 && window <= std::numeric_limits<int>::max(), "a window is negative");
    check(k_cache, "k_cache", 4, type_);
    TORCH_CHECK(k_cache.sizes() == v_cache.sizes() && k_cache.size(1) == w_.kv_heads &&
                    k_cache.size(2) == native::kBlock && k_cache.size(3) == w_.dim,
                "bad cache shape");
    check(v_cache, "v_cache", 4, type_);
    TORCH_CHECK(w_.layers.empty() || k_cache.size(0) == blocks_, "caches differ in blocks");
    blocks_ = k_cache.size(0);
    const int64_t mixed = static_cast<int64_t>(w_.heads) * w_.dim;
    native::LayerWeights layer{};
    const float** places[6] = {&layer.norm1, &layer.norm2, &layer.out1, &layer.out2, &layer.q_norm, &layer.k_norm};
    for (int i = 0; i < 6; ++i)
      if (norms[i]) *places[i] = norm_of(*norms[i], i < 4 ? w_.hidden : w_.dim);
    layer.cos = static_cast<const float*>(keep(cos));
    layer.sin = static_cast<const float*>(keep(sin));
    layer.turned = static_cast<int>(cos.size(1));
    layer.window = static_cast<int>(window);
    layer.qkv = weights(linears[0], w_.hidden, w_.qkv_width());
    layer.o = weights(linears[1], mixed, w_.hidden);
    if (w_.top) layer.router = weights(linears[2], w_.hidden, experts);
    for (int64_t e = 0; e < experts; ++e) {
      layer.gate_ups.push_back(weights(linears[3 + 2 * e], w_.hidden, 2 * w_.inner));
      layer.downs.push_back(weights(linears[4 + 2 * e], w_.inner, w_.hidden));
    }
    if (!w_.top) {
      layer.gate_up = weights(linears[2], w_.hidden, 2 * w_.inner);
      layer.down = weights(linears[3], w_.inner, w_.hidden);
    }
    layer.k_cache = const_cast<void*>(keep(k_cache));
    layer.v_cache = const_cast<void*>(keep(v_cache));
    w_.layers.push_back(layer);
  }

  void finish(const Linear& head, int64_t vocabulary) {
    w_.head = weights(head, w_.hidden, vocabulary);
    TORCH_CHECK(w_.embed || !w_.head.scales, "rows of a head in 8 bits are not embedded");
    if (!w_.embed) vocabulary_ = vocabulary;
  }

  // Layers [first, last) on hidden [T, hidden], in place; returns the logits of the tokens `scored`. If tokens are
  // given they are embedded into it before.
  Tensor forward(const Tensor& hidden, const std::optional<Tensor>& tokens, int64_t first, int64_t last,
                                const std::vector<Tensor>& plan, const std::optional<Tensor>& adapters,
                                const std::optional<Tensor>& starts, const Tensor& scored) {
    native::StepCall call{};
    check(hidden, "hidden", 2, type_);
    TORCH_CHECK(hidden.size(1) == w_.hidden && hidden.size(0) > 0, "hidden does not fit");
    TORCH_CHECK(0 <= first && first <= last && last <= static_cast<int64_t>(w_.layers.size()), "no such layers");
    TORCH_CHECK(!w_.layers.empty(), "no layers");
    call.hidden = hidden.data_ptr();
    call.count = hidden.size(0);
    call.first = static_cast<int>(first);
    call.last = static_cast<int>(last);
    if (tokens) call.tokens = indices(*tokens, "tokens", vocabulary_, call.count);
    take_plan(call, plan);
    if (adapters) take_adapters(call, *adapters, starts);
    TORCH_CHECK(w_.head.w, "the head is not there");
    call.score = scored.size(0);
    call.scored = indices(scored, "scored", call.count, call.score);
    // Those of the last call again, unless somebody holds them.
    if (!logits_.defined() || logits_.use_count() > 1 || logits_.storage().use_count() > 1 || logits_.size(0) != call.score)
      logits_ = at::empty({call.score, w_.head.out}, hidden.options());
    const Tensor logits = logits_;
    call.logits = logits.data_ptr();
    call.ring = std::exchange(ring_, -1);
    pybind11::gil_scoped_release release;
    if (type_ == at::kFloat)
      native::run_stack<float>(w_, call, team_size.load(), spent_[call.rows < call.count]);
    else
      native::run_stack<bf16>(w_, call, team_size.load(), spent_[call.rows < call.count]);
    return logits;
  }

  // The next call writes to that eventfd once all threads are at work.
  void ring(int event) { ring_ = event; }

  // Seconds by what they went into since the last call, and the number of steps: of those in which every row has
  // one token, or of the others.
  std::pair<std::vector<std::pair<std::string, double>>, int64_t> spent(bool decode) {
    native::Spent& spent = spent_[!decode];
    std::vector<std::pair<std::string, double>> parts;
    for (int i = 0; i < native::Spent::kParts; ++i) parts.emplace_back(native::Spent::kNames[i], spent.seconds[i]);
    const int64_t steps = spent.steps;
    spent = {};
    return {parts, steps};
  }

  // Reads every number of the weights once, by the team, as fast as memory gives them; returns the bytes.
  int64_t read() {
    constexpr int64_t kPiece = 1 << 18;
    int64_t bytes = 0;
    for (const Tensor& t : weights_) bytes += t.nbytes();
    pybind11::gil_scoped_release release;
    for (const Tensor& t : weights_) {
      const auto* from = static_cast<const char*>(t.data_ptr());
      const int64_t size = t.nbytes();
      native::each(static_cast<int>((size + kPiece - 1) / kPiece), team_size.load(), [&](int piece, const native::Share&) {
        native::touch(from + piece * kPiece, std::min(kPiece, size - piece * kPiece));
      });
    }
    return bytes;
  }

 private:
  const float* norm_of(const Tensor& norm, int64_t width) {
    check(norm, "norm", 1, at::kFloat);
    TORCH_CHECK(norm.size(0) == width, "a norm does not fit");
    return static_cast<const float*>(keep(norm));
  }

  const void* keep(const Tensor& t) {
    kept_.push_back(t);
    return t.data_ptr();
  }

  native::Weights weights(const Linear& linear, int64_t in, int64_t out) {
    const auto& [w, scales, bias, forms] = linear;
    keep(w);
    weights_.push_back(w);
    if (scales) keep(*scales);
    if (bias) keep(*bias);
    return weights_of(linear, in, out, type_);
  }

  static const int64_t* indices(const Tensor& t, const char* name, int64_t limit, int64_t count) {
    check(t, name, 1, at::kLong);
    TORCH_CHECK(t.size(0) == count, name, " does not fit hidden");
    const auto* p = data<int64_t>(t);
    for (int64_t i = 0; i < count; ++i)
      TORCH_CHECK(p[i] >= 0 && p[i] < limit, name, " holds values outside 0 .. ", limit - 1);
    return p;
  }

  // cu_q, context, block_table, positions, slots
  void take_plan(native::StepCall& call, const std::vector<Tensor>& plan) const {
    TORCH_CHECK(plan.size() == 5, "a plan has five tensors");
    for (int i = 0; i < 5; ++i) check(plan[i], "plan", i == 2 ? 2 : 1, at::kInt);
    const Tensor &context = plan[1], &table = plan[2];
    TORCH_CHECK(table.size(0) == context.size(0), "block_table does not fit context");
    check_rows(plan[0], context, call.count, table.size(1) * native::kBlock);
    check_range(table, "block_table", blocks_);
    TORCH_CHECK(plan[3].size(0) == call.count && plan[4].size(0) == call.count, "plan does not fit hidden");
    check_range(plan[3], "positions", positions_);
    check_range(plan[4], "slots", blocks_ * native::kBlock);
    call.cu_q = data<int32_t>(plan[0]);
    call.context = data<int32_t>(context);
    call.table = data<int32_t>(table);
    call.positions = data<int32_t>(plan[3]);
    call.slots = data<int32_t>(plan[4]);
    call.rows = static_cast<int>(context.size(0));
    call.table_width = static_cast<int>(table.size(1));
  }

  void take_adapters(native::StepCall& call, const Tensor& adapters, const std::optional<Tensor>& starts) const {
    check(adapters, "adapters", 3, at::kLong);
    TORCH_CHECK(starts.has_value(), "adapters need starts");
    check(*starts, "starts", 1, at::kInt);
    const int64_t sites = adapters.size(0), groups = adapters.size(1);
    TORCH_CHECK(sites == 4 * static_cast<int64_t>(w_.layers.size()), "adapters do not fit the layers");
    check_groups(*starts, adapters.view({sites * groups, 3}), groups, call.count);
    TORCH_CHECK(data<int32_t>(*starts)[groups] == call.count, "starts do not fit hidden");
    call.adapters = data<int64_t>(adapters);
    call.starts = data<int32_t>(*starts);
    call.groups = static_cast<int>(groups);
  }

  native::StackWeights w_{};
  native::Spent spent_[2];
  std::vector<Tensor> kept_, weights_;
  Tensor logits_;
  int ring_ = -1;
  at::ScalarType type_;
  int64_t positions_ = 0, vocabulary_ = 0, blocks_ = 0;
};

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
  m.def("unpack_block_rows", &unpack_block_rows);
  m.def("block_panel_bytes", [](int number, int64_t in) { return native::block_panel_bytes(form_of(number), in); });
  m.def("lora", &lora);
  bindings::add_packing(m);
  m.def("choose", &choose);
  m.def("set_threads", [](int threads) {
    TORCH_CHECK(threads > 0, "a team has one thread or more");
    team_size.store(threads);
  });
  m.def("threads", [] { return team_size.load(); });
  pybind11::class_<Stack>(m, "Stack")
      .def(pybind11::init<bool, const Tensor&, const std::optional<Tensor>&, const std::vector<int64_t>&,
                          const std::array<std::vector<int64_t>, 4>&, const std::vector<double>&, bool, bool>())
      .def("add", &Stack::add)
      .def("finish", &Stack::finish)
      .def("forward", &Stack::forward)
      .def("ring", &Stack::ring)
      .def("spent", &Stack::spent)
      .def("read", &Stack::read);
}
