// Products by matrices kept in tiles, on CPUs that multiply pairs of bfloat16 and have no AMX: y = x W^T + b, sums in
// float32. The layout is that of `tiles.cpp`: for each pair of inputs the pairs of 16 outputs side by side.

#include "tiles.h"

#ifdef __AVX512BF16__

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "products.h"

namespace {

using namespace blockc;

#ifndef __AMX_BF16__

constexpr int64_t kFew = 16;      // rows that are multiplied while memory is read
constexpr int64_t kBlock = 192;   // rows whose sums stay in a core's own cache
constexpr int64_t kDepth = 2048;  // pairs of inputs at a time: kMost outputs of them stay there too
constexpr int kAtOnce = 6, kMost = 4;  // rows and sixteens of outputs that fill the registers
constexpr int64_t kAheadOfAll = 16 << 10;  // bytes of all panels that are asked for before they are multiplied

struct Matrix {
  const uint32_t* tiles;
  int64_t panel;  // words of 16 outputs

  const uint32_t* at(int64_t panels, int64_t pair) const { return tiles + panels * panel + pair * kRows; }
};

struct Target {
  bf16* y;
  int64_t stride, outs;
  const bf16* bias;
};

// 16 sums of a row to where they belong, rounded once.
inline void put_sums(F<W> sums, const Target& to, int64_t row, int64_t out) {
  const __mmask16 mask = to.outs - out < kRows ? (1u << (to.outs > out ? to.outs - out : 0)) - 1 : 0xffff;
  __m512 total = (__m512)sums;
  if (to.bias) total = _mm512_add_ps(total, widened(to.bias + out, mask));
  _mm256_mask_storeu_epi16(to.y + row * to.stride + out, mask, (__m256i)_mm512_cvtneps_pbh(total));
}

// R rows by V panels of 16 outputs; `use(row, panel, sums)` gets what they yield, on top of what `from` has. AHEAD: panels
// come from memory, and the next V of them are asked for before these end.
template <int R, int V, bool AHEAD, class From, class Use>
inline void tile(const bf16* x, int64_t x_stride, const Matrix& matrix, int64_t panel, int64_t first, int64_t depth,
                 From from, Use use) {
  F<W> sums[R][V];
  const uint32_t* right = matrix.at(panel, first);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = from(r, v);
  // Steps from `begin` on, while those from `fetched` on are asked for.
  auto add = [&](int64_t begin, int64_t end, const uint32_t* fetched) {
    add_products<R, V>(
        sums,
        [&](int r, int64_t i) {
          if (AHEAD && r == 0)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) __builtin_prefetch(fetched + v * matrix.panel + i * kRows, 0, 3);
          uint32_t pair;
          std::memcpy(&pair, x + r * x_stride + 2 * (begin + i), sizeof pair);
          return pair;
        },
        right + begin * kRows, kRows, matrix.panel, end - begin);
  };
  if constexpr (AHEAD) {
    const int64_t ahead = std::min<int64_t>(depth, kAheadOfAll / V / 64), turn = depth - ahead;
    add(0, turn, right + ahead * kRows);
    add(turn, depth, right + V * matrix.panel);
  } else {
    add(0, depth, nullptr);
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) use(r, v, sums[r][v]);
}

// All of `R` rows by panels begin .. end, each of which is read once.
template <int R>
void few_rows(const bf16* x, int64_t x_stride, const Matrix& matrix, int64_t depth, const Target& to, int64_t begin,
              int64_t end) {
  constexpr int V = R > 12 ? 1 : R > 8 ? 2 : R > 6 ? 3 : 4;
  const auto zero = [](int, int) { return F<W>{}; };
  int64_t panel = begin;
  for (; panel + V <= end; panel += V)
    tile<R, V, true>(x, x_stride, matrix, panel, 0, depth, zero,
                     [&](int r, int v, F<W> sums) { put_sums(sums, to, r, (panel + v) * kRows); });
  for (; panel < end; panel++)
    tile<R, 1, true>(x, x_stride, matrix, panel, 0, depth, zero,
                     [&](int r, int, F<W> sums) { put_sums(sums, to, r, panel * kRows); });
}

using FewRows = void (*)(const bf16*, int64_t, const Matrix&, int64_t, const Target&, int64_t, int64_t);
constexpr FewRows kFewRows[kFew + 1] = {nullptr,      few_rows<1>,  few_rows<2>,  few_rows<3>,  few_rows<4>, few_rows<5>,
                                        few_rows<6>,  few_rows<7>,  few_rows<8>,  few_rows<9>,  few_rows<10>,
                                        few_rows<11>, few_rows<12>, few_rows<13>, few_rows<14>, few_rows<15>,
                                        few_rows<16>};

