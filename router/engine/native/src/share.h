// Work divided among threads without a common counter: the same division for the same work, so that what
// a thread has in its cache stays of use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace native {

// The first item of each thread's range, and the end. `uneven` is set if a thread gets an eighth more than
// its share.
template <class Item, class Cost>
std::vector<size_t> cut(const std::vector<Item>& items, int threads, const Cost& cost, bool* uneven) {
  int64_t total = 0, taken = 0, range = 0;
  for (const Item& item : items) total += cost(item);
  std::vector<size_t> cuts{0};
  *uneven = false;
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t more = cost(items[i]);
    if ((2 * taken + more) * threads > 2 * total * static_cast<int64_t>(cuts.size())) {
      cuts.push_back(i);
      range = 0;
    }
    taken += more;
    range += more;
    if (range * threads * 8 > total * 9) *uneven = true;
  }
  cuts.resize(threads + 1, items.size());
  return cuts;
}

}  // namespace native
