// The work of `lora` divided among threads, to be run inside a parallel region.
#pragma once

#include <vector>

#include "lora_part.h"

namespace native {

// Memory that will be read soon.
struct Span {
  const char* begin;
  int64_t bytes;
};

template <class T>
class LoraSchedule {
 public:
  LoraSchedule(const LoraCall& call, int threads);

  // What the calling thread `me` of `all` does; every thread of the region has to call it.
  void run(int me, int all) const;

  // The weights that thread will read, in that order.
  std::vector<Span> spans(int me, int all) const;

 private:
  void run_whole(int range) const;
  void run_shared(int me, int all) const;
  int ranks(const Part& part) const { return part.rank * call_.layers; }

  const LoraCall& call_;
  int threads_;
  std::vector<Part> parts_;
  std::vector<size_t> cuts_;  // of parts_, one range a thread; empty: threads share each part
  std::vector<size_t> z_at_;
  T* z_ = nullptr;
};

}  // namespace native