// A part of the inputs of R rows by V panels; `sums` [R][V * 16] go on from part to part.
template <int R, int V>
void add_part(const bf16* x, int64_t x_stride, const Matrix& matrix, int64_t panel, int64_t first, int64_t depth,
              float* sums) {
  tile<R, V, false>(
      x + 2 * first, x_stride, matrix, panel, first, depth,
      [&](int r, int v) { return load<W>(sums + (r * kMost + v) * W); },
      [&](int r, int v, F<W> own) { store<W>(sums + (r * kMost + v) * W, own); });
}

template <int V>
void many_rows(const bf16* x, int64_t x_stride, const Matrix& matrix, int64_t depth, const Target& to, int64_t row,
               int64_t rows, int64_t panel, float* sums) {
  using AddPart = void (*)(const bf16*, int64_t, const Matrix&, int64_t, int64_t, int64_t, float*);
  static constexpr AddPart add[kAtOnce + 1] = {nullptr,        add_part<1, V>, add_part<2, V>, add_part<3, V>,
                                              add_part<4, V>, add_part<5, V>, add_part<6, V>};
  const int64_t parts = (rows + kAtOnce - 1) / kAtOnce;  // alike: 20 rows are 5, 5, 5 and 5
  std::memset(sums, 0, rows * kMost * W * sizeof(float));
  for (int64_t first = 0; first < depth; first += kDepth)
    for (int64_t part = 0; part < parts; part++) {
      const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      add[end - begin](x + (row + begin) * x_stride, x_stride, matrix, panel, first, std::min(kDepth, depth - first),
                       sums + begin * kMost * W);
    }
  for (int64_t r = 0; r < rows; r++)
    for (int v = 0; v < V; v++) put_sums(load<W>(sums + (r * kMost + v) * W), to, row + r, (panel + v) * kRows);
}

void multiply(const bf16* x, int64_t x_stride, const Matrix& matrix, int64_t size, const Target& to, int64_t rows,
              int threads) {
  const int64_t depth = (size + 1) / 2, panels = (to.outs + kRows - 1) / kRows;
  static thread_local std::vector<bf16> kept;
  if (size % 2) {  // the last value has no other beside it
    kept.resize(rows * (size + 1));
    for (int64_t r = 0; r < rows; r++) {
      std::memcpy(static_cast<void*>(kept.data() + r * (size + 1)), x + r * x_stride, size * sizeof(bf16));
      kept[r * (size + 1) + size] = {0};
    }
    x = kept.data();
    x_stride = size + 1;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t begin = panels * mine / all, end = panels * (mine + 1) / all;
    if (rows <= kFew) {
      kFewRows[rows](x, x_stride, matrix, depth, to, begin, end);
    } else {
      static thread_local std::vector<float> sums;
      sums.resize(std::min(rows, kBlock) * kMost * W);
      for (int64_t row = 0; row < rows; row += kBlock) {
        const int64_t left = std::min(kBlock, rows - row);
        int64_t panel = begin;
        for (; panel + kMost <= end; panel += kMost)
          many_rows<kMost>(x, x_stride, matrix, depth, to, row, left, panel, sums.data());
        for (; panel < end; panel++) many_rows<1>(x, x_stride, matrix, depth, to, row, left, panel, sums.data());
      }
    }
  }
}

#endif

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// matrix [outs, size] -> outputs `first ..` of tiles, whose padding is zero already. `size` pads to 32.
void blockc_to_tiles(const void* matrix, void* tiles, int64_t first, int64_t outs, int64_t size) {
  const bf16* from = static_cast<const bf16*>(matrix);
  bf16* to = static_cast<bf16*>(tiles);
  const int64_t along = (size + kInputs - 1) / kInputs;
#pragma omp parallel for schedule(static)
  for (int64_t out = 0; out < outs; out++) {
    const int64_t at = first + out;
    bf16* row = to + at / kRows * along * kTile + at % kRows * 2;
    for (int64_t i = 0; i < size; i++)
      row[i / kInputs * kTile + i % kInputs / 2 * 2 * kRows + i % 2] = from[out * size + i];
  }
}

#ifndef __AMX_BF16__
// x [rows, size], tiles of [outs, size], bias [outs] or null -> y [rows, outs].
void blockc_by_tiles(const void* x, int64_t x_stride, const void* tiles, const void* bias, void* y, int64_t y_stride,
                     int64_t rows, int64_t outs, int64_t size, int threads) {
  multiply((const bf16*)x, x_stride, {(const uint32_t*)tiles, (size + kInputs - 1) / kInputs * kTile / 2}, size,
           {(bf16*)y, y_stride, outs, (const bf16*)bias}, rows, threads);
}
#endif

}  // extern "C"
#pragma GCC visibility pop

#endif
