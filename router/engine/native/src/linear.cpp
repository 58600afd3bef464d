// y = x w^T + bias for any number of rows. Weights lie in panels of kPanel columns, in the order they are
// read, so few rows run at the speed of memory and many at the speed of the multipliers. Each output is
// summed in one order whatever the number of rows: a row's result does not depend on its batch.
#include <omp.h>

#include "lora.h"

namespace native {
namespace {

constexpr int kMost = W == 16 ? 12 : 5;    // rows that fit the registers: two sums each, and 3 more
constexpr int kRows = W == 16 ? 8 : 5;     // rows at once if there are more than that
constexpr int64_t kLine = 64;
constexpr int64_t kFarPanel = 256 << 10;   // bytes of a panel up to which the next one is asked for
constexpr int64_t kSpans = 512 << 10;      // bytes of other memory a thread asks for: half its cache
constexpr int64_t kMemoryBound = 64;       // rows from which memory keeps up by itself

// Memory to ask for while multiplying, a line each step; the last line again when all are asked for.
struct Wish {
  const char *begin = nullptr, *last = nullptr;
};

template <int Stride>
inline void ask(const char*& line, const char* last) {
  _mm_prefetch(line, _MM_HINT_T1);
  line = std::min(line + Stride, last);
}

// Hands out the lines of some spans in portions, one for each pass over a panel.
class Portions {
 public:
  Portions(std::vector<Span> spans, int64_t passes) : spans_(std::move(spans)) {
    int64_t bytes = 0;
    for (const Span& span : spans_) bytes += span.bytes;
    each_ = passes ? (std::min(bytes, kSpans) / kLine + passes - 1) / passes : 0;
  }
  bool next(Wish& wish) {
    while (at_ < spans_.size() && spans_[at_].bytes <= 0) ++at_;
    if (at_ == spans_.size()) return false;
    Span& span = spans_[at_];
    wish = {span.begin, span.begin + std::min(span.bytes, each_ * kLine) - 1};
    span.begin += each_ * kLine;
    span.bytes -= each_ * kLine;
    return true;
  }

 private:
  std::vector<Span> spans_;
  size_t at_ = 0;
  int64_t each_;
};

template <class T>
struct Panel {
  T* y;
  const T* x;
  const T* w;
  const T* bias;  // of these columns, or null
  int64_t in, out;
  int columns;         // of kPanel that exist
  Wish ahead, beside;
};

template <class T>
void finish(const Panel<T>& p, int n, float* sums) {
  if (p.bias)
    for (int c = 0; c < p.columns; ++c) sums[c] += to_float(p.bias[c]);
  T* y = p.y + n * p.out;
  if (p.columns == kPanel)
    for (int c = 0; c < kPanel; c += W) store(y + c, load(sums + c));
  else
    for (int c = 0; c < p.columns; ++c) put(y + c, sums[c]);
}

// Not inlined, and unrolled early: only so do compilers keep the sums in registers.
template <class T, int N, int Stride>
__attribute__((noinline)) void multiply(const Panel<T>& p) {
  constexpr int per = Pack<T>::per;
  Vec sums[N][2];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = zero();
  const char *ahead = p.ahead.begin, *beside = p.beside.begin;
  const T *w = p.w, *x = p.x;
  const int64_t in = p.in;
  for (int64_t i = 0; i < in; i += per, w += kPanel * per) {
    if constexpr (Stride > 0) {
      ask<Stride>(ahead, p.ahead.last);
      ask<Stride>(beside, p.beside.last);
    }
    const auto w0 = Pack<T>::load(w), w1 = Pack<T>::load(w + W * per);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const auto xs = Pack<T>::spread(x + n * in + i);
      sums[n][0] = Pack<T>::dot(sums[n][0], w0, xs);
      sums[n][1] = Pack<T>::dot(sums[n][1], w1, xs);
    }
  }
  float rows[N][kPanel];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    store(rows[n], sums[n][0]);
    store(rows[n] + W, sums[n][1]);
  }
  for (int n = 0; n < N; ++n) finish(p, n, rows[n]);
}

