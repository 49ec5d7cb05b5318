// The low-rank terms of many fine-tunes at linears that read one value: y += (x A) B, each row with its own A and B.

#include <algorithm>
#include <functional>
#include <iterator>
#include <type_traits>
#include <vector>

#include "tiles.h"

namespace {

using namespace blockc;

constexpr int kTokens = 4;         // tokens of one fine-tune that share a read of a register of its matrices
constexpr int kPiece = 32;         // those that share its matrices while a core's own cache has them
constexpr int64_t kColumns = 2048;  // outputs that one thread does at a time: long streams of B
constexpr int64_t kBlock = 512;     // of them that stay in the nearest cache with several tokens

struct Row {
  int32_t first, count, slot;
};

struct Output {
  int64_t y, y_stride, b, width, rank_start;  // y and b are addresses
};

struct Piece {
  int64_t first;
  int32_t count, slot;
};

// inner[t][0 .. V * N) = sum over i of x[t][i] A[i][...]; `ranks` is the length of a row of A.
template <class T, int N, int V, int TOKENS>
inline void inner_products(const float* x, int64_t x_stride, const T* a, int64_t ranks, int64_t size, float* inner,
                           int64_t inner_stride) {
  constexpr int U = TOKENS * V >= 4 ? 1 : 4 / (TOKENS * V);  // independent sums hide the latency of adding
  F<N> sums[U][TOKENS][V] = {};
  int64_t i = 0;
  for (; i + U <= size; i += U) {
    fetch(a + i * ranks + kAhead / sizeof(T), U * V * N * sizeof(T));
    for (int u = 0; u < U; u++)
      for (int v = 0; v < V; v++) {
        F<N> weight = load<N>(a + (i + u) * ranks + v * N);
        for (int t = 0; t < TOKENS; t++) sums[u][t][v] += weight * x[t * x_stride + i + u];
      }
  }
  for (; i < size; i++)
    for (int v = 0; v < V; v++) {
      F<N> weight = load<N>(a + i * ranks + v * N);
      for (int t = 0; t < TOKENS; t++) sums[0][t][v] += weight * x[t * x_stride + i];
    }
  for (int t = 0; t < TOKENS; t++)
    for (int v = 0; v < V; v++) {
      F<N> total = sums[0][t][v];
      for (int u = 1; u < U; u++) total += sums[u][t][v];
      store<N>(inner + t * inner_stride + v * N, total);
    }
}

template <class T, int N, int TOKENS>
void all_inner(const float* x, int64_t x_stride, const T* a, int64_t ranks, int64_t size, float* inner,
               int64_t inner_stride) {
  int64_t r = 0;
  for (; r + 4 * N <= ranks; r += 4 * N)
    inner_products<T, N, 4, TOKENS>(x, x_stride, a + r, ranks, size, inner + r, inner_stride);
  switch ((ranks - r) / N) {
    case 3:
      inner_products<T, N, 3, TOKENS>(x, x_stride, a + r, ranks, size, inner + r, inner_stride);
      break;
    case 2:
      inner_products<T, N, 2, TOKENS>(x, x_stride, a + r, ranks, size, inner + r, inner_stride);
      break;
    case 1:
      inner_products<T, N, 1, TOKENS>(x, x_stride, a + r, ranks, size, inner + r, inner_stride);
      break;
  }
}

template <class T, int TOKENS>
void inner_of(const float* x, int64_t x_stride, const T* a, int64_t ranks, int64_t size, float* inner,
              int64_t inner_stride) {
  if (ranks % W == 0)
    all_inner<T, W, TOKENS>(x, x_stride, a, ranks, size, inner, inner_stride);
  else
    all_inner<T, 8, TOKENS>(x, x_stride, a, ranks, size, inner, inner_stride);
}

// sums[t][0 .. width) += inner[t] B, R rows of B [rank, stride] at a time: each is read as one stream.
template <class T, int R, int TOKENS>
inline void add_rows(float* sums, int64_t sums_stride, const float* inner, int64_t inner_stride, const T* b,
                     int64_t stride, int64_t width) {
  int64_t i = 0;
  for (; i + W <= width; i += W) {
    F<W> rows[R];
    for (int r = 0; r < R; r++) {
      fetch(b + r * stride + i + kAhead / 8 / sizeof(T), W * sizeof(T));
      rows[r] = load<W>(b + r * stride + i);
    }
    for (int t = 0; t < TOKENS; t++) {
      F<W> total = load<W>(sums + t * sums_stride + i);
      for (int r = 0; r < R; r++) total += rows[r] * inner[t * inner_stride + r];
      store<W>(sums + t * sums_stride + i, total);
    }
  }
  for (; i < width; i++)
    for (int t = 0; t < TOKENS; t++)
      for (int r = 0; r < R; r++)
        sums[t * sums_stride + i] += to_float(b[r * stride + i]) * inner[t * inner_stride + r];
}

// y[t][0 .. width) += inner[t] B, rank a multiple of 8.
template <class T, int TOKENS>
void add_outer(T* y, int64_t y_stride, const float* inner, int64_t inner_stride, const T* b, int64_t stride,
               int64_t rank, int64_t width) {
  constexpr int64_t most = TOKENS > 1 ? kBlock : kColumns;
  alignas(64) float sums[TOKENS * most];
  for (int64_t start = 0; start < width; start += most) {
    const int64_t size = width - start < most ? width - start : most;
    for (int t = 0; t < TOKENS; t++)
      for (int64_t i = 0; i < size; i++) sums[t * most + i] = to_float(y[t * y_stride + start + i]);
    for (int64_t r = 0; r < rank; r += 8)
      add_rows<T, 8, TOKENS>(sums, most, inner + r, inner_stride, b + r * stride + start, stride, size);
    for (int t = 0; t < TOKENS; t++)
      for (int64_t i = 0; i < size; i++) put(y + t * y_stride + start + i, sums[t * most + i]);
  }
}

template <class T>
struct Call {
  const T* x;
  int64_t x_stride, size;
  const T* a;
  int64_t ranks, rank;
  const Output* outputs;
  int64_t output_count;
};

// What A gives for inputs start .. stop of the tokens of a piece; `wide` is scratch for kTokens of them in float32.
template <class T>
void inner_of_piece(const Call<T>& call, const Piece& piece, int64_t start, int64_t stop, float* wide, float* inner) {
  const int64_t length = stop - start;
  const T* own = call.a + (piece.slot * call.size + start) * call.ranks;
  for (int done = 0; done < piece.count; done += kTokens, inner += kTokens * call.ranks) {
    const int count = piece.count - done < kTokens ? piece.count - done : kTokens;
    for (int t = 0; t < count; t++) {
      const T* from = call.x + (piece.first + done + t) * call.x_stride + start;
      for (int64_t i = 0; i < length; i++) wide[t * length + i] = to_float(from[i]);
    }
    if (count == kTokens)
      inner_of<T, kTokens>(wide, length, own, call.ranks, length, inner, call.ranks);
    else
      for (int t = 0; t < count; t++)
        inner_of<T, 1>(wide + t * length, length, own, call.ranks, length, inner + t * call.ranks, call.ranks);
  }
}

// Adds to columns start .. stop of an output of a piece.
template <class T>
void add_to_output(const Call<T>& call, const Piece& piece, const Output& output, int64_t start, int64_t stop,
                   const float* inner) {
  const T* b = reinterpret_cast<const T*>(output.b) + piece.slot * call.rank * output.width + start;
  T* y = reinterpret_cast<T*>(output.y) + piece.first * output.y_stride + start;
  inner += output.rank_start;
  int done = 0;
  for (; done + kTokens <= piece.count; done += kTokens)
    add_outer<T, kTokens>(y + done * output.y_stride, output.y_stride, inner + done * call.ranks, call.ranks, b,
                          output.width, call.rank, stop - start);
  for (; done < piece.count; done++)
    add_outer<T, 1>(y + done * output.y_stride, output.y_stride, inner + done * call.ranks, call.ranks, b,
                    output.width, call.rank, stop - start);
}

// Each thread takes whole pieces: no thread waits for another between A and B.
template <class T>
void many_pieces(const Call<T>& call, const std::vector<Piece>& pieces, int threads) {
  const int64_t count = int64_t(pieces.size());
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(kTokens * call.size), inner(kPiece * call.ranks);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < count; p++) {
      const Piece& piece = pieces[p];
      inner_of_piece(call, piece, 0, call.size, wide.data(), inner.data());
      for (int64_t o = 0; o < call.output_count; o++)
        add_to_output(call, piece, call.outputs[o], 0, call.outputs[o].width, inner.data());
    }
  }
}

