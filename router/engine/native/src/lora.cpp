// y += (x a^T) b for groups of rows with different adapters: rows sorted by adapter, as in Punica's
// SGMV (Chen et al. 2024), but both products in one pass and every weight read once.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace native {
namespace {

constexpr int kRows = W == 16 ? 4 : 2;  // rows that share a weight in registers

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// z[n][c] for N rows and R ranks.
template <class T, int N, int R>
void project_block(const T* x, const T* a, int64_t in, T* z, int64_t ldz, const T* ahead) {
  constexpr int step = W * Pack<T>::per;
  Vec sums[N][R];
  for (auto& row : sums)
    for (auto& v : row) v = zero();
  int64_t i = 0;
  for (; i + step <= in; i += step) {
    typename Pack<T>::Reg xs[N];
    for (int n = 0; n < N; ++n) xs[n] = Pack<T>::load(x + n * in + i);
    for (int r = 0; r < R; ++r) {
      prefetch(ahead + r * in + i);
      const auto as = Pack<T>::load(a + r * in + i);
      for (int n = 0; n < N; ++n) sums[n][r] = Pack<T>::dot(sums[n][r], xs[n], as);
    }
  }
  for (int n = 0; n < N; ++n) {
    float total[R];
    if constexpr (R == 4) {
      sum4(sums[n], total);
    } else {
      for (int r = 0; r < R; ++r) total[r] = sum(sums[n][r]);
    }
    for (int r = 0; r < R; ++r) {
      for (int64_t t = i; t < in; ++t) total[r] += to_float(x[n * in + t]) * to_float(a[r * in + t]);
      put(z + n * ldz + r, total[r]);
    }
  }
}

// y[n][o..o + C * W) += z[n] b for N rows.
template <class T, int N, int C>
void expand_block(T* y, int64_t ldy, const T* z, int64_t ldz, const T* b, int64_t tile, int rank) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][C];
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) sums[n][c] = load(y + n * ldy + c * W);
  for (int r = 0; r < rank; r += per) {
    typename Pack<T>::Reg bs[C];
    for (int c = 0; c < C; ++c) { _mm_prefetch(reinterpret_cast<const char*>(b + r * tile + c * W * per)+8192,_MM_HINT_T1); bs[c] = Pack<T>::load(b + r * tile + c * W * per); }
    for (int n = 0; n < N; ++n) {
      const auto zs = Pack<T>::spread(z + n * ldz + r);
      for (int c = 0; c < C; ++c) sums[n][c] = Pack<T>::dot(sums[n][c], bs[c], zs);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) store(y + n * ldy + c * W, sums[n][c]);
}

template <class T>
void expand_column(T* y, const T* z, const T* b, int64_t tile, int rank) {
  constexpr int per = Pack<T>::per;
  float total = to_float(*y);
  for (int r = 0; r < rank; ++r)
    total += to_float(z[r]) * to_float(b[(r / per) * tile * per + r % per]);
  put(y, total);
}

struct Group {
  const void* a;
  const void* b;
  int rank;
  int64_t start, rows;
};

template <class T>
class Lora {
 public:
  Lora(const LoraCall& call, const Group& group, T* z)
      : call_(call), x_(static_cast<const T*>(call.x) + group.start * call.in),
        y_(static_cast<T*>(call.y) + group.start * call.out), a_(static_cast<const T*>(group.a)),
        b_(static_cast<const T*>(group.b)), z_(z), rank_(group.rank), ranks_(group.rank * call.layers),
        rows_(group.rows) {}

  void project(int first, int last) const {
    int c = first;
    for (; c + 4 <= last; c += 4) project_rows<4>(c);
    for (; c + 2 <= last; c += 2) project_rows<2>(c);
  }

  // Columns [first, last) of the tile that starts at `base`.
  void expand(int64_t base) const {
    const int64_t tile = std::min<int64_t>(kTile, call_.out - base);
    for (int layer = 0; layer < call_.layers; ++layer) {
      const int64_t first = std::max(base, call_.offsets[layer]);
      const int64_t last = std::min(base + tile, call_.offsets[layer + 1]);
      if (first < last) expand_range(layer, base, tile, first, last);
    }
  }

  int ranks() const { return ranks_; }

 private:
  template <int R>
  void project_rows(int c) const {
    const T* a = a_ + c * call_.in;
    const T* ahead = c + 3 * R <= ranks_ ? a + 2 * R * call_.in : b_ + (c + 2 * R <= ranks_ ? 0 : R * call_.in);
    int64_t n = 0;
    for (; n + kRows <= rows_; n += kRows) project_some<kRows, R>(n, c, a, ahead);
    for (; n < rows_; ++n) project_some<1, R>(n, c, a, ahead);
  }

  template <int N, int R>
  void project_some(int64_t n, int c, const T* a, const T* ahead) const {
    project_block<T, N, R>(x_ + n * call_.in, a, call_.in, z_ + n * ranks_ + c, ranks_, ahead);
  }

