#include "panels.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>

#include "scratch.h"

namespace native {
namespace {

constexpr int64_t kLanes = 16;  // of a row placed at a time: a cache line

// Rows of `lanes` lanes to the columns of a panel.
template <class Lane>
void place(Lane* columns, const Lane* rows, int64_t lanes, int64_t count) {
  for (int64_t begin = 0; begin < lanes; begin += kLanes) {
    const int64_t end = std::min(lanes, begin + kLanes);
    for (int64_t row = 0; row < count; ++row)
      for (int64_t lane = begin; lane < end; ++lane) columns[lane * kPanel + row] = rows[row * lanes + lane];
  }
}

void place(const Packed& to, int64_t first, const void* rows, int64_t count) {
  const int64_t lanes = to.in / to.per, size = bytes_of(to.type) * to.per;
  char* columns = to.panels + first / kPanel * kPanel * lanes * size + first % kPanel * size;
  const auto as = [&](auto lane) {
    using Lane = decltype(lane);
    place(reinterpret_cast<Lane*>(columns), static_cast<const Lane*>(rows), lanes, count);
  };
  if (size == 4) as(uint32_t{});
  else if (size == 2) as(uint16_t{});
  else as(uint8_t{});
}

bool read_all(int file, char* to, int64_t bytes, int64_t at) {
  while (bytes > 0) {
    const ssize_t got = pread(file, to, bytes, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    at += got;
    bytes -= got;
  }
  return true;
}

bf16 rounded(float v) {
  bf16 result;
  put(&result, v);
  return result;
}

void widen(float* out, const void* rows, Stored type, int64_t count, bool narrow) {
  if (type == Stored::kBf16) {
    const auto* from = static_cast<const bf16*>(rows);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(from[i]);
    return;
  }
  const auto* from = static_cast<const float*>(rows);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow ? to_float(rounded(from[i])) : from[i];
}

// Of one row. NaN is the largest of all bits, so it shows in the scale.
float quantise(int8_t* out, const float* row, int64_t in) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < in; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  float scale;
  std::memcpy(&scale, &largest, sizeof scale);
  scale /= 127.0f;
  for (int64_t i = 0; i < in; ++i) {
    const float steps = row[i] / scale;
    const float near = std::nearbyint(steps == steps ? std::min(127.0f, std::max(-127.0f, steps)) : 0.0f);
    out[i] = static_cast<int8_t>(near);
  }
  return scale;
}

struct Buffers {
  Scratch<char> read, packed;
  Scratch<float> wide;
};

void pack_some(const Packed& to, int64_t first, const void* rows, Stored type, int64_t count, bool narrow, Buffers& buffers) {
  if (type == to.type) return place(to, first, rows, count);
  const int64_t numbers = count * to.in;
  float* wide = buffers.wide.get(numbers);
  widen(wide, rows, type, numbers, narrow);
  if (to.type == Stored::kFloat) return place(to, first, wide, count);
  if (to.type == Stored::kBf16) {
    auto* out = reinterpret_cast<bf16*>(buffers.packed.get(numbers * sizeof(bf16)));
    for (int64_t i = 0; i < numbers; ++i) out[i] = rounded(wide[i]);
    return place(to, first, out, count);
  }
  auto* out = reinterpret_cast<int8_t*>(buffers.packed.get(numbers));
  for (int64_t row = 0; row < count; ++row) to.scales[first + row] = quantise(out + row * to.in, wide + row * to.in, to.in);
  place(to, first, out, count);
}

}  // namespace

bool pack(const Packed& to, int64_t first, const Rows& rows, bool narrow, int threads) {
  const int64_t size = to.in * bytes_of(rows.type), last = first + rows.count;
  const int64_t begin = first / kPanel, panels = (last + kPanel - 1) / kPanel - begin;
  std::atomic<bool> whole{true};
  each(static_cast<int>(panels), threads, [&](int index, const Share&) {
    static thread_local Buffers buffers;
    const int64_t from = std::max(first, (begin + index) * kPanel), until = std::min(last, (begin + index + 1) * kPanel);
    const int64_t at = (from - first) * size, bytes = (until - from) * size;
    const char* source = rows.memory ? rows.memory + at : nullptr;
    if (!source) {
      char* read = buffers.read.get(bytes);
      if (!read_all(rows.file, read, bytes, rows.start + at)) {
        whole = false;
        return;
      }
      source = read;
    }
    pack_some(to, from, source, rows.type, until - from, narrow, buffers);
  });
  return whole;
}

template <class T>
void unpack_row(T* out, const void* panels, int64_t in, int64_t row) {
  const auto* from = static_cast<const char*>(panels) + (row / kPanel * in * kPanel + row % kPanel * Pack<T>::per) * sizeof(T);
  for (int64_t lane = 0, lanes = in / Pack<T>::per; lane < lanes; ++lane)
    std::memcpy(out + lane * Pack<T>::per, from + lane * kPanel * 4, 4);
}

template void unpack_row<float>(float*, const void*, int64_t, int64_t);
template void unpack_row<bf16>(bf16*, const void*, int64_t, int64_t);

}  // namespace native
