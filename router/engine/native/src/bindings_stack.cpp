// Python's way in to a stack of layers.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "bindings.h"
#include "stack.h"

namespace bindings {
namespace {

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
    TORCH_CHECK(w_.embed || !(w_.head.scales || w_.head.blocks), "rows of a head in few bits are not embedded");
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
    const auto& [w, scales, bias] = linear;
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

void add_stack(pybind11::module_& m) {
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

}  // namespace bindings
