// Attention of a few queries over the blocks of one row, with the running softmax of Milakov & Gimelshein
// 2018 over tiles of keys. All heads that share a KV head go together, so K and V are unpacked once.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace native {

constexpr int kBlocks = 4;                 // cache blocks in a tile of keys
constexpr int kKeys = kBlocks * kBlock;
constexpr int kQueries = 32;               // query vectors that share a tile, about
constexpr int kTogether = W == 16 ? 4 : 2;  // query vectors in registers at once
constexpr float kLow = -std::numeric_limits<float>::infinity();

// 8 rows of 8 32-bit lanes, transposed into rows `ld` lanes apart.
inline void transpose8(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * ld_from);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * ld_to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * ld_to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// Calls f with min(n, kTogether) as a constant.
template <class F>
inline void together(int n, F&& f) {
  if (n >= 4 && kTogether >= 4) return f(std::integral_constant<int, kTogether>{});
  if (n == 3 && kTogether >= 4) return f(std::integral_constant<int, 3>{});
  if (n >= 2) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 1>{});
}

// One KV head and some neighbouring queries of one row.
struct Item {
  int row, kv_head;
  int64_t token;  // the first query, in the step
  int count;      // queries
  int seen;       // keys that the last of them sees
};

template <class T>
const T* block_of(const AttentionCall& call, const void* cache, const Item& item, int key) {
  const int64_t index = call.table[item.row * call.table_width + key / kBlock];
  return static_cast<const T*>(cache) + (index * call.kv_heads + item.kv_head) * kBlock * call.dim;
}

// Walks through the blocks of a thread's items one tile ahead of it, and asks for their memory.
template <class T>
class Upcoming {
 public:
  Upcoming(const AttentionCall& call, const Item* first, const Item* last)
      : call_(call), item_(first), last_(last), bytes_(kBlock * call.dim * static_cast<int>(sizeof(T))) {
    for (int i = 0; i < kBlocks; ++i) {
      next();
      ask(bytes_);
    }
  }
  void next() {
    at_ = bytes_;
    if (item_ == last_) return;
    k_ = reinterpret_cast<const char*>(block_of<T>(call_, call_.k_cache, *item_, key_));
    v_ = reinterpret_cast<const char*>(block_of<T>(call_, call_.v_cache, *item_, key_));
    at_ = 0;
    key_ += kBlock;
    if (key_ < item_->seen) return;
    ++item_;
    key_ = 0;
  }
  void ask(int bytes) {
    for (const int end = std::min(bytes_, at_ + bytes); at_ < end; at_ += 64) {
      _mm_prefetch(k_ + at_, _MM_HINT_T1);
      _mm_prefetch(v_ + at_, _MM_HINT_T1);
    }
  }

 private:
  const AttentionCall& call_;
  const Item *item_, *last_;
  int key_ = 0, at_ = 0, bytes_;
  const char *k_ = nullptr, *v_ = nullptr;
};

template <class T>
class Tile {
 public:
  Tile(const AttentionCall& call, std::vector<float>& scratch, Upcoming<T> upcoming)
      : call_(call), upcoming_(upcoming), group_(call.heads / call.kv_heads), lanes_(call.dim / Pack<T>::per) {
    const int most = std::max(kQueries, group_);
    const size_t size = most * (kKeys + call.dim + 2 + W) + kBlock * lanes_ + kKeys * call.dim;
    if (scratch.size() < size) scratch.resize(size);
    scores_ = scratch.data();
    sums_ = scores_ + most * kKeys;
    weights_ = sums_ + most * call.dim;
    maxima_ = weights_ + most * W;
    keys_ = maxima_ + 2 * most;
    values_ = keys_ + kBlock * lanes_;
    queries_.resize(most);
    limits_.resize(most);
  }

  void run(const Item& item) {
    start(item);
    for (int key = 0; key < item.seen; key += kKeys) {
      const int keys = std::min(kKeys, item.seen - key);
      for (int at = 0; at < keys; at += kBlock) score_block(key + at);
      soften(key, keys);
      add_values(key, keys);
    }
    finish();
  }

 private:
  void start(const Item& item) {
    item_ = item;
    vectors_ = item.count * group_;
    for (int m = 0; m < vectors_; ++m) {
      const int64_t token = item.token + m / group_, head = item.kv_head * group_ + m % group_;
      queries_[m] = static_cast<const T*>(call_.qkv) + token * call_.width + head * call_.dim;
      limits_[m] = item.seen - item.count + m / group_ + 1;
      maxima_[m] = kLow;
    }
    std::fill(sums_, sums_ + vectors_ * call_.dim, 0.0f);
    std::fill(weights_, weights_ + vectors_ * W, 0.0f);
  }

  // Scores of one cache block: keys in the lanes of a vector. Asks for a later block meanwhile.
  void score_block(int key) {
    const auto* k = reinterpret_cast<const float*>(block_of<T>(call_, call_.k_cache, item_, key));
    upcoming_.next();
    for (int lane = 0; lane < lanes_; lane += 8)
      for (int i = 0; i < kBlock; i += 8) {
        upcoming_.ask(kBlock * 8 * sizeof(float));  // as much of k and of v as is read here of k
        transpose8(k + i * lanes_ + lane, lanes_, keys_ + lane * kBlock + i, kBlock);
      }
    for (int m = 0; m < vectors_; m += kTogether)
      together(vectors_ - m, [&](auto n) { score<decltype(n)::value>(m, key); });
  }

