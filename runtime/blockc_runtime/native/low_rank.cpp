// The low-rank terms of many fine-tunes at linears that read one value: y += (x A) B, each row with its own A and B.

#include <algorithm>
#include <functional>
#include <iterator>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "low_rank.h"

namespace {

using namespace blockc;

constexpr int kTokens = 4;         // tokens of one fine-tune that share a read of a register of its matrices
constexpr int kPiece = 32;         // those that share its matrices while a core's own cache has them
constexpr int64_t kColumns = 2048;  // outputs that one thread does at a time: long streams of B
constexpr int64_t kBlock = 512;     // of them that stay in the nearest cache with several tokens

template <class T>
void widen(const T* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + W <= size; i += W) store<W>(to + i, load<W>(from + i));
  for (; i < size; i++) to[i] = to_float(from[i]);
}

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
  constexpr int64_t most = kBlock;
  alignas(64) float sums[TOKENS * most];
  for (int64_t start = 0; start < width; start += most) {
    const int64_t size = width - start < most ? width - start : most;
    for (int t = 0; t < TOKENS; t++)
      widen(y + t * y_stride + start, size, sums + t * most);
    for (int64_t r = 0; r < rank; r += 8)
      add_rows<T, 8, TOKENS>(sums, most, inner + r, inner_stride, b + r * stride + start, stride, size);
    for (int t = 0; t < TOKENS; t++)
      for (int64_t i = 0; i < size; i++) put(y + t * y_stride + start + i, sums[t * most + i]);
  }
}

// sums[0 .. width) += inner B for one token, R rows of B at a time.
template <class T, int R>
inline void add_rows_of_one(float* sums, const float* inner, const T* b, int64_t stride, int64_t width) {
  int64_t i = 0;
  for (; i + 2 * W <= width; i += 2 * W) {
    F<W> low = load<W>(sums + i), high = load<W>(sums + i + W);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const T* at = b + r * stride + i;
      fetch(at + kAhead / sizeof(T), 2 * W * sizeof(T));
      low += load<W>(at) * inner[r];
      high += load<W>(at + W) * inner[r];
    }
    store<W>(sums + i, low);
    store<W>(sums + i + W, high);
  }
  for (; i < width; i++)
    for (int r = 0; r < R; r++) sums[i] += to_float(b[r * stride + i]) * inner[r];
}

// y[0 .. width) += inner B for one token, B as it lies: two rows at a time where they are short. `next`: what is read
// after it.
template <class T>
void add_outer_of_one(T* y, const float* inner, const T* b, int64_t stride, int64_t rank, int64_t width,
                      const void* next) {
  constexpr int64_t most = 2 * kColumns, is_short = 1024;
  alignas(64) float sums[most];
  for (int64_t start = 0; start < width; start += most) {
    const int64_t size = width - start < most ? width - start : most;
    const bool is_last = start + most >= width;
    widen(y + start, size, sums);
    for (int64_t r = 0; r < rank; r += 8) {
      const T* rows = b + r * stride + start;
      if (is_last && r + 8 >= rank && next) fetch(next, kAhead);
      if (size > is_short)
        add_rows_of_one<T, 8>(sums, inner + r, rows, stride, size);
      else
        for (int64_t k = 0; k < 8; k += 2)
          add_rows_of_one<T, 2>(sums, inner + r + k, rows + k * stride, stride, size);
    }
    int64_t i = 0;
    for (; i + W <= size; i += W) store<W>(y + start + i, load<W>(sums + i));
    for (; i < size; i++) put(y + start + i, sums[i]);
  }
}

