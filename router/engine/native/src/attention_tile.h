// Attention of a few queries over the blocks of one row, with the running softmax of Milakov & Gimelshein
// 2018 over tiles of keys. All heads that share a KV head go together.
//
// Both products read the cache as it lies there: a block's keys have each number, or pair of them, of all 16
// keys side by side, and its values each number of a pair of keys (one key in float32).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "attention_amx.h"
#include "kernels.h"

namespace native {

constexpr int kBlocks = 8;                   // cache blocks in a tile of keys
constexpr int kKeys = kBlocks * kBlock;
constexpr int kQueries = 48;                 // query vectors that share a tile, about
constexpr int kTogether = W == 16 ? 8 : 4;   // query vectors in registers at once
constexpr int kChunks = 12;                  // of a thread's share of the items, so that shares come out even
constexpr float kLow = -std::numeric_limits<float>::infinity();

template <class T>
const T* block_of(const AttentionCall& call, const void* cache, const Item& item, int key) {
  const int64_t index = call.table[item.row * call.table_width + key / kBlock];
  return static_cast<const T*>(cache) + (index * call.kv_heads + item.kv_head) * kBlock * call.dim;
}

// The first key that a query sees which sees the keys before `limit`.
inline int first_key(const AttentionCall& call, int limit) {
  return call.window ? std::max(0, limit - call.window) : 0;
}

// Walks through the blocks of the items some way ahead of their use, and asks for their memory. The first were
// asked for by who did the items before.
template <class T>
class Upcoming {
 public:
  static constexpr int kAheadBlocks = 16;

  Upcoming(const AttentionCall& call, const Item* first, const Item* last)
      : call_(call), item_(first), last_(last), key_(first == last ? 0 : first->from),
        bytes_(kBlock * call.dim * static_cast<int>(sizeof(T))) {
    for (int i = 0; i < kAheadBlocks; ++i) next();
  }

  // Asks for one more block of keys and of values.
  void ask() {
    if (item_ == last_) return;
    const auto* k = reinterpret_cast<const char*>(block_of<T>(call_, call_.k_cache, *item_, key_));
    const auto* v = reinterpret_cast<const char*>(block_of<T>(call_, call_.v_cache, *item_, key_));
    for (int at = 0; at < bytes_; at += 64) {
      _mm_prefetch(k + at, _MM_HINT_T1);
      _mm_prefetch(v + at, _MM_HINT_T1);
    }
    next();
  }

 private:
  void next() {
    if (item_ == last_) return;
    key_ += kBlock;
    if (key_ < item_->seen) return;
    if (++item_ != last_) key_ = item_->from;
  }

  const AttentionCall& call_;
  const Item *item_, *last_;
  int key_, bytes_;
};

// sums[n][c] += the products of N rows of x, `ldx` apart, with C vectors of w, over `steps` lanes.
template <class T, int N, int C>
inline void multiply_add(Vec (&sums)[N][C], const T* x, int64_t ldx, const T* const (&w)[C], int64_t ldw, int steps) {
  constexpr int per = Pack<T>::per;
  for (int i = 0; i < steps; ++i) {
    typename Pack<T>::Reg ws[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) ws[c] = Pack<T>::load(w[c] + i * ldw);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const auto xs = Pack<T>::spread(x + n * ldx + i * per);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[n][c] = Pack<T>::dot(sums[n][c], ws[c], xs);
    }
  }
}

// Calls f with min(n, N) as a constant.
template <int N, class F>
inline void together(int n, F&& f) {
  if constexpr (N > 1) {
    if (n < N) return together<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>{});
}

// Scores of N queries with 2 W keys. Not inlined: only so do compilers keep the sums in registers.
template <class T, int N>
__attribute__((noinline)) void score_keys(float* scores, const T* queries, int dim, const T* const (&k)[2], float scale,
                                          const int* limits, int key) {
  Vec sums[N][2];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = zero();
  multiply_add<T, N, 2>(sums, queries, dim, k, kBlock * Pack<T>::per, dim / Pack<T>::per);
  const Vec factor = set1(scale), low = set1(kLow);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c)
      store(scores + n * kKeys + c * W, keep_first(mul(sums[n][c], factor), limits[n] - key - c * W, low));
}

// sums [N, C * W] += shares of `count` keys, times columns d .. of their values.
template <class T, int N, int C>
__attribute__((noinline)) void add_columns(float* to, int dim, const T* shares, const T* const* blocks, int count, int d) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][C];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) sums[n][c] = load(to + n * dim + c * W);
  for (int at = 0; at < count; at += kBlock, ++blocks) {
    const T* v[C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) v[c] = *blocks + (d + c * W) * per;
    multiply_add<T, N, C>(sums, shares + at, kKeys, v, dim * per, std::min(kBlock, count - at) / per);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) store(to + n * dim + c * W, sums[n][c]);
}