template <class T, int Stride, int N>
void multiply_rows(const Panel<T>& p, int64_t rows) {
  if constexpr (N > 0) {
    if (rows == N) return multiply<T, N, Stride>(p);
    multiply_rows<T, Stride, N - 1>(p, rows);
  }
}

template <class T>
struct Layer {
  T* y;
  const T* x;
  const T* w;
  const T* bias;
  int64_t rows, in, out;

  int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  int64_t blocks() const { return rows <= kMost ? 1 : (rows + kRows - 1) / kRows; }
};

// A block of rows multiplies a panel, and asks for memory meanwhile: its own panel some way ahead if it is
// the only block, else a part of the next panel, so that memory is busy all the time, and a portion besides.
template <class T>
void run_block(Panel<T>& panel, const Layer<T>& layer, int64_t block, int64_t rows, Portions& portions) {
  constexpr int64_t step = kPanel * Pack<T>::per * sizeof(T);  // bytes of weights: one line or two
  const int64_t bytes = layer.in / Pack<T>::per * step;
  const char* w = reinterpret_cast<const char*>(panel.w);
  if (layer.blocks() == 1) {
    panel.ahead = {w + kAhead, w + kAhead + bytes - 1};
    panel.beside = {w + kAhead + step - kLine, panel.ahead.last};
    return multiply_rows<T, step, kMost>(panel, rows);
  }
  panel.ahead = panel.beside = {w, w};
  if (block < 2 && bytes <= kFarPanel)
    panel.ahead = {w + bytes + block * bytes / 2, w + bytes + (block + 1) * bytes / 2 - 1};
  if (!portions.next(panel.beside) && block >= 2) return multiply_rows<T, 0, kRows>(panel, rows);
  multiply_rows<T, kLine, kRows>(panel, rows);
}

template <class T>
void run_panels(const Layer<T>& layer, int me, int all, std::vector<Span> spans) {
  const int64_t first = layer.panels() * me / all, last = layer.panels() * (me + 1) / all;
  Portions portions(std::move(spans), (last - first) * layer.blocks());
  for (int64_t p = first; p < last; ++p)
    for (int64_t b = 0; b < layer.blocks(); ++b) {
      const int64_t begin = layer.rows * b / layer.blocks(), end = layer.rows * (b + 1) / layer.blocks();
      const int64_t at = p * kPanel;
      Panel<T> panel{layer.y + begin * layer.out + at, layer.x + begin * layer.in, layer.w + at * layer.in,
                     layer.bias ? layer.bias + at : nullptr, layer.in, layer.out,
                     static_cast<int>(std::min<int64_t>(kPanel, layer.out - at)), {}, {}};
      run_block(panel, layer, b, end - begin, portions);
    }
}

}  // namespace

template <class T>
void linear(T* y, const T* x, const T* w, const T* bias, int64_t rows, int64_t in, int64_t out, int threads) {
  const Layer<T> layer{y, x, w, bias, rows, in, out};
#pragma omp parallel num_threads(threads)
  run_panels(layer, omp_get_thread_num(), omp_get_num_threads(), {});
}

template <class T>
void linear_lora(const T* w, const T* bias, const LoraCall& call, int64_t rows, int threads) {
  const Layer<T> layer{static_cast<T*>(call.y), static_cast<const T*>(call.x), w, bias, rows, call.in, call.out};
  const LoraSchedule<T> schedule(call, threads);
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), all = omp_get_num_threads();
    // The adapters' weights come from memory while the multipliers are busy with the base's.
    run_panels(layer, me, all, rows <= kMemoryBound ? schedule.spans(me, all) : std::vector<Span>{});
#pragma omp barrier
    schedule.run(me, all);
  }
}

template void linear(float*, const float*, const float*, const float*, int64_t, int64_t, int64_t, int);
template void linear(bf16*, const bf16*, const bf16*, const bf16*, int64_t, int64_t, int64_t, int);
template void linear_lora(const float*, const float*, const LoraCall&, int64_t, int);
template void linear_lora(const bf16*, const bf16*, const LoraCall&, int64_t, int);

}  // namespace native