// What A gives for inputs start .. stop of the tokens of a piece; `wide` is scratch for kTokens of them in float32.
template <class T>
void inner_of_piece(const Call<T>& call, const Piece& piece, int64_t start, int64_t stop, float* wide, float* inner) {
  const int64_t length = stop - start;
  const T* own = call.a + (piece.slot * call.size + start) * call.ranks;
  for (int done = 0; done < piece.count; done += kTokens, inner += kTokens * call.ranks) {
    const int count = piece.count - done < kTokens ? piece.count - done : kTokens;
    for (int t = 0; t < count; t++) {
      const T* from = call.x + (piece.first + done + t) * call.x_stride + start;
      widen(from, length, wide + t * length);
    }
    if (count == kTokens)
      inner_of<T, kTokens>(wide, length, own, call.ranks, length, inner, call.ranks);
    else
      for (int t = 0; t < count; t++)
        inner_of<T, 1>(wide + t * length, length, own, call.ranks, length, inner + t * call.ranks, call.ranks);
  }
}

// Adds to columns start .. stop of an output of a piece. `next`: what is read after it.
template <class T>
void add_to_output(const Call<T>& call, const Piece& piece, const Output& output, int64_t start, int64_t stop,
                   const float* inner, const void* next) {
  const T* b = b_of(call, piece, output) + start;
  T* y = reinterpret_cast<T*>(output.y) + piece.first * output.y_stride + start;
  inner += output.rank_start;
  int done = 0;
  for (; done + kTokens <= piece.count; done += kTokens)
    add_outer<T, kTokens>(y + done * output.y_stride, output.y_stride, inner + done * call.ranks, call.ranks, b,
                          output.width, call.rank, stop - start);
  for (; done < piece.count; done++)
    add_outer_of_one(y + done * output.y_stride, inner + done * call.ranks, b, output.width, call.rank, stop - start,
                     next);
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
      for (int64_t o = 0; o < call.output_count; o++) {
        const bool is_last = o + 1 == call.output_count;
        const T* next = is_last ? call.a + pieces[p + 1 < count ? p + 1 : p].slot * call.size * call.ranks
                                : b_of(call, piece, call.outputs[o + 1]);
        add_to_output(call, piece, call.outputs[o], 0, call.outputs[o].width, inner.data(), next);
      }
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
                    inner.data() + p * splits * each, nullptr);
    }
  }
}

template <class T>
void low_rank(const Call<T>& call, const Row* rows, int64_t row_count, int threads) {
  std::vector<Row> few(rows, rows + row_count);
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    std::vector<Row> many;
    auto is_few = [&](const Row& row) { return row.count < kSpanFrom || (kSpansAreEven && call.size % 2); };
    std::copy_if(few.begin(), few.end(), std::back_inserter(many), std::not_fn(is_few));
    few.erase(std::remove_if(few.begin(), few.end(), std::not_fn(is_few)), few.end());
    if (!many.empty()) add_spans(call, many, threads);
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

#ifdef __AVX512BF16__
std::vector<Piece> blockc::in_pieces(const std::vector<Row>& rows, int64_t each, int64_t most, int threads) {
  int64_t tokens = 0;
  for (const Row& row : rows) tokens += row.count;
  most = std::min(most, ((tokens + threads - 1) / threads + each - 1) / each * each);
  std::vector<Piece> pieces;
  for (const Row& row : rows)
    for (int64_t done = 0; done < row.count; done += most)
      pieces.push_back({row.first + done, int32_t(std::min(most, row.count - done)), row.slot});
  return pieces;
}
#endif

#pragma GCC visibility push(default)
extern "C" {

// x [tokens, size]; a [slots, size, ranks]; each output: y [tokens, width], so many bytes behind `y`, and
// b [slots, rank, width].
void blockc_low_rank(int dtype, const void* x, int64_t x_stride, int64_t size, const void* a, int64_t ranks,
                     int64_t rank, const void* rows, int64_t row_count, void* y, const void* outputs,
                     int64_t output_count, int threads) {
  std::vector<Output> placed((const Output*)outputs, (const Output*)outputs + output_count);
  for (Output& output : placed) output.y += reinterpret_cast<int64_t>(y);
  if (row_count)
    BLOCKC_DISPATCH(dtype, low_rank<T>({(const T*)x, x_stride, size, (const T*)a, ranks, rank, placed.data(),
                                        output_count},
                                       (const Row*)rows, row_count, threads));
}

}  // extern "C"
#pragma GCC visibility pop