// Threads share the inputs and then the outputs of a piece.
template <class T>
void few_pieces(const Call<T>& call, const std::vector<Piece>& pieces, int threads) {
  const int64_t count = int64_t(pieces.size()), splits = (2 * threads + count - 1) / count;
  const int64_t part = (call.size + splits - 1) / splits, each = kPiece * call.ranks;
  int64_t chunks = 0;
  for (int64_t o = 0; o < call.output_count; o++) chunks += (call.outputs[o].width + kColumns - 1) / kColumns;
  std::vector<float> inner(count * splits * each);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(kTokens * part);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < count * splits; item++) {
      const int64_t start = item % splits * part, stop = start + part < call.size ? start + part : call.size;
      if (start < stop)
        inner_of_piece(call, pieces[item / splits], start, stop, wide.data(), inner.data() + item * each);
    }
#pragma omp for schedule(static)
    for (int64_t p = 0; p < count; p++)
      for (int64_t s = 1; s < splits; s++)
        for (int64_t i = 0; i < pieces[p].count * call.ranks; i++)
          inner[p * splits * each + i] += inner[(p * splits + s) * each + i];
#pragma omp for schedule(static)
    for (int64_t item = 0; item < count * chunks; item++) {
      const int64_t p = item / chunks;
      int64_t chunk = item % chunks, o = 0;
      for (; chunk >= (call.outputs[o].width + kColumns - 1) / kColumns; o++)
        chunk -= (call.outputs[o].width + kColumns - 1) / kColumns;
      const int64_t start = chunk * kColumns, width = call.outputs[o].width;
      add_to_output(call, pieces[p], call.outputs[o], start, start + kColumns < width ? start + kColumns : width,
                    inner.data() + p * splits * each);
    }
  }
}

