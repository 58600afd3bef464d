#include "stack.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "panels.h"
#include "scratch.h"

namespace native {
namespace {

constexpr int kLoraPart = 16;             // rows that share a read of a: x and z stay in the nearest cache
constexpr int64_t kProject = 32 << 10;    // bytes of a in a chunk
constexpr int kSpans = 8;                 // of a that a panel asks for at most

constexpr float kNone = -std::numeric_limits<float>::infinity();

using Clock = std::chrono::steady_clock;

// The phases of a layer. Before a linear layer is the first product of the adapters at its site; the second is added
// to each panel of columns while that is in the nearest cache. Between linear layers are the rows' own affairs.
enum Phase {
  kQkvIn, kQkv, kRope, kAttend, kOutIn, kOut, kNorm2, kGateUpIn, kGather, kGateUp, kGate, kDownIn, kDown, kNorm1, kPhases
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
  Scratch<T> normed, qkv, mixed, added, gate_up, gated, z, scored, scores, sent;
};

// An expert that a token has, with its weight, and the token's place among the rows that experts read.
struct Choice {
  int expert, place;
  float weight;
};

// An expert that some tokens have, and its rows.
struct Hit {
  int expert;
  int64_t first, count;
};

// A piece of the first product: slices [first, last) of a part's ranks, bytes [begin, end) of all pieces at a site.
struct Piece {
  int part, first, last;
  int64_t begin, end;
};

template <class T>
class Stack : public Job {
 public:
  Stack(const StackWeights& weights, const StepCall& call, Buffers<T>& buffers, int threads, Spent& spent)
      : w_(weights), c_(call), spent_(spent), before_(Clock::now()) {
    for (int l = c_.first; l < c_.last; ++l)
      if (!items_of(l)) items_.push_back({w_.layers[l].window, AttentionItems(attention_of(l), threads)});
    const int64_t n = c_.count;
    stamp_ = fresh_stamps(phases());
    hidden_ = static_cast<T*>(c_.hidden);
    normed_ = buffers.normed.get(n * w_.hidden);
    qkv_ = buffers.qkv.get(n * w_.qkv_width());
    mixed_ = buffers.mixed.get(n * w_.heads * w_.dim);
    added_ = buffers.added.get(n * w_.hidden);
    const int64_t rows = n * std::max(1, w_.top);
    gate_up_ = buffers.gate_up.get(rows * 2 * w_.inner);
    gated_ = buffers.gated.get(rows * w_.inner);
    scored_ = buffers.scored.get(c_.score * w_.hidden);
    // Few rows: as many parts as the threads can share; many: as many rows as fit the nearest cache.
    const int64_t share = (n + 2 * threads - 1) / (2 * threads);
    const int32_t whole[1] = {static_cast<int32_t>(n)};
    parts_ = parts_of(whole, 0, std::clamp<int64_t>((share + 3) / 4 * 4, 4, kLoraPart), true);
    slices_ = std::clamp<int>(2 * threads / std::max<int>(1, parts_.size()), 1, w_.kv_heads);
    if (w_.top) {
      scores_ = buffers.scores.get(n * experts());
      sent_ = buffers.sent.get(rows * w_.hidden);
      choices_.resize(rows);
      hits_.resize(std::min<int64_t>(rows, experts()));
      counts_.resize(experts());
      unrouted_ = static_cast<int>(parts_.size());
    }
    if (!c_.adapters) return;
    read_parts_ = parts_of(c_.starts, c_.groups, kLoraPart, false);
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
    if (w_.top && kind >= kGateUpIn && kind <= kDown) {
      if (kind == kGateUpIn || kind == kGather) return static_cast<int>(parts_.size());
      if (kind == kGateUp || kind == kDown) return static_cast<int>(hits_.size()) * expert(l, kind, 0).panels();
      if (kind == kDownIn) return 0;
    }
    if (kind == kGather) return 0;
    if (projected(kind) != kSites) return c_.adapters ? static_cast<int>(pieces(l, projected(kind)).size()) : 0;
    if (multiplied(kind) != kSites) return weights(l, multiplied(kind)).panels();
    if (kind == kAttend) return items_of(l)->chunks();
    return static_cast<int>(parts_.size()) * (kind == kRope || kind == kGate ? slices_ : 1);
  }

