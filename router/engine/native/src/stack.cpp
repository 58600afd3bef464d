#include "stack.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "blocks.h"
#include "panels.h"
#include "scratch.h"

namespace native {
namespace {

constexpr int kLoraPart = 16;             // rows that share a read of a: x and z stay in the nearest cache
constexpr int64_t kProject = 32 << 10;    // bytes of a in a chunk


using Clock = std::chrono::steady_clock;

// The phases of a layer. Before a linear layer is the first product of the adapters at its site; the second is added
// to each panel of columns while that is in the nearest cache. Between linear layers are the rows' own affairs.
enum Phase {
  kQkvIn, kQkv, kRope, kAttend, kOutIn, kOut, kNorm2, kGateUpIn, kGateUp, kGate, kDownIn, kDown, kNorm1, kPhases
};
enum Site { kSiteQkv, kSiteO, kSiteGateUp, kSiteDown, kSites };

// Whose first product a phase makes, or whose panels.
constexpr Site projected(int phase) {
  return phase == kQkvIn ? kSiteQkv : phase == kOutIn ? kSiteO : phase == kGateUpIn ? kSiteGateUp : phase == kDownIn ? kSiteDown : kSites;
}
constexpr Site multiplied(int phase) {
  return phase == kQkv ? kSiteQkv : phase == kOut ? kSiteO : phase == kGateUp ? kSiteGateUp : phase == kDown ? kSiteDown : kSites;
}

template <class T>
struct Buffers {
  Scratch<T> normed, qkv, mixed, added, gate_up, gated, z, scored;
};

// A piece of the first product: slices [first, last) of a part's ranks.
struct Piece {
  int part, first, last;
};

template <class T>
class Stack : public Job {
 public:
  Stack(const StackWeights& weights, const StepCall& call, Buffers<T>& buffers, int threads, Spent& spent)
      : w_(weights), c_(call), spent_(spent), before_(Clock::now()), items_(attention_of(0), threads) {
    const int64_t n = c_.count;
    stamp_ = fresh_stamps(phases());
    hidden_ = static_cast<T*>(c_.hidden);
    normed_ = buffers.normed.get(n * w_.hidden);
    qkv_ = buffers.qkv.get(n * w_.qkv_width());
    mixed_ = buffers.mixed.get(n * w_.heads * w_.dim);
    added_ = buffers.added.get(n * w_.hidden);
    gate_up_ = buffers.gate_up.get(n * 2 * w_.inner);
    gated_ = buffers.gated.get(n * w_.inner);
    scored_ = buffers.scored.get(c_.score * w_.hidden);
    // Few rows: as many parts as the threads can share; many: as many rows as fit the nearest cache.
    const int64_t share = (n + 2 * threads - 1) / (2 * threads);
    const int32_t whole[1] = {static_cast<int32_t>(n)};
    parts_ = parts_of(whole, 0, std::clamp<int64_t>((share + 3) / 4 * 4, 4, kLoraPart), true);
    slices_ = std::clamp<int>(2 * threads / std::max<int>(1, parts_.size()), 1, w_.kv_heads);
    if (!c_.adapters) return;
    read_parts_ = parts_of(c_.starts, c_.groups, kLoraPart, false);
    for (int s = 0; s < kSites; ++s) offsets_[s] = offsets_of(s);
    for (int l = c_.first; l < c_.last; ++l)
      for (int s = 0; s < kSites; ++s)
        for (int g = 0; g < c_.groups; ++g) width_ = std::max<int64_t>(width_, lora(l, s).slices(g) * kSlice);
    z_ = buffers.z.get(n * width_);
    pieces_.resize((c_.last - c_.first) * kSites);
    for (int l = c_.first; l < c_.last; ++l)
      for (int s = 0; s < kSites; ++s) cut(l, s);
  }

  int phases() const override { return 1 + kPhases * (c_.last - c_.first) + (c_.score ? 2 : 0); }

  int chunks(int phase) const override {
    if (phase == 0) return static_cast<int>(parts_.size());
    if (phase > kPhases * (c_.last - c_.first)) return scoring(phase) ? w_.head.panels() : static_cast<int>(c_.score);
    const int l = layer(phase), kind = (phase - 1) % kPhases;
    if (projected(kind) != kSites) return c_.adapters ? static_cast<int>(pieces(l, projected(kind)).size()) : 0;
    if (multiplied(kind) != kSites) return weights(l, multiplied(kind)).panels();
    if (kind == kAttend) return items_.chunks();
    return static_cast<int>(parts_.size()) * (kind == kRope || kind == kGate ? slices_ : 1);
  }

