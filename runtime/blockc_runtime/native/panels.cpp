// Products by bfloat16 matrices on CPUs without instructions for bfloat16: y = x W^T + b, computed in float32.
//
// A panel is 2 W outputs (W: floats in a register). For each input it has W words of 32 bits, the value of output j in the
// lower half and that of output W + j in the upper: a shift and a mask make floats of them. Outputs are padded with zeros.

#include <omp.h>

#include <vector>

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

// A part of the inputs: `x` [depth][R] in float32, R rows side by side; `sums` [R][2 W] go on from part to part.
template <int R>
void add_part(const float* x, const uint32_t* panel, int64_t depth, float* sums) {
  F<W> low[R], high[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) low[r] = load<W>(sums + r * kOuts), high[r] = load<W>(sums + r * kOuts + W);
  for (int64_t k = 0; k < depth; k++, x += R, panel += W) {
    Words words;
    std::memcpy(&words, panel, sizeof words);
    __builtin_prefetch(panel + kAhead / 4, 0, 3);
    const F<W> first = (F<W>)(words << 16), second = (F<W>)(words & 0xffff0000u);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const F<W> value = all<W>(x[r]);
      low[r] += value * first;
      high[r] += value * second;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) store<W>(sums + r * kOuts, low[r]), store<W>(sums + r * kOuts + W, high[r]);
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

using AddPart = void (*)(const float*, const uint32_t*, int64_t, float*);
constexpr AddPart kAddPart[kMost + 1] = {nullptr,     add_part<1>, add_part<2>, add_part<3>,
                                         add_part<4>, add_part<5>, add_part<6>};

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
  static thread_local std::vector<float> kept;
  kept.resize((rows < kBlock ? rows : kBlock) * size);
  float* gathered = kept.data();
#pragma omp parallel num_threads(threads)
  {
    const int64_t mine = omp_get_thread_num(), everyone = omp_get_num_threads();
    alignas(64) float sums[kBlock * kOuts];
    const int64_t begin = count * mine / everyone, end = count * (mine + 1) / everyone;
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t left = rows - first < kBlock ? rows - first : kBlock;
      const int64_t parts = (left + kMost - 1) / kMost, most = (left + parts - 1) / parts;  // alike: 8 rows are 4 and 4
#pragma omp for schedule(static)
      for (int64_t start = 0; start < left; start += most) {
        const int64_t held = left - start < most ? left - start : most;
        float* at = gathered + start * size;
        for (int64_t r = 0; r < held; r++)
          for (int64_t i = 0; i < size; i++) at[i * held + r] = to_float(from[(first + start + r) * x_stride + i]);
      }
      const int64_t depth = left <= kMost ? size : kDepth;
      for (int64_t panel = begin; panel < end; panel++) {
        std::memset(sums, 0, left * kOuts * sizeof(float));
        for (int64_t k = 0; k < size; k += depth)
          for (int64_t start = 0; start < left; start += most) {
            const int64_t held = left - start < most ? left - start : most;
            kAddPart[held](gathered + start * size + k * held, words + (panel * size + k) * W,
                           size - k < depth ? size - k : depth, sums + start * kOuts);
          }
        put_sums(sums, to, first, left, panel * kOuts);
      }
#pragma omp barrier
    }
  }
}

}  // extern "C"
#pragma GCC visibility pop
