// The low-rank terms of many fine-tunes at linears that read one value: y += (x A) B, each row with its own A and B.

#include <vector>

#include "vector.h"

namespace {

using namespace blockc;

constexpr int kTokens = 4;        // tokens of one fine-tune that share a read of its matrices
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
void low_rank(const T* x, int64_t x_stride, int64_t size, const T* a, int64_t ranks, int64_t rank, const Row* rows,
              int64_t row_count, const Output* outputs, int64_t output_count, int threads) {
  std::vector<Piece> pieces;
  for (int64_t r = 0; r < row_count; r++)
    for (int32_t done = 0; done < rows[r].count; done += kTokens) {
      const int32_t left = rows[r].count - done;
      pieces.push_back({rows[r].first + done, left < kTokens ? left : kTokens, rows[r].slot});
    }
  const int64_t count = int64_t(pieces.size());
  // Few rows: several threads share the sum over what is read.
  const int64_t splits = count >= 2 * threads ? 1 : (2 * threads + count - 1) / count;
  const int64_t part = (size + splits - 1) / splits;
  int64_t chunks = 0;
  for (int64_t o = 0; o < output_count; o++) chunks += (outputs[o].width + kColumns - 1) / kColumns;
  std::vector<float> inner(count * splits * kTokens * ranks);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(kTokens * part);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < count * splits; item++) {
      const Piece& piece = pieces[item / splits];
      const int64_t start = item % splits * part, stop = start + part < size ? start + part : size;
      float* to = inner.data() + item * kTokens * ranks;
      if (start >= stop) {
        std::memset(to, 0, sizeof(float) * kTokens * ranks);
        continue;
      }
      const int64_t length = stop - start;
      for (int t = 0; t < piece.count; t++) {
        const T* from = x + (piece.first + t) * x_stride + start;
        for (int64_t i = 0; i < length; i++) wide[t * part + i] = to_float(from[i]);
      }
      const T* own = a + (piece.slot * size + start) * ranks;
      if (item + 1 < count * splits) {
        const int64_t next = (item + 1) / splits;
        fetch(a + (pieces[next].slot * size + (item + 1) % splits * part) * ranks, kAhead);
      }
      if (piece.count == kTokens)
        inner_of<T, kTokens>(wide.data(), part, own, ranks, length, to, ranks);
      else
        for (int t = 0; t < piece.count; t++)
          inner_of<T, 1>(wide.data() + t * part, part, own, ranks, length, to + t * ranks, ranks);
    }
    if (splits > 1) {
#pragma omp for schedule(static)
      for (int64_t p = 0; p < count; p++) {
        float* to = inner.data() + p * splits * kTokens * ranks;
        for (int64_t s = 1; s < splits; s++)
          for (int64_t i = 0; i < pieces[p].count * ranks; i++) to[i] += to[s * kTokens * ranks + i];
      }
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < count * chunks; item++) {
      const int64_t p = item / chunks;
      int64_t chunk = item % chunks, o = 0;
      for (; chunk >= (outputs[o].width + kColumns - 1) / kColumns; o++)
        chunk -= (outputs[o].width + kColumns - 1) / kColumns;
      const Piece& piece = pieces[p];
      const Output& output = outputs[o];
      const int64_t start = chunk * kColumns;
      const int64_t width = output.width - start < kColumns ? output.width - start : kColumns;
      const float* own = inner.data() + p * splits * kTokens * ranks + output.rank_start;
      const T* b = (const T*)output.b + piece.slot * rank * output.width + start;
      T* y = (T*)output.y + piece.first * output.y_stride + start;
      for (int64_t r = 8; r < 16 && r < rank; r++) fetch(b + r * output.width, 512);
      if (piece.count == kTokens)
        add_outer<T, kTokens>(y, output.y_stride, own, ranks, b, output.width, rank, width);
      else
        for (int t = 0; t < piece.count; t++)
          add_outer<T, 1>(y + t * output.y_stride, output.y_stride, own + t * ranks, ranks, b, output.width, rank,
                          width);
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// x [tokens, size]; a [slots, size, ranks]; each output: y [tokens, width], b [slots, rank, width].
void blockc_low_rank(int dtype, const void* x, int64_t x_stride, int64_t size, const void* a, int64_t ranks,
                     int64_t rank, const void* rows, int64_t row_count, const void* outputs, int64_t output_count,
                     int threads) {
  if (row_count)
    BLOCKC_DISPATCH(dtype, low_rank((const T*)x, x_stride, size, (const T*)a, ranks, rank, (const Row*)rows, row_count,
                                    (const Output*)outputs, output_count, threads));
}

}  // extern "C"
#pragma GCC visibility pop