template <class T>
class Tile {
 public:
  Tile(const AttentionCall& call, std::vector<char>& scratch, Upcoming<T> upcoming)
      : call_(call), upcoming_(upcoming), group_(call.heads / call.kv_heads) {
    const int64_t most = std::max(kQueries, group_);
    char* at = nullptr;
    const auto take = [&](auto*& p, int64_t count) {
      p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(at);
      at += (count * static_cast<int64_t>(sizeof(*p)) + 63) / 64 * 64;
    };
    const auto lay = [&] {
      take(scores_, most * kKeys);
      take(sums_, most * call.dim);
      take(weights_, most * W);
      take(maxima_, most);
      take(shares_, most * kKeys);
      take(queries_, most * call.dim);
      take(tail_, kBlock * call.dim);
    };
    lay();
    const size_t size = at - static_cast<char*>(nullptr) + 64;
    if (scratch.size() < size) scratch.resize(size);
    at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    lay();
    firsts_.resize(most);
    limits_.resize(most);
#if defined(NATIVE_TILES)
    by_tiles_ = std::is_same_v<T, bf16> && tiles_fit(call.dim);
#endif
  }

  void run(const Item& item) {
    start(item);
    for (int key = item.from; key < item.seen; key += kKeys) {
      const int keys = std::min(kKeys, item.seen - key);
      for (int i = 0; i < keys; i += kBlock) upcoming_.ask();
#if defined(NATIVE_TILES)
      if constexpr (std::is_same_v<T, bf16>)
        if (by_tiles_) {
          score_by_tiles(key, keys);
          amend(key, keys);
          soften(key, keys);
          add_by_tiles(key, keys);
          continue;
        }
#endif
      score(key, keys);
      amend(key, keys);
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
      std::memcpy(queries_ + m * call_.dim, static_cast<const T*>(call_.qkv) + token * call_.width + head * call_.dim,
                  call_.dim * sizeof(T));
      limits_[m] = item.seen - item.count + m / group_ + 1;
      firsts_[m] = first_key(call_, limits_[m]);
      maxima_[m] = kLow;
    }
    std::fill(sums_, sums_ + vectors_ * call_.dim, 0.0f);
    std::fill(weights_, weights_ + vectors_ * W, 0.0f);
  }

#if defined(NATIVE_TILES)

  // Scores without scale, and of keys that are not there, too: `soften` sees to both. A block that is not there is
  // the last one again.
  void score_by_tiles(int key, int keys) {
    for (int at = 0; at < keys; at += 4 * kBlock) {
      const bf16* blocks[4];
      for (int i = 0; i < 4; ++i) blocks[i] = block_of<T>(call_, call_.k_cache, item_, key + std::min(at + i * kBlock, keys - 1));
      for (int m = 0; m < vectors_; m += kTileRows) {
        shape_attention(std::min(kTileRows, vectors_ - m));
        score_blocks(scores_ + m * kKeys + at, kKeys, queries_ + m * call_.dim, call_.dim, blocks);
      }
    }
    const Vec factor = set1(call_.scale * 1.44269504f), low = set1(kLow);
    const int width = (keys + 2 * W - 1) / (2 * W) * (2 * W);
    for (int m = 0; m < vectors_; ++m)
      for (int i = 0; i < width; i += W) {
        float* at = scores_ + m * kKeys + i;
        store(at, keep_first(mul(load(at), factor), limits_[m] - key - i, low));
      }
  }

  // A last block that is not whole is given zeros: what lies there may be NaN.
  void add_by_tiles(int key, int keys) {
    const int blocks = (keys + kBlock - 1) / kBlock, rest = keys % kBlock;
    for (int i = 0; i < blocks; ++i) values_[i] = block_of<T>(call_, call_.v_cache, item_, key + i * kBlock);
    if (rest) {
      std::fill(tail_, tail_ + kBlock * call_.dim, bf16{0});
      std::memcpy(tail_, values_[blocks - 1], rest / 2 * 2 * call_.dim * sizeof(bf16));
      if (rest % 2)
        for (int d = 0; d < call_.dim; ++d) {
          const int64_t at = (rest - 1) * call_.dim + 2 * d;
          tail_[at] = values_[blocks - 1][at];
        }
      values_[blocks - 1] = tail_;
    }
    for (int d = 0; d < call_.dim; d += 32) {
      for (int i = 0; i < blocks; ++i) columns_[i] = values_[i] + 2 * d;
      for (int m = 0; m < vectors_; m += kTileRows) {
        shape_attention(std::min(kTileRows, vectors_ - m));
        add_blocks(sums_ + m * call_.dim + d, call_.dim, shares_ + m * kKeys, kKeys, columns_, blocks);
      }
    }
  }

#endif