  void done(int phase) override {
    const auto now = Clock::now();
    const bool layers = phase > 0 && phase <= kPhases * (c_.last - c_.first);
    const int part = phase == 0 ? 0 : layers ? 1 + (phase - 1) % kPhases : Spent::kParts - 1;
    spent_.seconds[part] += std::chrono::duration<double>(now - before_).count();
    before_ = now;
  }

  void run(int phase, int chunk, const Share& share) override {
    if (phase == 0) return begin(parts_[chunk]);
    if (phase > kPhases * (c_.last - c_.first)) return score(phase, chunk, share);
    const int l = layer(phase), kind = (phase - 1) % kPhases;
    if (projected(kind) != kSites) return project(l, projected(kind), chunk, share);
    if (multiplied(kind) != kSites) return linear(l, multiplied(kind), chunk, share, stamp_ + phase);
    switch (kind) {
      case kRope: return turn(l, chunk);
      case kAttend: return attention_chunk<T>(attention_of(l), items_, chunk);
      case kNorm2: return middle(l, parts_[chunk]);
      case kGate: return gate(l, chunk);
      case kNorm1: return end(l, parts_[chunk]);
    }
  }

  const char* soon(int phase, int thread, int threads) const override {
    if (phase > kPhases * (c_.last - c_.first)) return scoring(phase) ? nullptr : start_of(w_.head, thread, threads);
    const int l = phase == 0 ? c_.first : layer(phase), kind = phase == 0 ? -1 : (phase - 1) % kPhases;
    if (projected(kind) != kSites) return start_of(weights(l, projected(kind)), thread, threads);
    const Site site = kind < kQkv ? kSiteQkv : kind < kOutIn ? kSiteO : kind < kGateUpIn ? kSiteGateUp : kind < kDownIn ? kSiteDown : kSiteQkv;
    return start_of(kind >= kDown ? l + 1 : l, site, thread, threads);
  }

 private:
  int layer(int phase) const { return c_.first + (phase - 1) / kPhases; }
  bool scoring(int phase) const { return phase == phases() - 1; }
  const std::vector<Piece>& pieces(int l, int site) const { return pieces_[(l - c_.first) * kSites + site]; }
  const int64_t* table(int l, int site) const { return c_.adapters + (static_cast<int64_t>(l) * kSites + site) * c_.groups * 3; }
  static int ranks_of(int site) { return site == kSiteQkv ? 3 : site == kSiteGateUp ? 2 : 1; }

  std::array<int64_t, 4> offsets_of(int site) const {
    const int64_t q = static_cast<int64_t>(w_.heads) * w_.dim, kv = static_cast<int64_t>(w_.kv_heads) * w_.dim;
    if (site == kSiteQkv) return {0, q, q + kv, q + 2 * kv};
    if (site == kSiteGateUp) return {0, w_.inner, 2 * w_.inner, 0};
    return {0, w_.hidden, 0, 0};
  }

  LoraCall lora(int l, int site) const {
    const std::array<int64_t, 4>& offsets = offsets_[site];
    return {site_output(site), input(site), z_, width_, table(l, site), offsets.data(), ranks_of(site), weights(l, site).in,
            offsets[ranks_of(site)]};
  }

  const T* input(int site) const {
    return site == kSiteO ? mixed_ : site == kSiteDown ? gated_ : normed_;
  }

  const Weights& weights(int l, int site) const {
    const LayerWeights& w = w_.layers[l];
    return site == kSiteQkv ? w.qkv : site == kSiteO ? w.o : site == kSiteGateUp ? w.gate_up : w.down;
  }

  // Slices that together are about kProject bytes of a.
  void cut(int l, int site) {
    std::vector<Piece>& pieces = pieces_[(l - c_.first) * kSites + site];
    const int step = static_cast<int>(std::max<int64_t>(1, kProject / (slice(l, site) * static_cast<int64_t>(sizeof(T)))));
    for (size_t p = 0; p < read_parts_.size(); ++p) {
      const int slices = lora(l, site).slices(read_parts_[p].group);
      for (int c = 0; c < slices; c += step) pieces.push_back({static_cast<int>(p), c, std::min(slices, c + step)});
    }
  }

