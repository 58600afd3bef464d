// Choosing a token: weights of all tokens in one pass, the smallest that may be drawn by a search that narrows down
// the ones in doubt, and a walk along the running sum. Nothing is sorted but the last few.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "kernels.h"

namespace native {
namespace {

constexpr int64_t kGroup = 64;     // neighbours summed in float32; the rest of a sum is in double
constexpr int64_t kStretch = 512;  // neighbours whose mass is kept: a draw looks into one stretch
constexpr int64_t kFew = 64;       // so many are sorted
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t padded(int64_t width) { return (width + kGroup - 1) / kGroup * kGroup; }

// Floats at the start of a cache line, kept by each thread from step to step.
class Floats {
 public:
  float* of(int64_t count) {
    if (count > count_) {
      held_.reset(new float[count + kLine]);
      count_ = count;
    }
    const auto at = reinterpret_cast<uintptr_t>(held_.get());
    return held_.get() + (-at % (kLine * sizeof(float))) / sizeof(float);
  }

 private:
  static constexpr int64_t kLine = 16;
  std::unique_ptr<float[]> held_;
  int64_t count_ = 0;
};

struct Room {
  Floats scores, weights, doubtful[2];
  std::vector<double> mass;
};

Room& room() {
  thread_local Room here;
  return here;
}

// f(values of a group, place), the last group filled up with -inf.
template <class T, class F>
void each_group(const T* x, int64_t begin, int64_t end, F&& f) {
  int64_t i = begin;
  for (; i + kGroup <= end; i += kGroup) f(x + i, i);
  if (i == end) return;
  float last[kGroup];
  std::fill(last, last + kGroup, -kInfinity);
  for (int64_t j = i; j < end; ++j) last[j - i] = to_float(x[j]);
  f(static_cast<const float*>(last), i);
}

// 2^((x - most) * heat) of some tokens, a multiple of kGroup with what it is filled up with; returns their sum.
template <class T>
double weigh(const T* x, int64_t begin, int64_t end, float most, float heat, float* weights) {
  double mass = 0;
  each_group(x, begin, end, [&](const auto* group, int64_t) {
    Vec sums = zero();
    for (int64_t i = 0; i < kGroup; i += W) {
      const Vec weight = exp2(mul(sub(load(group + i), set1(most)), set1(heat)));
      store(weights + i, weight);
      sums = add(sums, weight);
    }
    weights += kGroup;
    mass += wide_sum(sums);
  });
  return mass;
}

// A temperature as what differences of logits are multiplied with before 2^x. Differences are 0 or less.
float heat_of(double temperature) {
  return static_cast<float>(std::min(1.4426950408889634 / temperature, 3e38));
}

// The mass of `least` and more among weights [count, a multiple of kGroup].
double mass_from(const float* weights, int64_t count, float least) {
  double mass = 0;
  for (int64_t i = 0; i < count; i += kGroup) {
    Vec sums = zero();
    for (int64_t j = i; j < i + kGroup; j += W) sums = add(sums, keep_from(load(weights + j), set1(least)));
    mass += wide_sum(sums);
  }
  return mass;
}

// Weights in doubt: not yet known to be kept or not. Past the last there is room for a vector.
struct Doubt {
  const float* values;
  int64_t count;
  float low, high;  // none is smaller or larger
};

// Those of [low, high) to `to`.
Doubt collect(const Doubt& from, float low, float high, float* to) {
  float* end = to;
  Vec least = set1(kInfinity), most = zero();
  const Vec bottom = set1(low), top = set1(high);
  int64_t i = 0;
  for (; i + W <= from.count; i += W) {
    const Vec v = load(from.values + i);
    const uint32_t inside = mask_from(v, bottom) & ~mask_from(v, top);
    if (!inside) continue;
    end = compress(end, v, inside);
  }
  for (; i < from.count; ++i)
    if (from.values[i] >= low && from.values[i] < high) *end++ = from.values[i];
  Doubt found{to, end - to, kInfinity, 0};
  for (i = 0; i + W <= found.count; i += W) {
    least = min(load(to + i), least);
    most = max(load(to + i), most);
  }
  found.low = 0.0f - largest(sub(zero(), least));  // never -0, whose bits are of another order
  found.high = largest(most);
  for (; i < found.count; ++i) {
    found.low = std::min(found.low, to[i]);
    found.high = std::max(found.high, to[i]);
  }
  return found;
}

double sum_of(const Doubt& some) {
  double total = 0;
  int64_t i = 0;
  for (; i + kGroup <= some.count; i += kGroup) {
    Vec sums = zero();
    for (int64_t j = i; j < i + kGroup; j += W) sums = add(sums, load(some.values + j));
    total += wide_sum(sums);
  }
  for (; i < some.count; ++i) total += some.values[i];
  return total;
}

// Halfway between low and high by order of magnitude: larger than low and at most high.
float between(float low, float high) {
  uint32_t a, b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, &high, sizeof b);
  a += (b - a + 1) / 2;
  std::memcpy(&low, &a, sizeof low);
  return low;
}

// The largest of the weights with which it and all larger ones amount to `wanted`, by number or by mass; the
// smallest of all if they do not.
class Search {
 public:
  Search(double wanted, bool by_number) : wanted_(wanted), by_number_(by_number) {}

