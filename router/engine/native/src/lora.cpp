// Rows sorted by adapter, as in Punica's SGMV (Chen et al. 2024), but both products go in one pass and
// every weight is read once.
#include <omp.h>

#include "lora_part.h"
#include "share.h"

namespace native {
namespace {

// Parts have at most so many rows, so that their x and z stay in the nearest cache.
constexpr int64_t kPart = 16;

std::vector<Part> parts_of(const LoraCall& call) {
  std::vector<Part> result;
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
int64_t cost(const Part& part) { return part.rank * (part.rows + 6); }

// A buffer of the calling thread that only grows.
template <class T>
T* scratch(size_t size) {
  static thread_local std::vector<T> buffer;
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

// Each thread takes whole parts.
template <class T>
void run_whole(const LoraCall& call, const std::vector<Part>& parts, size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    const int ranks = parts[i].rank * call.layers;
    const PartProduct<T> product(call, parts[i], scratch<T>(parts[i].rows * ranks));
    product.project(0, ranks);
    for (int64_t base = 0; base < call.out; base += kTile) product.expand(base);
  }
}

// Threads share each part: first the ranks, in quads, then the columns.
template <class T>
void run_shared(const LoraCall& call, const std::vector<Part>& parts, T* z, int me, int all) {
  T* at = z;
  for (const Part& part : parts) {
    const int ranks = part.rank * call.layers, quads = (ranks + 3) / 4;
    PartProduct<T>(call, part, at).project(quads * me / all * 4, std::min(ranks, quads * (me + 1) / all * 4));
    at += part.rows * ranks;
  }
#pragma omp barrier
  const int64_t tiles = (call.out + kTile - 1) / kTile;
  at = z;
  for (const Part& part : parts) {
    const PartProduct<T> product(call, part, at);
    for (int64_t t = tiles * me / all; t < tiles * (me + 1) / all; ++t) product.expand(t * kTile);
    at += part.rows * part.rank * call.layers;
  }
}

}  // namespace

template <class T>
void lora(const LoraCall& call, int threads) {
  const std::vector<Part> parts = parts_of(call);
  bool uneven;
  const std::vector<size_t> cuts = cut(parts, threads, cost, &uneven);
  size_t size = 0;
  for (const Part& part : parts) size += part.rows * part.rank * call.layers;
  T* z = uneven ? scratch<T>(size) : nullptr;
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), all = omp_get_num_threads();
    if (uneven)
      run_shared(call, parts, z, me, all);
    else
      for (int range = me; range < threads; range += all)
        run_whole<T>(call, parts, cuts[range], cuts[range + 1]);
  }
}

template void lora<float>(const LoraCall&, int);
template void lora<bf16>(const LoraCall&, int);

}  // namespace native
