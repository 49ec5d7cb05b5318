// Products by bfloat16 matrices on CPUs without instructions for bfloat16: y = x W^T + b, computed in float32.
//
// A panel is 2 W outputs (W: floats in a register). For each input it has W words of 32 bits, the value of output j in the
// lower half and that of output W + j in the upper: a shift and a mask make floats of them. Outputs are padded with zeros.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "vector.h"

namespace {

using namespace blockc;

typedef Lanes<W>::u Words;

constexpr int64_t kOuts = 2 * W;  // outputs of a panel
constexpr int kMost = 6;          // rows at a time: their sums and a pair of weights fill the registers of AVX2
constexpr int64_t kBlock = 48;    // rows whose inputs stay in a core's own cache
constexpr int64_t kDepth = 256;   // inputs at a time: that part of a panel stays in the first cache while rows pass

struct Target {
  bf16* y;
  int64_t stride, outs;
  const bf16* bias;
};

// What is asked for meanwhile: `step` bytes an input.
struct Ahead {
  const char* from;
  int64_t step;
};

// A part of the inputs of R rows, `stride` apart, by a panel; `sums` [R][2 W] go on from part to part.
template <int R>
void add_part(const float* x, int64_t stride, const uint32_t* panel, int64_t depth, const Ahead& ahead, float* sums) {
  constexpr int U = R < 3 ? 2 : 1;  // inputs at a time: independent sums hide the latency of adding
  F<W> low[U][R] = {}, high[U][R] = {};
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) low[0][r] = load<W>(sums + r * kOuts), high[0][r] = load<W>(sums + r * kOuts + W);
  auto add = [&](int64_t k, int u) {
    Words words;
    std::memcpy(&words, panel + k * W, sizeof words);
    const F<W> first = (F<W>)(words << 16), second = (F<W>)(words & 0xffff0000u);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const F<W> value = all<W>(x[r * stride + k]);
      low[u][r] += value * first;
      high[u][r] += value * second;
    }
  };
  int64_t k = 0;
  for (; k + U <= depth; k += U) {
    __builtin_prefetch(ahead.from + k * ahead.step, 0, 3);
#pragma GCC unroll 2
    for (int u = 0; u < U; u++) add(k + u, u);
  }
  for (; k < depth; k++) add(k, 0);
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
    for (int u = 1; u < U; u++) low[0][r] += low[u][r], high[0][r] += high[u][r];
    store<W>(sums + r * kOuts, low[0][r]), store<W>(sums + r * kOuts + W, high[0][r]);
  }
}

// Sums [rows][2 W] to where they belong, rounded once.
void put_sums(const float* sums, const Target& to, int64_t row, int64_t rows, int64_t out) {
  const int64_t left = to.outs - out < kOuts ? to.outs - out : kOuts;
  const bf16* bias = to.bias ? to.bias + out : nullptr;
  for (int64_t r = 0; r < rows; r++, sums += kOuts) {
    bf16* y = to.y + (row + r) * to.stride + out;
    int64_t j = 0;
    for (; j + W <= left; j += W) store<W>(y + j, bias ? load<W>(sums + j) + load<W>(bias + j) : load<W>(sums + j));
    for (; j < left; j++) put(y + j, bias ? sums[j] + to_float(bias[j]) : sums[j]);
  }
}

using AddPart = void (*)(const float*, int64_t, const uint32_t*, int64_t, const Ahead&, float*);
constexpr AddPart kAddPart[kMost + 1] = {nullptr,     add_part<1>, add_part<2>, add_part<3>,
                                         add_part<4>, add_part<5>, add_part<6>};

// Panels `begin .. end` of a block of rows from `first` on.
void multiply(const float* x, int64_t stride, const uint32_t* words, int64_t size, const Target& to, int64_t first,
              int64_t rows, int64_t begin, int64_t end) {
  alignas(64) float sums[kBlock * kOuts];
  const int64_t parts = (rows + kMost - 1) / kMost;  // alike: 8 rows are 4 and 4
  const int64_t depth = parts == 1 ? size : kDepth;
  for (int64_t panel = begin; panel < end; panel++) {
    std::memset(sums, 0, rows * kOuts * sizeof(float));
    for (int64_t k = 0; k < size; k += depth) {
      const int64_t held = std::min(depth, size - k);
      const uint32_t* own = words + (panel * size + k) * W;
      for (int64_t part = 0; part < parts; part++) {
        const int64_t from = rows * part / parts, stop = rows * (part + 1) / parts;
        // All together ask for the next part of the panel: alone the first would wait for memory, and the others not.
        const int64_t step = (4 * W + parts - 1) / parts, next = parts == 1 ? kAhead : held * (4 * W + part * step);
        const Ahead ahead = {reinterpret_cast<const char*>(own) + next, step};
        kAddPart[stop - from](x + from * stride + k, stride, own, held, ahead, sums + from * kOuts);
      }
    }
    put_sums(sums, to, first, rows, panel * kOuts);
  }
}

// Rows in float32, `stride` apart.
void widen(const bf16* x, int64_t x_stride, int64_t rows, int64_t size, int64_t stride, float* to) {
  for (int64_t r = 0; r < rows; r++, x += x_stride, to += stride) {
    int64_t i = 0;
    for (; i + W <= size; i += W) store<W>(to + i, load<W>(x + i));
    for (; i < size; i++) to[i] = to_float(x[i]);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// matrix [outs, size] -> outputs `first ..` of panels, whose padding is zero already.
void blockc_to_panels(const void* matrix, void* panels, int64_t first, int64_t outs, int64_t size) {
  const bf16* from = static_cast<const bf16*>(matrix);
  bf16* to = static_cast<bf16*>(panels);
#pragma omp parallel for schedule(static)
  for (int64_t out = 0; out < outs; out++) {
    const int64_t at = first + out, lane = at % kOuts;
    bf16* row = to + at / kOuts * size * kOuts + lane % W * 2 + lane / W;
    for (int64_t i = 0; i < size; i++) row[i * kOuts] = from[out * size + i];
  }
}

// x [rows, size], panels of [outs, size], bias [outs] or null -> y [rows, outs].
void blockc_by_panels(const void* x, int64_t x_stride, const void* panels, const void* bias, void* y, int64_t y_stride,
                      int64_t rows, int64_t outs, int64_t size, int threads) {
  const bf16* from = static_cast<const bf16*>(x);
  const uint32_t* words = static_cast<const uint32_t*>(panels);
  const Target to = {static_cast<bf16*>(y), y_stride, outs, static_cast<const bf16*>(bias)};
  const int64_t count = (outs + kOuts - 1) / kOuts;
  const int64_t stride = (size / kOuts + 2) * kOuts;  // a line more: powers of two meet in one set of the first cache
#pragma omp parallel num_threads(threads)
  {
    // Each thread makes float32 of all rows: to share that and to wait for each other takes longer.
    static thread_local std::vector<float> wide;
    wide.resize(std::min(rows, kBlock) * stride);
    const int64_t mine = omp_get_thread_num(), everyone = omp_get_num_threads();
    const int64_t begin = count * mine / everyone, end = count * (mine + 1) / everyone;
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t left = std::min(kBlock, rows - first);
      widen(from + first * x_stride, x_stride, left, size, stride, wide.data());
      multiply(wide.data(), stride, words, size, to, first, left, begin, end);
    }
  }
}

}  // extern "C"
#pragma GCC visibility pop