  float operator()(const Doubt& all) {
    Doubt some = window(all);
    for (int next = 1; some.count > kFew && some.low < some.high; next = 1 - next) {
      const float middle = between(some.low, some.high);
      float* to = room().doubtful[next].of(some.count + W);
      const Doubt upper = collect(some, middle, kInfinity, to);
      some = enough(upper) ? upper : collect(some, some.low, middle, to);
    }
    return some.low == some.high ? some.low : last_of(some);
  }

 private:
  // Those in doubt once whole orders of magnitude are not: what is kept mostly lies near the top.
  Doubt window(const Doubt& all) {
    float* to = room().doubtful[0].of(all.count + W);
    float high = kInfinity, low = all.high;
    for (float step = 0x1p-8f;; step *= step) {
      low = std::max(all.low, low * step);
      const Doubt found = collect(all, low, high, to);
      if (low <= all.low || step == 0 || enough(found)) return found.count ? found : Doubt{to, 0, high, high};
      high = low;
    }
  }

  // Whether the last one kept is among them; if not, they all are.
  bool enough(const Doubt& some) {
    const double amount = by_number_ ? static_cast<double>(some.count) : sum_of(some);
    if (above_ + amount >= wanted_) return true;
    above_ += amount;
    return false;
  }

  float last_of(const Doubt& some) {
    float few[kFew];
    std::copy(some.values, some.values + some.count, few);
    std::sort(few, few + some.count, std::greater<float>());
    for (int64_t i = 0; i < some.count; ++i) {
      above_ += by_number_ ? 1.0 : few[i];
      if (above_ >= wanted_) return few[i];
    }
    return few[some.count - 1];
  }