  // Elements of a in a slice.
  int64_t slice(int l, int site) const {
    constexpr int per = Pack<T>::per;
    return (weights(l, site).in + per - 1) / per * per * kSlice;
  }

  const char* piece_of(int l, int site, int chunk) const {
    const Piece& piece = pieces(l, site)[chunk];
    const auto* a = reinterpret_cast<const T*>(table(l, site)[3 * read_parts_[piece.part].group]);
    return reinterpret_cast<const char*>(a + piece.first * slice(l, site));
  }

  // Where a thread begins to read a linear layer's weights.
  static const char* start_of(const Weights& w, int thread, int threads) {
    return panel_of(w, static_cast<int64_t>(w.panels()) * thread / threads);
  }

  // What a thread reads first at a site: adapters, or weights; behind the last layer the head.
  const char* start_of(int l, int site, int thread, int threads) const {
    if (l == c_.last) return c_.score ? start_of(w_.head, thread, threads) : nullptr;
    const int64_t all = c_.adapters ? pieces(l, site).size() : 0;
    return all ? piece_of(l, site, static_cast<int>(all * thread / threads)) : start_of(weights(l, site), thread, threads);
  }

  void begin(const Part& part) const {
    const T* weight = c_.first < static_cast<int>(w_.layers.size())
                          ? static_cast<const T*>(w_.layers[c_.first].norm1) : nullptr;
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      T* row = hidden_ + t * w_.hidden;
      if (c_.tokens) embed(row, c_.tokens[t]);
      if (c_.first < c_.last) norm_row<T>(normed_ + t * w_.hidden, nullptr, row, weight, w_.hidden, w_.eps);
    }
  }

  void embed(T* row, int64_t token) const {
    if (!w_.embed && !w_.head.runs.empty()) return block_row<T>(row, w_.head, token);
    if (!w_.embed) return unpack_row<T>(row, w_.head.w, w_.hidden, token);
    std::memcpy(row, static_cast<const T*>(w_.embed) + token * w_.hidden, w_.hidden * sizeof(T));
  }

  void project(int l, int site, int chunk, const Share& share) const {
    const Piece& piece = pieces(l, site)[chunk];
    const char* after = chunk + 1 < share.end ? piece_of(l, site, chunk + 1) : start_of(weights(l, site), share.owner, share.all);
    lora_project<T>(lora(l, site), read_parts_[piece.part], piece.first, piece.last, after);
  }

  void linear(int l, int site, int panel, const Share& share, uint64_t stamp) const {
    const Weights& w = weights(l, site);
    const char* next = share.own ? following(l, site, share) : panel_of(w, share.end);
    linear_panel<T>({site_output(site), input(site), c_.count, &w, stamp}, panel, {panel_of(w, share.end), next});
    if (!c_.adapters) return;
    lora_expand<T>(lora(l, site), read_parts_.data(), read_parts_.size(), panel);
  }

  static const char* panel_of(const Weights& w, int64_t panel) { return w.panel(panel, sizeof(T)); }

  T* site_output(int site) const { return site == kSiteQkv ? qkv_ : site == kSiteGateUp ? gate_up_ : added_; }

  // The weights that a thread reads after those of a site.
  const char* following(int l, int site, const Share& share) const {
    if (site < kSiteDown) return start_of(weights(l, site + 1), share.owner, share.all);
    const Weights* next = l + 1 < c_.last ? &weights(l + 1, kSiteQkv) : c_.score ? &w_.head : nullptr;
    return next ? start_of(*next, share.owner, share.all) : nullptr;
  }

  void norm(int64_t token, const void* weight) const {
    norm_row<T>(normed_ + token * w_.hidden, hidden_ + token * w_.hidden, added_ + token * w_.hidden,
                static_cast<const T*>(weight), w_.hidden, w_.eps);
  }

  void middle(int l, const Part& part) const {
    const LayerWeights& w = w_.layers[l];
    for (int64_t t = part.start; t < part.start + part.rows; ++t) norm(t, w.norm2);
  }