  void done(int phase) override {
    const auto now = Clock::now();
    const bool layers = phase > 0 && phase <= kPhases * (c_.last - c_.first);
    const int part = phase == 0 ? 0 : layers ? 1 + (phase - 1) % kPhases : Spent::kParts - 1;
    spent_.seconds[part] += std::chrono::duration<double>(now - before_).count();
    before_ = now;
    if (phase == 0 && c_.ring >= 0) ring();
  }

  void run(int phase, int chunk, const Share& share) override {
    if (phase == 0) return begin(parts_[chunk]);
    if (phase > kPhases * (c_.last - c_.first)) return score(phase, chunk, share);
    const int l = layer(phase), kind = (phase - 1) % kPhases;
    if (w_.top) switch (kind) {
      case kGateUpIn: return route(l, parts_[chunk]);
      case kGather: return gather(parts_[chunk]);
      case kGateUp:
      case kDown: return ask_expert(l, kind, chunk);
    }
    if (projected(kind) != kSites) return project(l, projected(kind), chunk, share);
    if (multiplied(kind) != kSites) return linear(l, multiplied(kind), chunk, share, stamp_ + phase);
    switch (kind) {
      case kRope: return turn(l, chunk);
      case kAttend: return attention_chunk<T>(attention_of(l), *items_of(l), chunk);
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
  void ring() const {
    const uint64_t one = 1;
    [[maybe_unused]] const auto written = write(c_.ring, &one, sizeof one);  // fails only where it is rung already
  }

  int layer(int phase) const { return c_.first + (phase - 1) / kPhases; }
  bool scoring(int phase) const { return phase == phases() - 1; }
  const std::vector<Piece>& pieces(int l, int site) const { return pieces_[(l - c_.first) * kSites + site]; }
  const int64_t* table(int l, int site) const { return c_.adapters + (static_cast<int64_t>(l) * kSites + site) * c_.groups * 3; }

  LoraCall lora(int l, int site) const {
    const std::vector<int64_t>& offsets = w_.sites[site];
    return {site_output(site), input(site), z_, width_, table(l, site), offsets.data(), static_cast<int>(offsets.size()) - 1,
            weights(l, site).in, offsets.back()};
  }

  const T* input(int site) const {
    return site == kSiteO ? mixed_ : site == kSiteDown ? gated_ : normed_;
  }

  const Weights& weights(int l, int site) const {
    const LayerWeights& w = w_.layers[l];
    return site == kSiteQkv ? w.qkv : site == kSiteO ? w.o : site == kSiteDown ? w.down : w_.top ? w.router : w.gate_up;
  }

  // Slices that together are about kProject bytes of a.
  void cut(int l, int site) {
    if (w_.top && site >= kSiteGateUp) return;
    std::vector<Piece>& pieces = pieces_[(l - c_.first) * kSites + site];
    const int64_t bytes = slice_bytes(l, site);
    const int step = static_cast<int>(std::max<int64_t>(1, kProject / bytes));
    int64_t at = 0;
    for (size_t p = 0; p < read_parts_.size(); ++p) {
      const int slices = lora(l, site).slices(read_parts_[p].group);
      for (int c = 0; c < slices; c += step) {
        const int last = std::min(slices, c + step);
        const int64_t begin = at;
        pieces.push_back({static_cast<int>(p), c, last, begin, at += (last - c) * bytes});
      }
    }
  }

  // Bytes of a in a slice.
  int64_t slice_bytes(int l, int site) const {
    constexpr int per = Pack<T>::per;
    return (weights(l, site).in + per - 1) / per * per * kSlice * static_cast<int64_t>(sizeof(T));
  }

  const char* piece_of(int l, int site, int chunk) const {
    const Piece& piece = pieces(l, site)[chunk];
    return reinterpret_cast<const char*>(table(l, site)[3 * read_parts_[piece.part].group]) + piece.first * slice_bytes(l, site);
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
    const float* weight = c_.first < static_cast<int>(w_.layers.size()) ? w_.layers[c_.first].norm1 : nullptr;
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      T* row = hidden_ + t * w_.hidden;
      if (c_.tokens) embed(row, c_.tokens[t]);
      if (c_.first < c_.last) norm_row<T>(normed_ + t * w_.hidden, nullptr, row, weight, w_.hidden, w_.eps);
    }
  }

  void embed(T* row, int64_t token) const {
    if (w_.embed)
      std::memcpy(row, static_cast<const T*>(w_.embed) + token * w_.hidden, w_.hidden * sizeof(T));
    else
      unpack_row<T>(row, w_.head.w, w_.hidden, token);
    if (w_.embed_scale != 1.0f) scale_row<T>(row, row, w_.hidden, w_.embed_scale);
  }

  void project(int l, int site, int chunk, const Share& share) const {
    const Piece& piece = pieces(l, site)[chunk];
    const char* after = chunk + 1 < share.end ? piece_of(l, site, chunk + 1) : start_of(weights(l, site), share.owner, share.all);
    lora_project<T>(lora(l, site), read_parts_[piece.part], piece.first, piece.last, after);
  }

  void linear(int l, int site, int panel, const Share& share, uint64_t stamp) const {
    const Weights& w = weights(l, site);
    const char* next = share.own ? following(l, site, share) : panel_of(w, share.end);
    const LinearCall call{site_output(site), input(site), c_.count, &w, stamp};
    Ahead ahead{panel_of(w, share.end), next};
    if (!c_.adapters) return linear_panel<T>(call, panel, ahead);
    Span spans[kSpans + 1];
    if (share.own && ask_beside(l, site, panel, share, spans)) ahead.beside = spans;
    linear_panel<T>(call, panel, ahead);
    lora_expand<T>(lora(l, site), read_parts_.data(), read_parts_.size(), panel);
  }

  // What a panel asks for of the memory that its thread reads for the first product at the next site. A thread's last panels
  // ask, each for as many bytes, so that these are still near when they are read. Returns false if this panel does not.
  bool ask_beside(int l, int site, int panel, const Share& share, Span* spans) const {
    const Weights& w = weights(l, site);
    const int64_t part = beside_bytes<T>(w, c_.count);
    const int layer = site == kSiteDown ? l + 1 : l, next = (site + 1) % kSites;
    if (part == 0 || layer == c_.last) return false;
    const std::vector<Piece>& all = pieces(layer, next);
    const int number = static_cast<int>(all.size());
    const int first = number * share.owner / share.all, last = number * (share.owner + 1) / share.all;
    if (first == last) return false;
    const int64_t begin = all[first].begin, turns = share.end - share.begin;
    const int64_t bytes = std::min(all[last - 1].end - begin, turns * part);
    const int64_t turn = panel - share.end + (bytes + part - 1) / part;  // of those that ask, below 0 for others
    if (turn < 0) return false;
    int64_t at = begin + turn * part;
    const int64_t end = std::min(at + part, begin + bytes);
    int piece = first, count = 0;
    while (all[piece].end <= at) ++piece;
    for (; at < end && count < kSpans; ++piece) {
      const char* a = piece_of(layer, next, piece) - all[piece].begin;
      const int64_t stop = std::min(end, all[piece].end);
      spans[count++] = {a + at, a + stop};
      at = stop;
    }
    spans[count] = Span::endless(panel_of(w, panel));
    return true;
  }

  static const char* panel_of(const Weights& w, int64_t panel) { return w.panel(panel, sizeof(T)); }

  T* site_output(int site) const { return site == kSiteQkv ? qkv_ : site == kSiteGateUp ? gate_up_ : added_; }

  // The weights that a thread reads after those of a site.
  const char* following(int l, int site, const Share& share) const {
    if (site < kSiteDown) return start_of(weights(l, site + 1), share.owner, share.all);
    const Weights* next = l + 1 < c_.last ? &weights(l + 1, kSiteQkv) : c_.score ? &w_.head : nullptr;
    return next ? start_of(*next, share.owner, share.all) : nullptr;
  }

  // What a linear layer gave is normed, if the architecture wants that, and added to the hidden state, which is normed.
  void norm(int64_t token, const float* out, const float* weight) const {
    T* added = norm_added(token, out);
    norm_row<T>(normed_ + token * w_.hidden, hidden_ + token * w_.hidden, added, weight, w_.hidden, w_.eps);
  }

  T* norm_added(int64_t token, const float* out) const {
    T* added = added_ + token * w_.hidden;
    if (out) norm_row<T>(added, nullptr, added, out, w_.hidden, w_.eps);
    return added;
  }

  void middle(int l, const Part& part) const {
    const LayerWeights& w = w_.layers[l];
    for (int64_t t = part.start; t < part.start + part.rows; ++t) norm(t, w.out1, w.norm2);
  }

  // Rotary positions. A slice has some KV heads and their query heads.
  void turn(int l, int chunk) const {
    const LayerWeights& w = w_.layers[l];
    const Part& part = parts_[chunk / slices_];
    const int slice = chunk % slices_;
    const int first = w_.kv_heads * slice / slices_, last = w_.kv_heads * (slice + 1) / slices_;
    const RopeCall call{qkv_, w.cos, w.sin, w.k_cache, w.v_cache, c_.positions, c_.slots, w_.heads, w_.kv_heads, w_.dim,
                        w.turned};
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      if (w.q_norm) normalise(qkv_ + t * w_.qkv_width(), w, first, last);
      rope_token<T>(call, t, first, last);
    }
  }