  double wanted_, above_ = 0;  // above: what those too large to be in doubt amount to
  bool by_number_;
};

// The mass of the `number` largest weights, of which all.low is the last: its equals are kept, but not all count.
double mass_of(const Doubt& all, int64_t number) {
  int64_t kept = 0;
  for (int64_t i = 0; i < all.count; i += W) kept += __builtin_popcount(mask_from(load(all.values + i), set1(all.low)));
  return mass_from(all.values, all.count, all.low) - static_cast<double>(kept - number) * all.low;
}

// The smallest weight that may be drawn, of weights [width, filled up to a group] whose largest is 1 and whose sum is `mass`.
float smallest_kept(const float* weights, int64_t width, double mass, const Choice& choice) {
  Doubt all{weights, padded(width), 0.0f, 1.0f};
  const bool limited = choice.top_k > 0 && choice.top_k < width;
  if (limited) all.low = Search(static_cast<double>(choice.top_k), true)(all);
  if (choice.top_p < 1) {
    if (limited) mass = mass_of(all, choice.top_k);
    const double wanted = choice.top_p * mass;
    // Those below have no more mass together than may be missing.
    const auto negligible = static_cast<float>(0.999 * (mass - wanted) / static_cast<double>(width));
    all.low = std::max(all.low, negligible);
    all.low = Search(wanted, false)(all);
  }
  return std::max(all.low, static_cast<float>(choice.min_p));
}

// Where the running sum over weights of `least` and more exceeds `target`; `before` is the sum up to `begin`. The
// last such weight if rounding says nowhere.
int64_t walk(const float* weights, int64_t begin, int64_t end, float least, double before, double target) {
  int64_t last = -1;
  for (int64_t i = begin; i < end; ++i) {
    const float weight = weights[i - begin];
    if (weight < least || !(weight > 0)) continue;
    before += weight;
    last = i;
    if (before > target) break;
  }
  return last;
}

// The largest that are no larger than `ceiling`, in order, and of equals the first.
template <class T>
std::vector<std::pair<int64_t, float>> best(const T* x, int64_t width, int64_t count, float ceiling = kInfinity) {
  std::vector<std::pair<int64_t, float>> top;
  const auto full = [&] { return static_cast<int64_t>(top.size()) == count; };
  const auto offer = [&](int64_t token, float value) {
    if (value > ceiling || (full() && !(value > top.back().second))) return;
    if (full()) top.pop_back();
    auto place = top.end();
    while (place != top.begin() && (place - 1)->second < value) --place;
    top.insert(place, {token, value});
  };
  int64_t i = 0;
  for (; i < std::min(width, count); ++i) offer(i, to_float(x[i]));
  for (; i + W <= width; i += W) {
    const Vec v = load(x + i);
    uint32_t larger = mask_above(v, set1(full() ? top.back().second : -kInfinity)) & ~mask_above(v, set1(ceiling));
    for (; larger; larger &= larger - 1) {
      const int64_t token = i + __builtin_ctz(larger);
      offer(token, to_float(x[token]));
    }
  }
  for (; i < width; ++i) offer(i, to_float(x[i]));
  return top;
}

int64_t count_above(const float* weights, int64_t width, float limit) {
  int64_t count = 0;
  for (int64_t i = 0; i < padded(width); i += W) count += __builtin_popcount(mask_above(load(weights + i), set1(limit)));
  return count;
}

// Whether the token drawn from all weights is kept by the choice of those that a grammar allows, whichever those are
// beside it; else what has to be known for that (`ChosenToken` in router/engine/ops.py).
void look_near(Chosen& chosen, const float* weights, int64_t width, double mass, const Choice& choice) {
  const float own = weights[chosen.token];
  int64_t count = choice.near;
  chosen.lacks = kInfinity;
  if (choice.top_k > 0) count = std::min(count, choice.top_k - 1 - count_above(weights, width, own));
  if (count < 0 || own < static_cast<float>(choice.min_p)) return;
  if (choice.top_p >= 1) {
    chosen.lacks = -1;
    return;
  }
  // Kept if above < top_p * (above + own + others), where `above` is no less than what is allowed of it.
  const double above = mass_from(weights, padded(width), std::nextafter(own, kInfinity));
  const double lacks = (above * (1 / choice.top_p - 1) - own) / mass;
  if (lacks >= 0) {
    auto others = best(weights, width, count + 1, own);
    const auto self = std::find_if(others.begin(), others.end(), [&](auto& one) { return one.first == chosen.token; });
    others.erase(self == others.end() ? self - 1 : self);
    double most = 0;
    for (auto& [token, share] : others) most += share = static_cast<float>(share / mass);
    if (most <= lacks) return;
    chosen.near = std::move(others);
  }
  chosen.lacks = lacks;
}

template <class T>
void draw(Chosen& chosen, const T* x, int64_t width, float most, const Choice& choice) {
  const bool proposes = choice.proposed >= 0 && to_float(x[choice.proposed]) > -kInfinity;
  const bool cut = !choice.near && (choice.top_k > 0 || choice.top_p < 1 || choice.min_p > 0), whole = cut || choice.near;
  const float heat = heat_of(choice.temperature);
  float* weights = room().weights.of(whole ? padded(width) : kStretch);
  auto& masses = room().mass;
  masses.clear();
  double mass = 0;
  for (int64_t begin = 0; begin < width; begin += kStretch) {
    const int64_t end = std::min(width, begin + kStretch);
    masses.push_back(weigh(x, begin, end, most, heat, whole ? weights + begin : weights));
    mass += masses.back();
  }
  float least = 0;
  if (cut) {
    least = smallest_kept(weights, width, mass, choice);
    mass = 0;
    for (size_t i = 0; i < masses.size(); ++i) {
      const int64_t begin = static_cast<int64_t>(i) * kStretch;
      mass += masses[i] = mass_from(weights + begin, padded(std::min(width - begin, kStretch)), least);
    }
  }
  if (proposes && (!cut || weights[choice.proposed] >= least)) {
    chosen.token = choice.proposed;
    return;
  }
  const double target = choice.uniform * mass;
  double before = 0;
  size_t stretch = 0, last = 0;
  for (; stretch < masses.size(); ++stretch) {
    if (masses[stretch] > 0) last = stretch;
    if (before + masses[stretch] > target) break;
    before += masses[stretch];
  }
  if (stretch == masses.size()) stretch = last;
  const int64_t begin = static_cast<int64_t>(stretch) * kStretch, end = std::min(width, begin + kStretch);
  if (!whole) weigh(x, begin, end, most, heat, weights);
  chosen.token = walk(whole ? weights + begin : weights, begin, end, least, before, target);
  if (choice.near && chosen.token >= 0) look_near(chosen, weights, width, mass, choice);
}

// -inf where there is no bit.
void leave_out(float* scores, int64_t width, const int32_t* allowed) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(allowed);
  int64_t i = 0;
  for (; i + W <= width; i += W) {
    uint32_t mask = bytes[i / 8];
    if (W == 16) mask |= static_cast<uint32_t>(bytes[i / 8 + 1]) << 8;
    store(scores + i, keep_lanes(load(scores + i), mask, set1(-kInfinity)));
  }
  for (; i < width; ++i)
    if (!(bytes[i / 8] >> i % 8 & 1)) scores[i] = -kInfinity;
}