  void expand_range(int layer, int64_t base, int64_t tile, int64_t first, int64_t last) const {
    const T* b = b_ + base * rank_;
    int64_t o = first;
    for (; o + 4 * W <= last; o += 4 * W) expand_rows<4>(layer, b, base, tile, o);
    for (; o + W <= last; o += W) expand_rows<1>(layer, b, base, tile, o);
    for (; o < last; ++o)
      for (int64_t n = 0; n < rows_; ++n)
        expand_column(y_ + n * call_.out + o, z_ + n * ranks_ + layer * rank_,
                      b + (o - base) * Pack<T>::per, tile, rank_);
  }

  template <int C>
  void expand_rows(int layer, const T* b, int64_t base, int64_t tile, int64_t o) const {
    const T* columns = b + (o - base) * Pack<T>::per;
    int64_t n = 0;
    for (; n + kRows <= rows_; n += kRows) expand_some<kRows, C>(n, layer, columns, tile, o);
    for (; n < rows_; ++n) expand_some<1, C>(n, layer, columns, tile, o);
  }

  template <int N, int C>
  void expand_some(int64_t n, int layer, const T* columns, int64_t tile, int64_t o) const {
    expand_block<T, N, C>(y_ + n * call_.out + o, call_.out, z_ + n * ranks_ + layer * rank_, ranks_, columns,
                          tile, rank_);
  }

  const LoraCall& call_;
  const T* x_;
  T* y_;
  const T* a_;
  const T* b_;
  T* z_;
  int rank_, ranks_;
  int64_t rows_;
};

// Groups cut into parts of at most kPart rows, so that a part's x and z stay in the nearest cache.
constexpr int64_t kPart = 32;

std::vector<Group> parts(const LoraCall& call) {
  std::vector<Group> result;
  for (int g = 0; g < call.groups; ++g) {
    const int64_t* row = call.table + 3 * g;
    if (row[2] == 0) continue;
    const auto* a = reinterpret_cast<const void*>(row[0]);
    const auto* b = reinterpret_cast<const void*>(row[1]);
    for (int64_t start = call.starts[g]; start < call.starts[g + 1]; start += kPart)
      result.push_back(
          {a, b, static_cast<int>(row[2]), start, std::min<int64_t>(kPart, call.starts[g + 1] - start)});
  }
  return result;
}

// Reading a part's weights takes about as long as using them for six rows.
int64_t cost(const Group& part) { return part.rank * (part.rows + 6); }

// Cuts the parts into neighbouring ranges, one a thread: always the same, so that y stays in that
// core's cache. Empty if no such cut is even.
std::vector<size_t> cut(const std::vector<Group>& work, int threads) {
  int64_t total = 0, taken = 0, range = 0;
  for (const Group& part : work) total += cost(part);
  std::vector<size_t> cuts{0};
  for (size_t i = 0; i < work.size(); ++i) {
    const int64_t more = cost(work[i]);
    if ((2 * taken + more) * threads > 2 * total * static_cast<int64_t>(cuts.size())) {
      cuts.push_back(i);
      range = 0;
    }
    taken += more;
    range += more;
    if (range * threads * 8 > total * 9) return {};
  }
  cuts.resize(threads + 1, work.size());
  return cuts;
}

// Each thread takes whole parts.
template <class T>
void whole(const LoraCall& call, const std::vector<Group>& work, const std::vector<size_t>& cuts, int threads) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<T> z;
    const int me = omp_get_thread_num();
    for (size_t i = cuts[me]; i < cuts[me + 1]; ++i) {
      z.resize(std::max(z.size(), static_cast<size_t>(work[i].rows * work[i].rank * call.layers)));
      const Lora<T> part(call, work[i], z.data());
      part.project(0, part.ranks());
      for (int64_t base = 0; base < call.out; base += kTile) part.expand(base);
    }
  }
}

// Threads share each part: ranks first, then columns.
template <class T>
void shared(const LoraCall& call, const std::vector<Group>& work, int threads) {
  size_t size = 0;
  std::vector<size_t> offsets;
  for (const Group& group : work) {
    offsets.push_back(size);
    size += group.rows * group.rank * call.layers;
  }
  static thread_local std::vector<T> scratch;
  scratch.resize(std::max(scratch.size(), size));
  T* z = scratch.data();
  const int64_t tiles = (call.out + kTile - 1) / kTile;
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), all = omp_get_num_threads();
    for (size_t i = 0; i < work.size(); ++i) {
      const Lora<T> part(call, work[i], z + offsets[i]);
      const int quads = (part.ranks() + 3) / 4;
      part.project(quads * me / all * 4, std::min(part.ranks(), quads * (me + 1) / all * 4));
    }
#pragma omp barrier
    for (size_t i = 0; i < work.size(); ++i) {
      const Lora<T> part(call, work[i], z + offsets[i]);
      for (int64_t t = tiles * me / all; t < tiles * (me + 1) / all; ++t) part.expand(t * kTile);
    }
  }
}

}  // namespace

template <class T>
void lora(const LoraCall& call, int threads) {
  const std::vector<Group> work = parts(call);
  const std::vector<size_t> cuts = cut(work, threads);
  if (cuts.empty())
    shared<T>(call, work, threads);
  else
    whole<T>(call, work, cuts, threads);
}

template void lora<float>(const LoraCall&, int);
template void lora<bf16>(const LoraCall&, int);

}  // namespace native
