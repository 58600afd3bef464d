// Choosing a token: weights of all tokens in one pass, the smallest that may be drawn by a search that narrows down
// the ones in doubt, and a walk along the running sum. Nothing is sorted but the last few.
#include "sample.h"

#include <algorithm>
#include <cmath>
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
  found.low = -largest(sub(zero(), least));
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

// Between low and high, larger than low and at most high: halfway by order of magnitude, at first near the top,
// where what is kept lies.
float between(float low, float high) {
  if (low < high * 0x1p-16f) return high * 0x1p-8f;
  uint32_t a, b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, &high, sizeof b);
  a += (b - a + 1) / 2;
  std::memcpy(&low, &a, sizeof low);
  return low;
}

// The largest of the weights with which it and all larger ones amount to `wanted`, by number or by mass; the
// smallest of all if they do not.
float last_wanted(Doubt all, double wanted, bool by_number) {
  double above = 0;  // what those too large to be in doubt amount to
  float low = all.low, high = all.high;
  for (int next = 0; all.count > kFew && low < high;) {
    const float middle = between(low, high);
    float* to = room().doubtful[next].of(all.count + W);
    Doubt upper = collect(all, middle, kInfinity, to);
    const double amount = by_number ? static_cast<double>(upper.count) : sum_of(upper);
    if (above + amount < wanted && upper.count < all.count) {
      const float smallest = upper.low;
      above += amount;
      upper = collect(all, low, middle, to);
      if (!upper.count) return smallest;
    }
    all = upper;
    low = all.low;
    high = all.high;
    next = 1 - next;
  }
  if (low == high) return low;
  float few[kFew];
  std::copy(all.values, all.values + all.count, few);
  std::sort(few, few + all.count, std::greater<float>());
  for (int64_t i = 0; i < all.count; ++i) {
    above += by_number ? 1.0 : few[i];
    if (above >= wanted) return few[i];
  }
  return few[all.count - 1];
}

// The smallest weight that may be drawn, of weights [count] whose largest is 1 and whose sum is `mass`.
float smallest_kept(const float* weights, int64_t width, double mass, const Choice& choice) {
  const int64_t count = padded(width);
  Doubt all{weights, count, 0.0f, 1.0f};
  if (choice.top_k > 0 && choice.top_k < width) {
    all.low = last_wanted(all, static_cast<double>(choice.top_k), true);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += W) kept += __builtin_popcount(mask_from(load(weights + i), set1(all.low)));
    // Equals of the last are kept, but top_k of them count.
    mass = mass_from(weights, count, all.low) - static_cast<double>(kept - choice.top_k) * all.low;
  }
  if (choice.top_p < 1) {
    const double wanted = choice.top_p * mass;
    // Those below have no more mass together than may be missing.
    const auto negligible = static_cast<float>(0.999 * (mass - wanted) / static_cast<double>(width));
    all.low = last_wanted({weights, count, std::max(all.low, negligible), 1.0f}, wanted, false);
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

template <class T>
int64_t draw(const T* x, int64_t width, float most, const Choice& choice) {
  const bool cut = choice.top_k > 0 || choice.top_p < 1 || choice.min_p > 0;
  const float heat = heat_of(choice.temperature);
  float* weights = room().weights.of(cut ? padded(width) : kStretch);
  auto& masses = room().mass;
  masses.clear();
  double mass = 0;
  for (int64_t begin = 0; begin < width; begin += kStretch) {
    const int64_t end = std::min(width, begin + kStretch);
    masses.push_back(weigh(x, begin, end, most, heat, cut ? weights + begin : weights));
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
  if (cut)
    weights += begin;
  else
    weigh(x, begin, end, most, heat, weights);
  return walk(weights, begin, end, least, before, target);
}

// A float32 copy of the row with its penalties, without what may not be chosen.
template <class T>
const float* adjusted(const T* logits, int64_t width, const Choice& choice) {
  float* scores = room().scores.of(padded(width));
  each_group(logits, 0, width, [&](const auto* group, int64_t at) {
    for (int64_t i = 0; i < kGroup; i += W) store(scores + at + i, load(group + i));
  });
  if (choice.allowed)
    for (int64_t i = 0; i < width; ++i)
      if (!(choice.allowed[i / 32] >> i % 32 & 1)) scores[i] = -kInfinity;
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

// The largest, in order, and of equals the first.
template <class T>
std::vector<std::pair<int64_t, float>> best(const T* x, int64_t width, int64_t count) {
  std::vector<std::pair<int64_t, float>> top;
  const auto offer = [&](int64_t token, float value) {
    if (static_cast<int64_t>(top.size()) == count) {
      if (!(value > top.back().second)) return;
      top.pop_back();
    }
    auto place = top.end();
    while (place != top.begin() && (place - 1)->second < value) --place;
    top.insert(place, {token, value});
  };
  int64_t i = 0;
  for (; i < std::min(width, count); ++i) offer(i, to_float(x[i]));
  for (; i + W <= width; i += W) {
    uint32_t larger = mask_above(load(x + i), set1(top.back().second));
    for (; larger; larger &= larger - 1) {
      const int64_t token = i + __builtin_ctz(larger);
      offer(token, to_float(x[token]));
    }
  }
  for (; i < width; ++i) offer(i, to_float(x[i]));
  return top;
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
int64_t token_of(const T* x, int64_t width, const Choice& choice, int64_t likeliest) {
  if (likeliest < 0 || choice.temperature == 0) return likeliest;
  return draw(x, width, to_float(x[likeliest]), choice);
}

}  // namespace

template <class T>
Chosen choose(const T* logits, int64_t width, const Choice& choice) {
  Chosen chosen;
  const int64_t likeliest = largest_of(logits, width);
  if (likeliest < 0) return chosen;
  if (choice.adjusts()) {
    const float* scores = adjusted(logits, width, choice);
    chosen.token = token_of(scores, width, choice, largest_of(scores, width));
  } else {
    chosen.token = token_of(logits, width, choice, likeliest);
  }
  if (choice.logprobs && chosen.token >= 0)
    add_logprobs(chosen, logits, width, to_float(logits[likeliest]), choice.logprobs);
  return chosen;
}

template Chosen choose(const float*, int64_t, const Choice&);
template Chosen choose(const bf16*, int64_t, const Choice&);

}  // namespace native
