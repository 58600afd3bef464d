#pragma once

#include <cstdint>
#include <memory>

namespace native {

// Memory that only grows, at the start of a cache line.
template <class T>
class Scratch {
 public:
  T* get(int64_t size) {
    if (size > size_) {
      size_ = size;
      memory_.reset(new char[size * sizeof(T) + 64]);
    }
    const auto at = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((at + 63) / 64 * 64);
  }

 private:
  int64_t size_ = 0;
  std::unique_ptr<char[]> memory_;
};

}  // namespace native
