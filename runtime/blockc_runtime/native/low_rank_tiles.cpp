// Low-rank terms of prompts by the tiles that AMX multiplies.

#include "low_rank.h"
#include "tiles.h"

#ifdef __AMX_BF16__

namespace blockc {
namespace {

constexpr int64_t kSpan = 64;  // tokens of one fine-tune that are multiplied by tiles at a time

// Rows k of a matrix, 16 columns of each, as a tile: pairs of rows side by side. What is not there is zero.
void pair_rows(const bf16* from, int64_t stride, int64_t rows, int64_t columns, bf16* tile) {
  const __mmask16 mask = columns < kRows ? (1u << columns) - 1 : 0xffff;
  auto row = [&](int64_t k) {
    return k < rows ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + k * stride)) : _mm512_setzero_si512();
  };
  for (int64_t k = 0; k < kInputs; k += 2)
    _mm512_store_si512(tile + k * kRows, _mm512_or_si512(row(k), _mm512_slli_epi32(row(k + 1), 16)));
}

// out [M * 16, 16] = x A, `steps` tiles along what is summed. x has its tiles `x_step` apart from 16 rows to the next.
template <int M, class Right>
void product(const bf16* x, int64_t x_step, int64_t steps, Right right, float* out, int64_t out_stride) {
  if constexpr (M > 0) _tile_zero(0);
  if constexpr (M > 1) _tile_zero(1);
  if constexpr (M > 2) _tile_zero(2);
  if constexpr (M > 3) _tile_zero(3);
  for (int64_t k = 0; k < steps; k++, x += kTile) {
    _tile_loadd(6, right(k), 64);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (M > 1) {
      _tile_loadd(5, x + x_step, 64);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (M > 2) {
      _tile_loadd(4, x + 2 * x_step, 64);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (M > 3) {
      _tile_loadd(5, x + 3 * x_step, 64);
      _tile_dpbf16ps(3, 5, 6);
    }
  }
  const int64_t next = kRows * out_stride;
  _tile_stored(0, out, 4 * out_stride);
  if constexpr (M > 1) _tile_stored(1, out + next, 4 * out_stride);
  if constexpr (M > 2) _tile_stored(2, out + 2 * next, 4 * out_stride);
  if constexpr (M > 3) _tile_stored(3, out + 3 * next, 4 * out_stride);
}

// One thread's, for pieces of up to kSpan tokens.
struct Workspace {
  std::vector<bf16> x, inner, tiles;
  std::vector<float> sums;
};

template <int M>
void piece_by_tiles(const Call<bf16>& call, const Piece& piece, Workspace& work) {
  const int64_t along = (call.size + kInputs - 1) / kInputs, wide = (call.ranks + kRows - 1) / kRows * kRows;
  bf16 *x = aligned(work.x.data()), *inner = aligned(work.inner.data()), *tiles = aligned(work.tiles.data());
  float* sums = work.sums.data();
  for (int64_t m = 0; m < M; m++)
    gather(call.x + piece.first * call.x_stride, call.x_stride, piece.count, m * kRows, call.size, x + m * along * kTile,
           kTile);
  const bf16* a = call.a + piece.slot * call.size * call.ranks;
  for (int64_t n = 0; n < wide; n += kRows) {
    auto right = [&](int64_t k) {
      bf16* tile = tiles + k % 4 * kTile;
      pair_rows(a + k * kInputs * call.ranks + n, call.ranks, call.size - k * kInputs, call.ranks - n, tile);
      return tile;
    };
    product<M>(x, along * kTile, along, right, sums + n, wide);
  }
  const int64_t steps = (call.rank + kInputs - 1) / kInputs;
  alignas(64) float added[M * kRows * kRows];
  for (int64_t o = 0; o < call.output_count; o++) {
    const Output& output = call.outputs[o];
    for (int64_t row = 0; row < M * kRows; row++)
      for (int64_t k = 0; k < steps * kInputs; k += kRows) {
        const int64_t left = call.rank - k;
        const __mmask16 mask = left >= kRows ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
        const __m512 value = _mm512_maskz_loadu_ps(mask, sums + row * wide + output.rank_start + k);
        bf16* to = inner + ((row / kRows * steps + k / kInputs) * kRows + row % kRows) * kInputs + k % kInputs;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
      }
    const bf16* b = reinterpret_cast<const bf16*>(output.b) + piece.slot * call.rank * output.width;
    bf16* y = reinterpret_cast<bf16*>(output.y) + piece.first * output.y_stride;
    for (int64_t i = 0; i < output.width; i += kRows) {
      const int64_t columns = output.width - i;
      const __mmask16 mask = columns < kRows ? (1u << columns) - 1 : 0xffff;
      auto right = [&](int64_t k) {
        bf16* tile = tiles + (k + i / kRows) % 4 * kTile;
        pair_rows(b + k * kInputs * output.width + i, output.width, call.rank - k * kInputs, columns, tile);
        return tile;
      };
      product<M>(inner, steps * kTile, steps, right, added, kRows);
      for (int64_t row = 0; row < piece.count; row++) {
        bf16* at = y + row * output.y_stride + i;
        const __m512 total = _mm512_add_ps(widened(at, mask), _mm512_load_ps(added + row * kRows));
        _mm256_mask_storeu_epi16(at, mask, (__m256i)_mm512_cvtneps_pbh(total));
      }
    }
  }
}

}  // namespace

void add_spans(const Call<bf16>& call, const std::vector<Row>& rows, int threads) {
  const std::vector<Piece> pieces = in_pieces(rows, kRows, kSpan, threads);
  const int64_t along = (call.size + kInputs - 1) / kInputs, wide = (call.ranks + kRows - 1) / kRows * kRows;
#pragma omp parallel num_threads(threads)
  {
    configure();
    static thread_local Workspace work;
    work.x.resize(kSpan / kRows * along * kTile + 64);
    work.inner.resize((call.rank + kInputs) * kSpan + 64);
    work.tiles.resize(4 * kTile + 64);
    work.sums.resize(kSpan * wide);
#pragma omp for schedule(dynamic, 1)
    for (size_t p = 0; p < pieces.size(); p++) {
      const int64_t sixteens = (pieces[p].count + kRows - 1) / kRows;
      auto of = sixteens == 1   ? piece_by_tiles<1>
                : sixteens == 2 ? piece_by_tiles<2>
                : sixteens == 3 ? piece_by_tiles<3>
                                : piece_by_tiles<4>;
      of(call, pieces[p], work);
    }
    _tile_release();
  }
}

}  // namespace blockc

#endif