#ifdef __AMX_BF16__

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

// Rows of many tokens; what A gives is rounded to bfloat16, as torch does.
void spans_by_tiles(const Call<bf16>& call, const std::vector<Row>& rows, int threads) {
  int64_t tokens = 0;
  for (const Row& row : rows) tokens += row.count;
  const int64_t each = ((tokens + threads - 1) / threads + kRows - 1) / kRows * kRows, most = each < kSpan ? each : kSpan;
  std::vector<Piece> pieces;
  for (const Row& row : rows)
    for (int64_t done = 0; done < row.count; done += most) {
      const int64_t left = row.count - done;
      pieces.push_back({row.first + done, int32_t(left < most ? left : most), row.slot});
    }
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

#endif

template <class T>
void low_rank(const Call<T>& call, const Row* rows, int64_t row_count, int threads) {
  std::vector<Row> few(rows, rows + row_count);
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    std::vector<Row> many;
    auto is_few = [](const Row& row) { return row.count < kRows; };
    std::copy_if(few.begin(), few.end(), std::back_inserter(many), std::not_fn(is_few));
    few.erase(std::remove_if(few.begin(), few.end(), std::not_fn(is_few)), few.end());
    if (!many.empty()) spans_by_tiles(call, many, threads);
  }
#endif
  std::vector<Piece> pieces;
  for (const Row& row : few)
    for (int32_t done = 0; done < row.count; done += kPiece) {
      const int32_t left = row.count - done;
      pieces.push_back({row.first + done, left < kPiece ? left : kPiece, row.slot});
    }
  if (pieces.empty()) return;
  if (int64_t(pieces.size()) >= 2 * threads)
    many_pieces(call, pieces, threads);
  else
    few_pieces(call, pieces, threads);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// x [tokens, size]; a [slots, size, ranks]; each output: y [tokens, width], b [slots, rank, width].
void blockc_low_rank(int dtype, const void* x, int64_t x_stride, int64_t size, const void* a, int64_t ranks,
                     int64_t rank, const void* rows, int64_t row_count, const void* outputs, int64_t output_count,
                     int threads) {
  if (row_count)
    BLOCKC_DISPATCH(dtype, low_rank<T>({(const T*)x, x_stride, size, (const T*)a, ranks, rank, (const Output*)outputs,
                                        output_count},
                                       (const Row*)rows, row_count, threads));
}

}  // extern "C"
#pragma GCC visibility pop
