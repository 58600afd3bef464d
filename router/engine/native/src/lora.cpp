// Rows sorted by adapter, as in Punica's SGMV (Chen et al. 2024); every weight is read once for the rows of a
// part, and the second product is added where those rows are worked on anyway.
#include "lora_part.h"

namespace native {

std::vector<Part> parts_of(const int32_t* starts, int groups, int64_t most, bool base) {
  std::vector<Part> parts;
  for (int g = base ? -1 : 0; g < groups; ++g)
    for (int64_t at = g < 0 ? 0 : starts[g], end = starts[g + 1]; at < end; at += most)
      parts.push_back({at, std::min(most, end - at), g});
  return parts;
}

template <class T>
void lora_project(const LoraCall& call, const Part& part, int first, int last) {
  PartProduct<T>(call, part).project(first, last);
}

template <class T>
void lora_expand(const LoraCall& call, const Part& part, int64_t first, int64_t last) {
  if (call.rank(part.group) == 0) return;
  const PartProduct<T> product(call, part);
  for (int64_t base = first; base < last; base += kTile) product.expand(base);
}

template void lora_project<float>(const LoraCall&, const Part&, int, int);
template void lora_project<bf16>(const LoraCall&, const Part&, int, int);
template void lora_expand<float>(const LoraCall&, const Part&, int64_t, int64_t);
template void lora_expand<bf16>(const LoraCall&, const Part&, int64_t, int64_t);

}  // namespace native