  // Scores of a tile, two vectors of keys at a time: two blocks, or the halves of one.
  void score(int key, int keys) {
    constexpr int step = 2 * W;
    const float scale = call_.scale * 1.44269504f;
    for (int at = 0; at < keys; at += step) {
      const T* k[2];
      const T* block = block_of<T>(call_, call_.k_cache, item_, key + at);
      k[0] = block;
      if (W == kBlock)
        k[1] = at + W < keys ? block_of<T>(call_, call_.k_cache, item_, key + at + W) : block;
      else
        k[1] = block + W * Pack<T>::per;
      for (int m = 0; m < vectors_; m += kTogether)
        together<kTogether>(vectors_ - m, [&](auto n) {
          score_keys<T, decltype(n)::value>(scores_ + m * kKeys + at, queries_ + m * call_.dim, call_.dim, k, scale,
                                            limits_.data() + m, key + at);
        });
    }
  }

  // Caps scores, and takes out those of keys before the window.
  void amend(int key, int keys) {
    if (!call_.window && call_.cap == 0.0f) return;
    constexpr float kLog2E = 1.44269504f;  // scores are for powers of two
    const Vec narrow = set1(2.0f / call_.cap), cap = set1(call_.cap * kLog2E), one = set1(1.0f), low = set1(kLow);
    const int width = (keys + 2 * W - 1) / (2 * W) * (2 * W);
    for (int m = 0; m < vectors_; ++m)
      for (int i = 0; i < width; i += W) {
        float* at = scores_ + m * kKeys + i;
        Vec score = load(at);
        if (call_.cap != 0.0f)  // tanh(x) = 1 - 2 / (1 + e^2x)
          score = mul(cap, sub(one, div(set1(2.0f), add(one, exp2(mul(score, narrow))))));
        score = keep_first(score, limits_[m] - key - i, low);
        store(at, keep_first(low, firsts_[m] - key - i, score));
      }
  }

  // Scores to weights under the new maximum; what was summed under the old one is scaled down.
  void soften(int key, int keys) {
    const int width = (keys + 2 * W - 1) / (2 * W) * (2 * W);
    for (int m = 0; m < vectors_; ++m) {
      const float* scores = scores_ + m * kKeys;
      T* shares = shares_ + m * kKeys;
      if (limits_[m] <= key || firsts_[m] >= key + kKeys) {
        for (int i = 0; i < width; i += W) store(shares + i, zero());
        continue;
      }
      Vec most = load(scores);
      for (int i = W; i < width; i += W) most = max(most, load(scores + i));
      const float maximum = std::max(maxima_[m], largest(most));
      const Vec shift = set1(maximum), factor = exp2(set1(maxima_[m] - maximum));
      Vec total = mul(load(weights_ + m * W), factor);
      for (int i = 0; i < width; i += W) {
        const Vec weight = exp2(sub(load(scores + i), shift));
        total = add(total, weight);
        store(shares + i, weight);
      }
      store(weights_ + m * W, total);
      if (key > 0 && maximum != maxima_[m])
        for (int d = 0; d < call_.dim; d += W)
          store(sums_ + m * call_.dim + d, mul(load(sums_ + m * call_.dim + d), factor));
      maxima_[m] = maximum;
    }
  }

  // Adds the weighted values. A last key without its pair is given one of zeros: what lies there may be NaN.
  void add_values(int key, int keys) {
    constexpr int per = Pack<T>::per;
    const int blocks = (keys + kBlock - 1) / kBlock;
    for (int i = 0; i < blocks; ++i) values_[i] = block_of<T>(call_, call_.v_cache, item_, key + i * kBlock);
    const int whole = keys / per * per;
    add_keys(values_, 0, whole);
    if (whole == keys) return;
    const T* last = values_[blocks - 1] + whole % kBlock * call_.dim;
    for (int d = 0; d < call_.dim; ++d) {
      tail_[d * per] = last[d * per];
      put(tail_ + d * per + per - 1, 0.0f);
    }
    const T* tail = tail_;
    add_keys(&tail, whole, per);
  }

  // `count` keys of the tile from `at` on, whose blocks are given.
  void add_keys(const T* const* blocks, int at, int count) {
    for (int m = 0; count && m < vectors_; m += kTogether)
      together<kTogether>(vectors_ - m, [&](auto n) {
        constexpr int N = decltype(n)::value;
        const T* shares = shares_ + m * kKeys + at;
        float* sums = sums_ + m * call_.dim;
        int d = 0;
        for (; d + 2 * W <= call_.dim; d += 2 * W) add_columns<T, N, 2>(sums + d, call_.dim, shares, blocks, count, d);
        for (; d < call_.dim; d += W) add_columns<T, N, 1>(sums + d, call_.dim, shares, blocks, count, d);
      });
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
  int group_, vectors_ = 0;
  float *scores_ = nullptr, *sums_ = nullptr, *weights_ = nullptr, *maxima_ = nullptr;
  T *shares_ = nullptr, *queries_ = nullptr, *tail_ = nullptr;
  const T* values_[kBlocks];
  const T* columns_[kBlocks];
  bool by_tiles_ = false;  // by the matrix unit
  std::vector<int> firsts_, limits_;  // the keys that a query vector sees
};

}  // namespace native
