// Causal attention over a paged KV cache, with the running softmax of Milakov & Gimelshein 2018 over
// tiles of keys. All queries and heads that share a KV head go together, so K and V are unpacked once.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace native {
namespace {

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
template <class T>
class Tile {
 public:
  Tile(const AttentionCall& call, std::vector<float>& scratch)
      : call_(call), group_(call.heads / call.kv_heads), lanes_(call.dim / Pack<T>::per) {
    const int most = std::max(kQueries, group_);
    scratch.resize(most * (kKeys + call.dim + 2 + W) + kBlock * lanes_ + kKeys * call.dim);
    scores_ = scratch.data();
    sums_ = scores_ + most * kKeys;
    weights_ = sums_ + most * call.dim;
    maxima_ = weights_ + most * W;
    keys_ = maxima_ + 2 * most;
    values_ = keys_ + kBlock * lanes_;
    queries_.resize(most);
    limits_.resize(most);
  }

  void run(int row, int kv_head, int first, int count) {
    start(row, kv_head, first, count);
    const int seen = limits_[vectors_ - 1];
    for (int key = 0; key < seen; key += kKeys) {
      const int keys = std::min(kKeys, seen - key);
      for (int at = 0; at < keys; at += kBlock) score_block(key + at, seen);
      soften(key, keys);
      add_values(key, keys);
    }
    finish();
  }

 private:
  void start(int row, int kv_head, int first, int count) {
    row_ = row, kv_head_ = kv_head, first_ = call_.cu_q[row] + first, vectors_ = count * group_;
    const int queries = call_.cu_q[row + 1] - call_.cu_q[row];
    for (int m = 0; m < vectors_; ++m) {
      const int64_t token = first_ + m / group_, head = kv_head * group_ + m % group_;
      queries_[m] = static_cast<const T*>(call_.qkv) + token * call_.width + head * call_.dim;
      limits_[m] = call_.context[row] - queries + first + m / group_ + 1;
      maxima_[m] = kLow;
    }
    std::fill(sums_, sums_ + vectors_ * call_.dim, 0.0f);
    std::fill(weights_, weights_ + vectors_ * W, 0.0f);
  }

  const T* block(const void* cache, int key) const {
    const int64_t index = call_.table[row_ * call_.table_width + key / kBlock];
    return static_cast<const T*>(cache) + (index * call_.kv_heads + kv_head_) * kBlock * call_.dim;
  }

  // Scores of one cache block: keys in the lanes of a vector.
  void score_block(int key, int seen) {
    const auto* k = reinterpret_cast<const float*>(block(call_.k_cache, key));
    prefetch_block(block(call_.v_cache, key));
    if (key + kBlock < seen) prefetch_block(block(call_.k_cache, key + kBlock));
    for (int lane = 0; lane < lanes_; lane += 8)
      for (int i = 0; i < kBlock; i += 8)
        transpose8(k + i * lanes_ + lane, lanes_, keys_ + lane * kBlock + i, kBlock);
    for (int m = 0; m < vectors_; m += kTogether)
      together(vectors_ - m, [&](auto n) { score<decltype(n)::value>(m, key); });
  }

  void prefetch_block(const T* p) const {
    const auto* bytes = reinterpret_cast<const char*>(p);
    for (size_t i = 0; i < kBlock * call_.dim * sizeof(T); i += 64) _mm_prefetch(bytes + i, _MM_HINT_T0);
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
    for (int i = 0; i < keys; ++i) rows[i] = block(call_.v_cache, key + i) + i % kBlock * call_.dim;
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
      const int64_t token = first_ + m / group_, head = kv_head_ * group_ + m % group_;
      T* out = static_cast<T*>(call_.out) + (token * call_.heads + head) * call_.dim;
      const Vec share = set1(1.0f / sum(load(weights_ + m * W)));
      for (int d = 0; d < call_.dim; d += W) store(out + d, mul(load(sums_ + m * call_.dim + d), share));
    }
  }

  const AttentionCall& call_;
  int group_, lanes_, row_ = 0, kv_head_ = 0, vectors_ = 0;
  int64_t first_ = 0;
  float *scores_, *sums_, *weights_, *maxima_, *keys_, *values_;
  std::vector<const T*> queries_;
  std::vector<int> limits_;
};

struct Work {
  int row, first, count;
};

}  // namespace

template <class T>
void attention(const AttentionCall& call, int threads) {
  const int most = std::max(1, kQueries / (call.heads / call.kv_heads));
  std::vector<Work> work;
  for (int row = 0; row < call.rows; ++row)
    for (int first = 0, n = call.cu_q[row + 1] - call.cu_q[row]; first < n; first += most)
      work.push_back({row, first, std::min(most, n - first)});
  const int items = static_cast<int>(work.size()) * call.kv_heads;
  std::atomic<int> next{0};
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<float> scratch;
    Tile<T> tile(call, scratch);
    for (int i = next++; i < items; i = next++) {
      const Work& w = work[i / call.kv_heads];
      tile.run(w.row, i % call.kv_heads, w.first, w.count);
    }
  }
}

template void attention<float>(const AttentionCall&, int);
template void attention<bf16>(const AttentionCall&, int);

}  // namespace native