  void normalise(T* row, const LayerWeights& w, int first, int last) const {
    const int group = w_.heads / w_.kv_heads;
    const auto heads = [&](int from, int to, const float* weight) {
      for (int h = from; h < to; ++h) {
        T* head = row + int64_t{h} * w_.dim;
        norm_row<T>(head, nullptr, head, weight, w_.dim, w_.eps);
      }
    };
    heads(first * group, last * group, w.q_norm);
    heads(w_.heads + first, w_.heads + last, w.k_norm);
  }

  AttentionCall attention_of(int l) const {
    const LayerWeights& w = w_.layers[l];
    return {mixed_, qkv_, w.k_cache, w.v_cache, c_.cu_q, c_.context, c_.table, c_.rows, c_.table_width, w_.heads, w_.kv_heads,
            w_.dim, w_.qkv_width(), w_.scale, w.window, w_.score_cap};
  }

  // What attention does is the same in all layers with the same window.
  const AttentionItems* items_of(int l) const {
    for (const auto& [window, items] : items_)
      if (window == w_.layers[l].window) return &items;
    return nullptr;
  }

  // -- A mixture of experts (Shazeer et al. 2017). The rows that experts read lie by expert, and those of one by token, so
  // that each expert multiplies its rows at once.

  int experts() const { return static_cast<int>(w_.layers[0].gate_ups.size()); }

