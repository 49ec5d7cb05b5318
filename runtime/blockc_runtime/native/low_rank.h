// What kernels of low-rank terms have in common.

#pragma once

#include <vector>

#include "vector.h"

namespace blockc {

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

template <class T>
struct Call {
  const T* x;
  int64_t x_stride, size;
  const T* a;
  int64_t ranks, rank;
  const Output* outputs;
  int64_t output_count;
};

template <class T>
inline const T* b_of(const Call<T>& call, const Piece& piece, const Output& output) {
  return reinterpret_cast<const T*>(output.b) + piece.slot * call.rank * output.width;
}

#ifdef __AVX512BF16__
// Tokens of one fine-tune from which on its matrices are put in order before they multiply.
#ifdef __AMX_BF16__
constexpr int64_t kSpanFrom = 16;
constexpr bool kSpansAreEven = false;
#else
constexpr int64_t kSpanFrom = 6;
constexpr bool kSpansAreEven = true;  // in what they read
#endif

// Rows of many tokens; what A gives is rounded to bfloat16, as torch does.
void add_spans(const Call<bf16>& call, const std::vector<Row>& rows, int threads);

// Rows in pieces of up to `most` tokens, a multiple of `each`; shorter ones where threads would be idle.
std::vector<Piece> in_pieces(const std::vector<Row>& rows, int64_t each, int64_t most, int threads);
#endif

}  // namespace blockc