  // Rotary positions. A slice has some KV heads and their query heads.
  void turn(int l, int chunk) const {
    const LayerWeights& w = w_.layers[l];
    const Part& part = parts_[chunk / slices_];
    const int slice = chunk % slices_;
    const int first = w_.kv_heads * slice / slices_, last = w_.kv_heads * (slice + 1) / slices_;
    const RopeCall call{qkv_, w_.cos, w_.sin, w.k_cache, w.v_cache, c_.positions, c_.slots, w_.heads, w_.kv_heads, w_.dim};
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      if (w.q_norm) normalise(qkv_ + t * w_.qkv_width(), w, first, last);
      rope_token<T>(call, t, first, last);
    }
  }

  void normalise(T* row, const LayerWeights& w, int first, int last) const {
    const int group = w_.heads / w_.kv_heads;
    const auto heads = [&](int from, int to, const void* weight) {
      for (int h = from; h < to; ++h) {
        T* head = row + int64_t{h} * w_.dim;
        norm_row<T>(head, nullptr, head, static_cast<const T*>(weight), w_.dim, w_.eps);
      }
    };
    heads(first * group, last * group, w.q_norm);
    heads(w_.heads + first, w_.heads + last, w.k_norm);
  }

  AttentionCall attention_of(int l) const {
    const LayerWeights* w = w_.layers.empty() ? nullptr : &w_.layers[l];
    return {mixed_, qkv_, w ? w->k_cache : nullptr, w ? w->v_cache : nullptr, c_.cu_q, c_.context, c_.table, c_.rows,
            c_.table_width, w_.heads, w_.kv_heads, w_.dim, w_.qkv_width(), w_.scale};
  }

  // A slice has some columns of gate and the same of up.
  void gate(int l, int chunk) const {
    const Part& part = parts_[chunk / slices_];
    const int64_t slice = chunk % slices_, panels = (w_.inner + kPanel - 1) / kPanel;
    const int64_t first = panels * slice / slices_ * kPanel;
    const int64_t last = std::min(w_.inner, panels * (slice + 1) / slices_ * kPanel);
    for (int64_t t = part.start; t < part.start + part.rows; ++t)
      silu_columns<T>(gated_ + t * w_.inner, gate_up_ + t * 2 * w_.inner, w_.inner, first, last);
  }

  void end(int l, const Part& part) const {
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      if (l + 1 < c_.last)
        norm(t, w_.layers[l + 1].norm1);
      else
        add_row<T>(hidden_ + t * w_.hidden, added_ + t * w_.hidden, w_.hidden);
    }
  }

  void score(int phase, int chunk, const Share& share) const {
    if (scoring(phase))
      return linear_panel<T>({c_.logits, scored_, c_.score, &w_.head, stamp_ + phase}, chunk,
                             {panel_of(w_.head, share.end), panel_of(w_.head, share.end)});
    norm_row<T>(scored_ + chunk * w_.hidden, nullptr, hidden_ + c_.scored[chunk] * w_.hidden,
                static_cast<const T*>(w_.norm), w_.hidden, w_.eps);
  }

  const StackWeights& w_;
  const StepCall& c_;
  Spent& spent_;
  Clock::time_point before_;
  T *hidden_ = nullptr, *normed_ = nullptr, *qkv_ = nullptr, *mixed_ = nullptr, *added_ = nullptr, *gate_up_ = nullptr,
    *gated_ = nullptr, *z_ = nullptr, *scored_ = nullptr;
  AttentionItems items_;
  std::vector<Part> parts_, read_parts_;
  int slices_ = 1;
  uint64_t stamp_ = 0;
  int64_t width_ = 0;
  std::array<std::array<int64_t, 4>, kSites> offsets_{};
  std::vector<std::vector<Piece>> pieces_;
};

}  // namespace

template <class T>
void run_stack(const StackWeights& weights, const StepCall& call, int threads, Spent& spent) {
  static thread_local Buffers<T> buffers;
  Stack<T> stack(weights, call, buffers, threads, spent);
  work(stack, threads);
  ++spent.steps;
}

template void run_stack<float>(const StackWeights&, const StepCall&, int, Spent&);
template void run_stack<bf16>(const StackWeights&, const StepCall&, int, Spent&);

}  // namespace native