  const Weights& expert(int l, int kind, int index) const {
    const LayerWeights& w = w_.layers[l];
    return kind == kGateUp ? w.gate_ups[index] : w.downs[index];
  }

  // The experts of each token. Who comes last lays out the rows of all.
  void route(int l, const Part& part) {
    const Weights& router = w_.layers[l].router;
    T* scores = scores_ + part.start * experts();
    for (int panel = 0; panel < router.panels(); ++panel) {
      const char* end = panel_of(router, router.panels());
      linear_panel<T>({scores, normed_ + part.start * w_.hidden, part.rows, &router}, panel, {end, end});
    }
    for (int64_t t = 0; t < part.rows; ++t) choose_experts(scores + t * experts(), &choices_[(part.start + t) * w_.top]);
    if (unrouted_.fetch_sub(1) > 1) return;
    unrouted_ = static_cast<int>(parts_.size());
    lay_out();
  }

  // The likeliest experts, of equals the first, in the order of experts.
  void choose_experts(const T* scores, Choice* chosen) const {
    static thread_local std::vector<float> shares;
    shares.resize(experts());
    float most = kNone, total = 0.0f, kept = 0.0f;
    for (int e = 0; e < experts(); ++e) most = std::max(most, to_float(scores[e]));
    for (int e = 0; e < experts(); ++e) total += shares[e] = std::exp(to_float(scores[e]) - most);
    for (int k = 0; k < w_.top; ++k) {
      int best = -1;
      for (int e = 0; e < experts(); ++e)
        if (shares[e] != kNone && (best < 0 || shares[e] > shares[best])) best = e;
      chosen[k] = {best, 0, shares[best] / total};
      kept += chosen[k].weight;
      shares[best] = kNone;
    }
    for (int k = 0; k < w_.top; ++k) {
      T rounded;
      put(&rounded, w_.shares ? chosen[k].weight / kept : chosen[k].weight);
      chosen[k].weight = to_float(rounded);
    }
    std::sort(chosen, chosen + w_.top, [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
  }

  void lay_out() {
    std::fill(counts_.begin(), counts_.end(), 0);
    for (const Choice& choice : choices_) ++counts_[choice.expert];
    found_ = 0;
    int64_t first = 0;
    for (int e = 0; e < experts(); ++e) {
      if (!counts_[e]) continue;
      hits_[found_++] = {e, first, counts_[e]};
      first += std::exchange(counts_[e], first);
    }
    for (Choice& choice : choices_) choice.place = static_cast<int>(counts_[choice.expert]++);
  }

  void gather(const Part& part) const {
    for (int64_t t = part.start; t < part.start + part.rows; ++t)
      for (int k = 0; k < w_.top; ++k)
        std::memcpy(sent_ + choices_[t * w_.top + k].place * w_.hidden, normed_ + t * w_.hidden, w_.hidden * sizeof(T));
  }

  // A panel of an expert for its rows.
  void ask_expert(int l, int kind, int chunk) const {
    const int panels = expert(l, kind, 0).panels(), index = chunk / panels;
    if (index >= found_) return;
    const Hit& hit = hits_[index];
    const Weights& w = expert(l, kind, hit.expert);
    const char* end = panel_of(w, panels);
    const char* next = index + 1 < found_ ? panel_of(expert(l, kind, hits_[index + 1].expert), 0) : end;
    const T* x = kind == kGateUp ? sent_ : gated_;
    T* y = kind == kGateUp ? gate_up_ : sent_;
    linear_panel<T>({y + hit.first * w.out, x + hit.first * w.in, hit.count, &w}, chunk % panels, {end, next});
  }

  // The weighted sum of what a token's experts gave.
  void join(int64_t token) const {
    const Choice* chosen = &choices_[token * w_.top];
    T* added = added_ + token * w_.hidden;
    for (int64_t i = 0; i < w_.hidden; ++i) {
      float total = 0.0f;
      for (int k = 0; k < w_.top; ++k)
        total = std::fma(chosen[k].weight, to_float(sent_[chosen[k].place * w_.hidden + i]), total);
      put(added + i, total);
    }
  }

  // A slice has some columns of gate and the same of up.
  void gate(int l, int chunk) const {
    Part part = parts_[chunk / slices_];
    if (w_.top) part.start *= w_.top, part.rows *= w_.top;
    const int64_t slice = chunk % slices_, panels = (w_.inner + kPanel - 1) / kPanel;
    const int64_t first = panels * slice / slices_ * kPanel;
    const int64_t last = std::min(w_.inner, panels * (slice + 1) / slices_ * kPanel);
    for (int64_t t = part.start; t < part.start + part.rows; ++t)
      gate_columns<T>(w_.gate, gated_ + t * w_.inner, gate_up_ + t * 2 * w_.inner, w_.inner, first, last);
  }

  void end(int l, const Part& part) const {
    const float* out = w_.layers[l].out2;
    for (int64_t t = part.start; t < part.start + part.rows; ++t) {
      if (w_.top) join(t);
      if (l + 1 < c_.last)
        norm(t, out, w_.layers[l + 1].norm1);
      else
        add_row<T>(hidden_ + t * w_.hidden, norm_added(t, out), w_.hidden);
    }
  }

  void score(int phase, int chunk, const Share& share) const {
    if (!scoring(phase))
      return norm_row<T>(scored_ + chunk * w_.hidden, nullptr, hidden_ + c_.scored[chunk] * w_.hidden, w_.norm, w_.hidden,
                         w_.eps);
    const char* end = panel_of(w_.head, share.end);
    linear_panel<T>({c_.logits, scored_, c_.score, &w_.head, stamp_ + phase}, chunk, {end, end});
    if (w_.logit_cap == 0.0f) return;
    const int64_t column = int64_t{chunk} * kPanel, columns = std::min<int64_t>(kPanel, w_.head.out - column);
    for (int64_t s = 0; s < c_.score; ++s)
      cap_row<T>(static_cast<T*>(c_.logits) + s * w_.head.out + column, columns, w_.logit_cap);
  }

  const StackWeights& w_;
  const StepCall& c_;
  Spent& spent_;
  Clock::time_point before_;
  T *hidden_ = nullptr, *normed_ = nullptr, *qkv_ = nullptr, *mixed_ = nullptr, *added_ = nullptr, *gate_up_ = nullptr,
    *gated_ = nullptr, *z_ = nullptr, *scored_ = nullptr, *scores_ = nullptr, *sent_ = nullptr;
  std::vector<std::pair<int, AttentionItems>> items_;  // by window
  std::vector<Part> parts_, read_parts_;
  int slices_ = 1;
  uint64_t stamp_ = 0;
  std::vector<Choice> choices_;   // [T, top]
  std::vector<Hit> hits_;         // of which `found_` are there
  std::vector<int64_t> counts_;
  int found_ = 0;
  std::atomic<int> unrouted_{0};  // parts whose tokens have no experts yet
  int64_t width_ = 0;
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
