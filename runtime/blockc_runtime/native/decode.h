// Products of one query, or of those that share a KV head, with the keys and values of some consecutive positions.
//
// Keys and values lie `stride` apart. Sums are float32; where an instruction multiplies pairs of bfloat16, queries stay
// bfloat16 and weights are rounded to it, as those of prompts are.

#pragma once

#include <algorithm>

#include "narrow.h"
#include "products.h"

namespace blockc {

// What a query is kept as: float32, or itself where an instruction multiplies pairs of bfloat16.
template <class T>
struct Query {
  using type = float;
};

#ifdef __AVX512BF16__
template <>
struct Query<bf16> {
  using type = bf16;
};
#endif

#ifdef __AVX512F__
// Keys of which sums are made side by side.
constexpr int64_t kTogether = 16;

// The sums of 16 vectors side by side: two shuffles and an addition for each but one of them.
inline F<W> together(const F<W>* values) {
  // In steps that halve what is left of each vector. Which of them meet makes the order of the sums that of the vectors.
  auto halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  auto quarters = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  auto pairs = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  __m512 lanes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    lanes[i] = quarters(halves((__m512)values[i], (__m512)values[i + 4]),
                        halves((__m512)values[i + 8], (__m512)values[i + 12]));
  const __m512d even = (__m512d)pairs(lanes[0], lanes[1]), odd = (__m512d)pairs(lanes[2], lanes[3]);
  return (F<W>)_mm512_add_ps((__m512)_mm512_unpacklo_pd(even, odd), (__m512)_mm512_unpackhi_pd(even, odd));
}
#else
constexpr int64_t kTogether = 4;

template <int N>
inline F<4> four_parts(F<N> value) {
  if constexpr (N == 4) {
    return value;
  } else {
    F<N / 2> low, high;
    std::memcpy(&low, &value, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
    return four_parts<N / 2>(low + high);
  }
}

// The sums of four vectors, side by side: a third of the work of four sums.
inline F<4> together(const F<W>* values) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  F<4> p = four_parts<W>(values[0]), q = four_parts<W>(values[1]);
  F<4> r = four_parts<W>(values[2]), s = four_parts<W>(values[3]);
  F<4> pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  F<4> rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
#else
  return F<4>{sum<W>(values[0]), sum<W>(values[1]), sum<W>(values[2]), sum<W>(values[3])};
#endif
}
#endif

// sums[u] += what lanes of `q` and of the u-th of COUNT keys make.
template <int COUNT, class T>
inline void add_products(F<W>* sums, const float* q, const T* const* keys, int64_t size) {
  for (int64_t i = 0; i < size; i += W) {
    const F<W> query = load<W>(q + i);
#pragma GCC unroll 16
    for (int u = 0; u < COUNT; u++) sums[u] += query * load<W>(keys[u] + i);
  }
}

#ifdef __AVX512BF16__
template <int COUNT>
inline void add_products(F<W>* sums, const bf16* q, const bf16* const* keys, int64_t size) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + 2 * W <= size; i += 2 * W) {
    __m512bh query, key;
    std::memcpy(&query, q + i, sizeof query);
#pragma GCC unroll 16
    for (int u = 0; u < COUNT; u++) {
      std::memcpy(&key, keys[u] + i, sizeof key);
      sums[u] = (F<W>)_mm512_dpbf16_ps((__m512)sums[u], query, key);
    }
  }
  for (; i < size; i += W)
    for (int u = 0; u < COUNT; u++) sums[u] += load<W>(q + i) * load<W>(keys[u] + i);
}
#endif

// Scores of `count` keys for each query of a KV head. SIZE 0: any multiple of W. Writes up to the next multiple of
// kTogether: what stands there is of no key.
template <class T, int SIZE>
void scores_of(const typename Query<T>::type* q, int64_t queries, const T* keys, int64_t stride, int64_t count,
               int64_t size, float* scores, int64_t scores_stride) {
  if constexpr (SIZE > 0) size = SIZE;
  for (int64_t j = 0; j < count; j += kTogether) {
    const T* rows[kTogether];
    for (int64_t u = 0; u < kTogether; u++) rows[u] = keys + std::min(j + u, count - 1) * stride;
    for (int64_t g = 0; g < queries; g++) {
      F<W> sums[kTogether] = {};
      add_products<kTogether>(sums, q + g * size, rows, size);
      store<kTogether>(scores + g * scores_stride + j, together(sums));
    }
  }
}

