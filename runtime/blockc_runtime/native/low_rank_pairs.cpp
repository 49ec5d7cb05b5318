// Low-rank terms of prompts on CPUs that multiply pairs of bfloat16 and have no AMX.
//
// A and B lie row by row; a piece of some fine-tune's tokens puts two rows side by side first, A once, B 64 outputs at a
// time, which stay in the first cache while its tokens pass.

#include <algorithm>

#include "low_rank.h"
#include "products.h"
#include "tiles.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

namespace blockc {
namespace {

constexpr int64_t kSpan = 128;  // tokens at a time
constexpr int kMost = 4;        // registers of ranks or outputs at a time

// One thread's: A in pairs [size / 2][wide], what it gives [kSpan][wide], 64 outputs of B in pairs.
struct Workspace {
  std::vector<uint32_t> a, b;
  std::vector<bf16> inner;
};

inline __mmask16 mask_of(int64_t columns) { return columns >= W ? 0xffff : columns > 0 ? (1u << columns) - 1 : 0; }

// Rows 2 i and 2 i + 1 of [2 pairs, columns], `stride` apart, side by side; `wide` columns, of zeros beyond what there is.
void pair_rows(const bf16* from, int64_t stride, int64_t pairs, int64_t columns, int64_t wide, uint32_t* to) {
  for (int64_t i = 0; i < pairs; i++, from += 2 * stride)
    for (int64_t c = 0; c < wide; c += W, to += W) {
      const __mmask16 mask = mask_of(columns - c);
      const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + c));
      const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + stride + c));
      _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
}

// sums of R tokens by V registers of columns, from pairs of what is on the left; `left` rows are `left_stride` apart.
template <int R, int V>
inline void product(F<W> (&sums)[R][V], const bf16* left, int64_t left_stride, const uint32_t* right, int64_t step,
                    int64_t depth) {
  add_products<R, V>(
      sums,
      [&](int r, int64_t i) {
        uint32_t pair;
        std::memcpy(&pair, left + r * left_stride + 2 * i, sizeof pair);
        return pair;
      },
      right, step, W, depth);
}

template <int R, int V>
void inner_of(const bf16* x, int64_t x_stride, const uint32_t* a, int64_t wide, int64_t depth, bf16* inner) {
  F<W> sums[R][V] = {};
  product<R, V>(sums, x, x_stride, a, wide, depth);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      _mm256_storeu_si256((__m256i*)(inner + r * wide + v * W), (__m256i)_mm512_cvtneps_pbh((__m512)sums[r][v]));
}

template <int R, int V>
void add_outer(bf16* y, int64_t y_stride, int64_t columns, const bf16* inner, int64_t inner_stride, const uint32_t* b,
               int64_t depth) {
  F<W> sums[R][V];
  // Of the next tokens: rows of outputs lie too far apart for the hardware to see what is read next.
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v += 2) __builtin_prefetch(y + (R + r) * y_stride + v * W, 1, 3);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = (F<W>)widened(y + r * y_stride + v * W, mask_of(columns - v * W));
  product<R, V>(sums, inner, inner_stride, b, kMost * W, depth);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      _mm256_mask_storeu_epi16(y + r * y_stride + v * W, mask_of(columns - v * W),
                               (__m256i)_mm512_cvtneps_pbh((__m512)sums[r][v]));
}

// Calls `use` with R of `count` tokens at a time, and then one by one.
template <int R, class Use>
inline void by_tokens(int64_t count, Use use) {
  int64_t done = 0;
  for (; done + R <= count; done += R) use(done, std::integral_constant<int, R>{});
  for (; done < count; done++) use(done, std::integral_constant<int, 1>{});
}

template <int V>
void all_inner(const Call<bf16>& call, const Piece& piece, const uint32_t* a, int64_t wide, bf16* inner) {
  constexpr int R = V == 1 ? 12 : V == 2 ? 12 : V == 3 ? 8 : 6;  // enough sums to hide the latency of adding
  by_tokens<R>(piece.count, [&](int64_t token, auto rows) {
    inner_of<decltype(rows)::value, V>(call.x + (piece.first + token) * call.x_stride, call.x_stride, a, wide,
                                       call.size / 2, inner + token * wide);
  });
}

void add_piece(const Call<bf16>& call, const Piece& piece, Workspace& work) {
  const int64_t wide = (call.ranks + W - 1) / W * W, pairs = call.rank / 2;
  pair_rows(call.a + piece.slot * call.size * call.ranks, call.ranks, call.size / 2, call.ranks, wide, work.a.data());
  for (int64_t v = 0; v < wide; v += kMost * W) {
    auto of = wide - v >= 4 * W ? all_inner<4> : wide - v >= 3 * W ? all_inner<3>
            : wide - v >= 2 * W ? all_inner<2>                     : all_inner<1>;
    of(call, piece, work.a.data() + v, wide, work.inner.data() + v);
  }
  for (int64_t o = 0; o < call.output_count; o++) {
    const Output& output = call.outputs[o];
    const bf16* b = b_of(call, piece, output);
    for (int64_t c = 0; c < output.width; c += kMost * W) {
      pair_rows(b + c, output.width, pairs, output.width - c, kMost * W, work.b.data());
      bf16* y = reinterpret_cast<bf16*>(output.y) + piece.first * output.y_stride + c;
      by_tokens<6>(piece.count, [&](int64_t token, auto rows) {
        add_outer<decltype(rows)::value, kMost>(y + token * output.y_stride, output.y_stride, output.width - c,
                                                work.inner.data() + token * wide + output.rank_start, wide,
                                                work.b.data(), pairs);
      });
    }
  }
}

}  // namespace

void add_spans(const Call<bf16>& call, const std::vector<Row>& rows, int threads) {
  const std::vector<Piece> pieces = in_pieces(rows, 6, kSpan, threads);
  const int64_t wide = (call.ranks + W - 1) / W * W;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Workspace work;
    work.a.resize(call.size / 2 * wide);
    work.b.resize(call.rank / 2 * kMost * W);
    work.inner.resize(kSpan * wide);
#pragma omp for schedule(dynamic, 1)
    for (size_t p = 0; p < pieces.size(); p++) add_piece(call, pieces[p], work);
  }
}

}  // namespace blockc

#endif
