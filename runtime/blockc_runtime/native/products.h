// Products of few rows, whose sums stay in registers: what attention of prompts and linears are made of.
//
// What is multiplied are words: a float, or two bfloat16 that lie side by side where an instruction multiplies and adds
// pairs. On the left one word is for all lanes, on the right each lane has its own.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <utility>

#include "vector.h"

namespace blockc {

// What values of T are multiplied as, and how many of them a word holds.
template <class T>
struct Words {
  using type = float;
  static constexpr int64_t held = 1;
};

inline void add_product(F<W>& sum, float left, F<W> right) { sum += left * right; }

inline F<W> lanes_at(const float* from) { return load<W>(from); }

#ifdef __AVX512BF16__
template <>
struct Words<bf16> {
  using type = uint32_t;
  static constexpr int64_t held = 2;
};

inline void add_product(F<W>& sum, uint32_t left, __m512i right) {
  sum = (F<W>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(left)), (__m512bh)right);
}

inline __m512i lanes_at(const uint32_t* from) { return _mm512_loadu_si512(from); }

// Two vectors of float, rounded, as pairs.
inline __m512i paired(F<W> first, F<W> second) {
  alignas(64) static const uint16_t turns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return _mm512_permutexvar_epi16(_mm512_load_si512(turns), both);
}

// 32 values of each of two rows as 32 pairs.
inline void pair_up(__m512i first, __m512i second, uint32_t* to) {
  alignas(64) static const uint16_t turns[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, _mm512_load_si512(turns), second));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(first, _mm512_load_si512(turns + 32), second));
}
#endif

// sums[r][v] += sum over i < depth of left(r, i) * right[i * step + v * apart ..]
template <int R, int V, class Word, class Left>
inline void add_products(F<W> (&sums)[R][V], Left left, const Word* right, int64_t step, int64_t apart,
                         int64_t depth) {
  for (int64_t i = 0; i < depth; i++, right += step) {
    decltype(lanes_at(right)) lanes[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) lanes[v] = lanes_at(right + v * apart);
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
      const Word word = left(r, i);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) add_product(sums[r][v], word, lanes[v]);
    }
  }
}

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
// Lanes of two rows S apart, exchanged as a transposition does it.
template <int S, size_t... I>
inline void exchange(F<W>& one, F<W>& other, std::index_sequence<I...>) {
  const F<W> first = __builtin_shufflevector(one, other, (int(I) & S ? W + int(I) - S : int(I))...);
  other = __builtin_shufflevector(one, other, (int(I) & S ? W + int(I) : int(I) + S)...);
  one = first;
}

template <int S>
inline void exchange_all(F<W>* rows) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++)
      if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_index_sequence<W>{});
    exchange_all<S / 2>(rows);
  }
}

// W rows of W words, transposed in place.
inline void transpose(F<W>* rows) { exchange_all<W / 2>(rows); }
#else
inline void transpose(F<W>* rows) {
  for (int i = 0; i < W; i++)
    for (int j = 0; j < i; j++) std::swap(((float*)(rows + i))[j], ((float*)(rows + j))[i]);
}
#endif

}  // namespace blockc
