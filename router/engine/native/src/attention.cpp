// Causal attention over a paged KV cache.
#include "attention_tile.h"

namespace native {

AttentionItems::AttentionItems(const AttentionCall& call, int threads) {
  const int group = call.heads / call.kv_heads, most = std::max(1, kQueries / group);
  int64_t total = 0;
  // Reading a key costs about as much as using it for six query vectors.
  const auto cost = [&](const Item& item) { return static_cast<int64_t>(item.count * group + 6) * (item.seen - item.from); };
  for (int row = 0; row < call.rows; ++row) {
    const int start = call.cu_q[row], queries = call.cu_q[row + 1] - start;
    for (int first = 0; first < queries; first += most) {
      const int count = std::min(most, queries - first);
      const int seen = call.context[row] - queries + first + count;
      const int from = first_key(call, seen - count + 1) / kKeys * kKeys;  // tiles are the same for each query
      for (int head = 0; head < call.kv_heads; ++head) {
        items.push_back({row, head, start + first, count, from, seen});
        total += cost(items.back());
      }
    }
  }
  bounds.push_back(0);
  const int64_t share = total / (kChunks * threads) + 1;
  int64_t taken = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    taken += cost(items[i]);
    if (taken < share && i + 1 < items.size()) continue;
    bounds.push_back(static_cast<int>(i) + 1);
    taken = 0;
  }
}

template <class T>
void attention_chunk(const AttentionCall& call, const AttentionItems& items, int chunk) {
  static thread_local std::vector<char> scratch;
  const Item* all = items.items.data();
  const Item *item = all + items.bounds[chunk], *end = all + items.bounds[chunk + 1];
  Tile<T> tile(call, scratch, Upcoming<T>(call, item, all + items.items.size()));
  for (; item != end; ++item) tile.run(*item);
}

template void attention_chunk<float>(const AttentionCall&, const AttentionItems&, int);
template void attention_chunk<bf16>(const AttentionCall&, const AttentionItems&, int);

}  // namespace native
