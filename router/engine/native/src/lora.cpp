// Rows sorted by adapter, as in Punica's SGMV (Chen et al. 2024), but both products go in one pass and
// every weight is read once.
#include "lora.h"

#include <omp.h>

#include "share.h"

namespace native {
namespace {

// Parts have at most so many rows, so that their x and z stay in the nearest cache.
constexpr int64_t kPart = 16;

std::vector<Part> cut_parts(const LoraCall& call) {
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

struct Range {
  int64_t first, last;
};

Range share(int64_t count, int me, int all) { return {count * me / all, count * (me + 1) / all}; }

// Ranks of a thread, in whole quads.
Range rank_share(int ranks, int me, int all) {
  const Range quads = share((ranks + 3) / 4, me, all);
  return {quads.first * 4, std::min<int64_t>(ranks, quads.last * 4)};
}

Range column_share(int64_t out, int me, int all) {
  const Range tiles = share((out + kTile - 1) / kTile, me, all);
  return {tiles.first * kTile, std::min(out, tiles.last * kTile)};
}

}  // namespace

template <class T>
LoraSchedule<T>::LoraSchedule(const LoraCall& call, int threads)
    : call_(call), threads_(threads), parts_(cut_parts(call)) {
  bool uneven;
  cuts_ = cut(parts_, threads, cost, &uneven);
  if (!uneven) return;
  cuts_.clear();
  static thread_local std::vector<T> scratch;
  size_t size = 0;
  for (const Part& part : parts_) {
    z_at_.push_back(size);
    size += part.rows * ranks(part);
  }
  if (scratch.size() < size) scratch.resize(size);
  z_ = scratch.data();
}

template <class T>
void LoraSchedule<T>::run(int me, int all) const {
  if (cuts_.empty())
    run_shared(me, all);
  else
    for (int range = me; range < threads_; range += all) run_whole(range);
}

// Whole parts.
template <class T>
void LoraSchedule<T>::run_whole(int range) const {
  static thread_local std::vector<T> z;
  for (size_t i = cuts_[range]; i < cuts_[range + 1]; ++i) {
    const size_t size = parts_[i].rows * ranks(parts_[i]);
    if (z.size() < size) z.resize(size);
    const PartProduct<T> product(call_, parts_[i], z.data());
    product.project(0, ranks(parts_[i]));
    for (int64_t base = 0; base < call_.out; base += kTile) product.expand(base);
  }
}

// A share of each part: first of the ranks, then of the columns.
template <class T>
void LoraSchedule<T>::run_shared(int me, int all) const {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Range c = rank_share(ranks(parts_[i]), me, all);
    PartProduct<T>(call_, parts_[i], z_ + z_at_[i]).project(static_cast<int>(c.first), static_cast<int>(c.last));
  }
#pragma omp barrier
  const Range columns = column_share(call_.out, me, all);
  for (size_t i = 0; i < parts_.size(); ++i) {
    const PartProduct<T> product(call_, parts_[i], z_ + z_at_[i]);
    for (int64_t base = columns.first; base < columns.last; base += kTile) product.expand(base);
  }
}

template <class T>
std::vector<Span> LoraSchedule<T>::spans(int me, int all) const {
  std::vector<Span> result;
  const bool split = cuts_.empty();
  const size_t first = split ? 0 : cuts_[me], last = split ? parts_.size() : cuts_[me + 1];
  const auto add = [&](const void* from, int64_t begin, int64_t end) {
    result.push_back({static_cast<const char*>(from) + begin * sizeof(T), (end - begin) * int64_t(sizeof(T))});
  };
  const auto add_a = [&](const Part& part) {
    const Range c = split ? rank_share(ranks(part), me, all) : Range{0, ranks(part)};
    add(part.a, c.first * call_.in, c.last * call_.in);
  };
  const auto add_b = [&](const Part& part) {
    const Range o = split ? column_share(call_.out, me, all) : Range{0, call_.out};
    add(part.b, o.first * part.rank, o.last * part.rank);
  };
  for (size_t i = first; i < last; ++i) {
    if (i > first && parts_[i].a == parts_[i - 1].a) continue;
    add_a(parts_[i]);
    if (!split) add_b(parts_[i]);
  }
  for (size_t i = first; split && i < last; ++i)
    if (i == first || parts_[i].a != parts_[i - 1].a) add_b(parts_[i]);
  return result;
}

template <class T>
void lora(const LoraCall& call, int threads) {
  const LoraSchedule<T> schedule(call, threads);
#pragma omp parallel num_threads(threads)
  schedule.run(omp_get_thread_num(), omp_get_num_threads());
}

template class LoraSchedule<float>;
template class LoraSchedule<bf16>;
template void lora<float>(const LoraCall&, int);
template void lora<bf16>(const LoraCall&, int);

}  // namespace native
