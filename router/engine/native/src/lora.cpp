// Rows sorted by adapter, as in Punica's SGMV (Chen et al. 2024); every weight is read once for the rows of a
// part, and the second product is added to columns that were just computed.
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
void lora_project(const LoraCall& call, const Part& part, int first, int last, const char* after) {
  PartProduct<T>(call, part).project(first, last, reinterpret_cast<const T*>(after));
}

template <class T>
void lora_expand(const LoraCall& call, const Part* parts, size_t count, int panel) {
  const int64_t base = static_cast<int64_t>(panel) * kPanel, end = std::min(call.out, base + kPanel);
  for (int layer = 0; layer < call.layers; ++layer) {
    const int64_t first = std::max(base, call.offsets[layer]), last = std::min(end, call.offsets[layer + 1]);
    if (first >= last) continue;
    for (size_t p = 0; p < count; ++p)
      if (call.rank(parts[p].group) > 0) PartProduct<T>(call, parts[p]).expand(layer, base, end - base, first, last);
  }
}

template void lora_project<float>(const LoraCall&, const Part&, int, int, const char*);
template void lora_project<bf16>(const LoraCall&, const Part&, int, int, const char*);
template void lora_expand<float>(const LoraCall&, const Part*, size_t, int);
template void lora_expand<bf16>(const LoraCall&, const Part*, size_t, int);

}  // namespace native