// A float32 copy of the row with its penalties, without what may not be chosen.
template <class T>
const float* adjusted(const T* logits, int64_t width, const Choice& choice) {
  float* scores = room().scores.of(padded(width));
  each_group(logits, 0, width, [&](const auto* group, int64_t at) {
    for (int64_t i = 0; i < kGroup; i += W) store(scores + at + i, load(group + i));
  });
  if (choice.allowed) leave_out(scores, width, choice.allowed);
  for (int64_t i = 0; i < choice.seen_count; ++i) {
    float& score = scores[choice.seen[i]];
    score = score > 0 ? score / choice.repetition : score * choice.repetition;
    // A product in double is exact: each step is rounded once, as the twin does it.
    score -= static_cast<float>(static_cast<double>(choice.counts[i]) * choice.frequency);
    if (choice.counts[i] > 0) score -= choice.presence;
  }
  for (const int64_t token : choice.forbidden) scores[token] = -kInfinity;
  return scores;
}

// Natural, of the raw distribution.
template <class T>
void add_logprobs(Chosen& chosen, const T* logits, int64_t width, float most, int64_t count) {
  float* weights = room().weights.of(kStretch);
  double mass = 0;
  for (int64_t begin = 0; begin < width; begin += kStretch)
    mass += weigh(logits, begin, std::min(width, begin + kStretch), most, heat_of(1.0), weights);
  const double whole = most + std::log(mass);
  chosen.logprob = static_cast<float>(to_float(logits[chosen.token]) - whole);
  chosen.top = best(logits, width, std::min(count, width));
  for (auto& [token, value] : chosen.top) value = static_cast<float>(value - whole);
}

template <class T>
void take(Chosen& chosen, const T* x, int64_t width, const Choice& choice, int64_t likeliest) {
  if (likeliest < 0 || choice.temperature == 0)
    chosen.token = likeliest;
  else
    draw(chosen, x, width, to_float(x[likeliest]), choice);
}

}  // namespace

template <class T>
Chosen choose(const T* logits, int64_t width, const Choice& choice) {
  Chosen chosen;
  const int64_t likeliest = largest_of(logits, width);
  if (likeliest < 0) return chosen;
  // The likeliest of all tokens, if it may be chosen, is the likeliest of those that may.
  if (choice.temperature == 0 && !choice.seen_count && choice.permits(likeliest)) {
    chosen.token = likeliest;
  } else if (choice.adjusts()) {
    const float* scores = adjusted(logits, width, choice);
    take(chosen, scores, width, choice, largest_of(scores, width));
  } else {
    take(chosen, logits, width, choice, likeliest);
  }
  if (choice.logprobs && chosen.token >= 0)
    add_logprobs(chosen, logits, width, to_float(logits[likeliest]), choice.logprobs);
  return chosen;
}

template Chosen choose(const float*, int64_t, const Choice&);
template Chosen choose(const bf16*, int64_t, const Choice&);

}  // namespace native