// out[g][0 .. W * V) += sum over j of weights[g][j] * values[j] for G queries, which share a read of the values.
template <class T, int G, int V>
inline void add_weighted(const float* weights, int64_t weights_stride, const T* values, int64_t stride, int64_t count,
                         float* out, int64_t out_stride) {
  F<W> sums[G][V];
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) sums[g][v] = load<W>(out + g * out_stride + v * W);
  for (int64_t j = 0; j < count; j++)
    for (int v = 0; v < V; v++) {
      F<W> value = load<W>(values + j * stride + v * W);
      for (int g = 0; g < G; g++) sums[g][v] += weights[g * weights_stride + j] * value;
    }
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) store<W>(out + g * out_stride + v * W, sums[g][v]);
}

#ifdef __AVX512BF16__
// The same by pairs of keys, for V / 2 times 32 values. `weights`: pairs of them, side by side.
template <int G, int V>
inline void add_pairs(const uint32_t* weights, int64_t weights_stride, const bf16* values, int64_t stride, int64_t count,
                      float* out, int64_t out_stride) {
  F<W> sums[G][V];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[g][v] = load<W>(out + g * out_stride + v * W);
  for (int64_t j = 0; j < count; j += 2) {
    const bf16 *one = values + j * stride, *other = j + 1 < count ? one + stride : one;
#pragma GCC unroll 4
    for (int v = 0; v < V; v += 2) {
      alignas(64) uint32_t pairs[2 * W];
      pair_up(_mm512_loadu_si512(one + v * W), _mm512_loadu_si512(other + v * W), pairs);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        add_product(sums[g][v], weights[g * weights_stride + j / 2], _mm512_load_si512(pairs));
        add_product(sums[g][v + 1], weights[g * weights_stride + j / 2], _mm512_load_si512(pairs + W));
      }
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store<W>(out + g * out_stride + v * W, sums[g][v]);
}
#endif

template <class T, int G>
void weighted(const float* weights, int64_t weights_stride, const T* values, int64_t stride, int64_t count,
              int64_t size, float* out) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    constexpr int64_t most = 64;  // keys whose weights are rounded at a time
    for (int64_t j = 0; j < count && size >= 2 * W; j += most) {
      const int64_t some = std::min(most, count - j);
      alignas(64) uint32_t pairs[G][most / 2];
      for (int g = 0; g < G; g++)
        for (int64_t at = 0; at < some; at += W) {
          const __mmask16 mask = some - at < W ? (1u << (some - at)) - 1 : 0xffff;
          const __m512 own = _mm512_maskz_loadu_ps(mask, weights + g * weights_stride + j + at);
          _mm256_store_si256(reinterpret_cast<__m256i*>(pairs[g] + at / 2), (__m256i)_mm512_cvtneps_pbh(own));
        }
      for (i = 0; i + 4 * W <= size; i += 4 * W)
        add_pairs<G, 4>(pairs[0], most / 2, values + j * stride + i, stride, some, out + i, size);
      for (; i + 2 * W <= size; i += 2 * W)
        add_pairs<G, 2>(pairs[0], most / 2, values + j * stride + i, stride, some, out + i, size);
    }
  }
#endif
  for (; i + 4 * W <= size; i += 4 * W)
    add_weighted<T, G, 4>(weights, weights_stride, values + i, stride, count, out + i, size);
  for (; i < size; i += W) add_weighted<T, G, 1>(weights, weights_stride, values + i, stride, count, out + i, size);
}

// Scores to weights, which are still to be multiplied by what is returned. `scores` have room up to the next multiple of
// W; a sink takes part of the weights.
inline float soften(float* scores, int64_t count, float scale, float softcap, const float* sink) {
  constexpr float kLog2E = 1.44269504f;
  const int64_t padded = (count + W - 1) / W * W;
  for (int64_t j = count; j < padded; j++) scores[j] = -INFINITY;
  scale *= kLog2E;
  if (softcap > 0 || scale <= 0) {
    for (int64_t j = 0; j < count; j += W) {
      F<W> own = load<W>(scores + j) * scale;
      if (softcap > 0) own = tanh<W>(own * (1.0f / kLog2E / softcap)) * (softcap * kLog2E);
      store<W>(scores + j, own);
    }
    for (int64_t j = count; j < padded; j++) scores[j] = -INFINITY;
    scale = 1.0f;
  }
  F<W> largest = all<W>(-INFINITY);
  for (int64_t j = 0; j < padded; j += W) {
    const F<W> own = load<W>(scores + j);
    largest = own > largest ? own : largest;
  }
  float most = largest[0];
  for (int lane = 1; lane < W; lane++) most = largest[lane] > most ? largest[lane] : most;
  most *= scale;
  if (sink) most = std::max(most, *sink * kLog2E);
  F<W> sums = {};
  for (int64_t j = 0; j < padded; j += W) {
    const F<W> weight = exp2<W>(load<W>(scores + j) * scale - most);
    store<W>(scores + j, weight);
    sums += weight;
  }
  float total = sum<W>(sums);
  if (sink) total += exp2<1>(F<1>{*sink * kLog2E - most})[0];
  return 1.0f / total;
}

}  // namespace blockc
