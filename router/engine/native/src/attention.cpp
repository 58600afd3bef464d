// Causal attention over a paged KV cache.
#include <omp.h>

#include "attention_tile.h"
#include "share.h"

namespace native {
namespace {

std::vector<Item> items_of(const AttentionCall& call) {
  const int most = std::max(1, kQueries / (call.heads / call.kv_heads));
  std::vector<Item> items;
  for (int row = 0; row < call.rows; ++row) {
    const int start = call.cu_q[row], queries = call.cu_q[row + 1] - start;
    for (int first = 0; first < queries; first += most) {
      const int count = std::min(most, queries - first);
      const int seen = call.context[row] - queries + first + count;
      for (int head = 0; head < call.kv_heads; ++head) items.push_back({row, head, start + first, count, seen});
    }
  }
  return items;
}

}  // namespace

template <class T>
void attention(const AttentionCall& call, int threads) {
  const std::vector<Item> items = items_of(call);
  const int group = call.heads / call.kv_heads;
  // Unpacking a key costs about as much as using it for six query vectors.
  const auto cost = [&](const Item& item) { return static_cast<int64_t>(item.count * group + 6) * item.seen; };
  bool uneven;
  const std::vector<size_t> cuts = cut(items, threads, cost, &uneven);
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<float> scratch;
    for (int range = omp_get_thread_num(); range < threads; range += omp_get_num_threads()) {
      const Item *first = items.data() + cuts[range], *last = items.data() + cuts[range + 1];
      Tile<T> tile(call, scratch, Upcoming<T>(call, first, last));
      for (const Item* item = first; item != last; ++item) tile.run(*item);
    }
  }
}

template void attention<float>(const AttentionCall&, int);
template void attention<bf16>(const AttentionCall&, int);

}  // namespace native