  template <int N>
  void score(int m, int key) {
    constexpr int per = Pack<T>::per, C = kBlock / W;
    const T* k = reinterpret_cast<const T*>(keys_);
    Vec sums[2][N][C];  // two of each, since one would wait for its own last product
    for (auto& half : sums)
      for (auto& row : half)
        for (auto& v : row) v = zero();
    for (int lane = 0; lane < lanes_; lane += 2)
      for (int half = 0; half < 2; ++half) {
        typename Pack<T>::Reg ks[C];
        for (int c = 0; c < C; ++c) ks[c] = Pack<T>::load(k + ((lane + half) * kBlock + c * W) * per);
        for (int n = 0; n < N; ++n) {
          const auto q = Pack<T>::spread(queries_[m + n] + (lane + half) * per);
          for (int c = 0; c < C; ++c) sums[half][n][c] = Pack<T>::dot(sums[half][n][c], ks[c], q);
        }
      }
    const Vec scale = set1(call_.scale * 1.44269504f), low = set1(kLow);
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) {
        const int visible = limits_[m + n] - key - c * W;
        const Vec scaled = keep_first(mul(add(sums[0][n][c], sums[1][n][c]), scale), visible, low);
        store(scores_ + (m + n) * kKeys + key % kKeys + c * W, scaled);
      }
  }

  // Scores to weights under the new maximum; what was summed under the old one is scaled down.
  void soften(int key, int keys) {
    for (int m = 0; m < vectors_; ++m) {
      float* scores = scores_ + m * kKeys;
      const int width = (keys + kBlock - 1) / kBlock * kBlock;
      if (limits_[m] <= key) {
        std::fill(scores, scores + width, 0.0f);
        continue;
      }
      Vec most = load(scores);
      for (int i = W; i < width; i += W) most = max(most, load(scores + i));
      const float maximum = std::max(maxima_[m], largest(most));
      const Vec shift = set1(maximum), factor = exp2(set1(maxima_[m] - maximum));
      maxima_[m] = maximum;
      Vec total = mul(load(weights_ + m * W), factor);
      for (int i = 0; i < width; i += W) {
        const Vec weight = exp2(sub(load(scores + i), shift));
        total = add(total, weight);
        store(scores + i, weight);
      }
      store(weights_ + m * W, total);
      if (key > 0)
        for (int d = 0; d < call_.dim; d += W)
          store(sums_ + m * call_.dim + d, mul(load(sums_ + m * call_.dim + d), factor));
    }
  }

  // Adds the weighted values. Where they are used often they are widened to float first.
  void add_values(int key, int keys) {
    const T* rows[kKeys];
    for (int i = 0; i < keys; ++i) rows[i] = block_of<T>(call_, call_.v_cache, item_, key + i) + i % kBlock * call_.dim;
    if (std::is_same_v<T, float> || vectors_ <= kTogether) return add_rows(rows, keys);
    const float* wide[kKeys];
    for (int i = 0; i < keys; ++i) {
      wide[i] = values_ + i * call_.dim;
      for (int d = 0; d < call_.dim; d += W) store(values_ + i * call_.dim + d, load(rows[i] + d));
    }
    add_rows(wide, keys);
  }

  template <class V>
  void add_rows(const V* const* rows, int keys) {
    for (int m = 0; m < vectors_; m += kTogether)
      together(vectors_ - m, [&](auto n) {
        int d = 0;
        for (; d + 4 * W <= call_.dim; d += 4 * W) add_columns<decltype(n)::value, 4>(rows, m, keys, d);
        for (; d < call_.dim; d += W) add_columns<decltype(n)::value, 1>(rows, m, keys, d);
      });
  }

  template <int N, int C, class V>
  void add_columns(const V* const* rows, int m, int keys, int d) {
    Vec sums[N][C];
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) sums[n][c] = load(sums_ + (m + n) * call_.dim + d + c * W);
    for (int i = 0; i < keys; ++i) {
      Vec v[C];
      for (int c = 0; c < C; ++c) v[c] = load(rows[i] + d + c * W);
      for (int n = 0; n < N; ++n) {
        const Vec weight = set1(scores_[(m + n) * kKeys + i]);
        for (int c = 0; c < C; ++c) sums[n][c] = fma(weight, v[c], sums[n][c]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) store(sums_ + (m + n) * call_.dim + d + c * W, sums[n][c]);
  }

  void finish() {
    for (int m = 0; m < vectors_; ++m) {
      const int64_t token = item_.token + m / group_, head = item_.kv_head * group_ + m % group_;
      T* out = static_cast<T*>(call_.out) + (token * call_.heads + head) * call_.dim;
      const Vec share = set1(1.0f / sum(load(weights_ + m * W)));
      for (int d = 0; d < call_.dim; d += W) store(out + d, mul(load(sums_ + m * call_.dim + d), share));
    }
  }

  const AttentionCall& call_;
  Upcoming<T> upcoming_;
  Item item_{};
  int group_, lanes_, vectors_ = 0;
  float *scores_, *sums_, *weights_, *maxima_, *keys_, *values_;
  std::vector<const T*> queries_;
  std::vector<int> limits_;
};

}  // namespace native
