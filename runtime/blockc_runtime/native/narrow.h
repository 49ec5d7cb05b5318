// Keys and values as a cache keeps them: in the model's dtype, or one byte each: as e4m3 (4 bits of exponent, 3 of mantissa,
// no infinity, at most 448), or as a whole number, with a scale for each head of each token.

#pragma once

#include "vector.h"

namespace blockc {

struct e4m3 {
  uint8_t bits;
};

constexpr float kMostOfE4m3 = 448.0f;

struct int8 {
  int8_t value;
};

constexpr float kMostOfInt8 = 127.0f;

// Bytes with their sign as whole numbers of 32 bits, and the lowest bytes of such numbers: GCC (12) does it one by one.
template <int N>
inline typename Lanes<N>::i load_bytes(const void* from) {
  using I = typename Lanes<N>::i;
#ifdef __AVX512F__
  if constexpr (N == 16) return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#endif
#ifdef __AVX2__
  if constexpr (N == 8) return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
#endif
  typedef int8_t Bytes __attribute__((vector_size(N)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, I);
}

template <int N>
inline void store_bytes(void* to, typename Lanes<N>::i value) {
#ifdef __AVX512F__
  if constexpr (N == 16) return _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)value));
#endif
  typedef int8_t Bytes __attribute__((vector_size(N)));
  const Bytes bytes = __builtin_convertvector(value, Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

template <int N>
inline F<N> load(const e4m3* from) {
  using U = typename Lanes<N>::u;
  const U all_bits = (U)load_bytes<N>(from), size = all_bits & 0x7f;
  F<N> value = (F<N>)((size << 20) + (120u << 23));
  value = size < 8 ? (value - 0x1p-7f) * 2.0f : value;  // those without a leading one
  const U bits = (size == 0x7f ? U{} + 0x7fc00000u : (U)value) | (all_bits & 0x80) << 24;
  return (F<N>)bits;
}

template <int N>
inline F<N> load(const int8* from) {
  return __builtin_convertvector(load_bytes<N>(from), F<N>);
}

// Rounded to nearest even; what is beyond 448 becomes 448, NaNs stay.
template <int N>
inline void store(e4m3* to, F<N> value) {
  using U = typename Lanes<N>::u;
  const U given = (U)value;
  F<N> size = (F<N>)(given & 0x7fffffff);
  size = size > kMostOfE4m3 ? all<N>(kMostOfE4m3) : size;
  const U bits = (U)size, large = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120u << 3);
  const U small = (U)(size + 0x1p14f) - (U)all<N>(0x1p14f);  // in steps of 2^-9, which is what the sum keeps
  U code = size < 0x1p-6f ? small : large;
  code = (given & 0x7fffffff) > 0x7f800000 ? U{} + 0x7f : code;
  store_bytes<N>(to, (typename Lanes<N>::i)(code | (given >> 31 << 7)));
}

// `size` values, a multiple of W, as they are computed with.
template <class S, class T>
inline void widen(const S* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += W) store<W>(to + i, load<W>(from + i));
}

#ifdef __AVX512BF16__
inline void widen(const e4m3* from, int64_t size, bf16* to) {
  alignas(64) static const uint16_t small[32] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  for (int64_t i = 0; i < size; i += 32) {
    const __mmask32 mask = size - i < 32 ? (1u << (size - i)) - 1 : 0xffffffff;
    const __m512i bits = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, from + i));
    const __m512i own = _mm512_and_si512(bits, _mm512_set1_epi16(0x7f));
    __m512i value = _mm512_add_epi16(_mm512_slli_epi16(own, 4), _mm512_set1_epi16(120 << 7));
    const __mmask32 is_small = _mm512_cmplt_epu16_mask(own, _mm512_set1_epi16(8));
    value = _mm512_mask_permutexvar_epi16(value, is_small, own, _mm512_load_si512(small));
    value = _mm512_mask_mov_epi16(value, _mm512_cmpeq_epi16_mask(own, _mm512_set1_epi16(0x7f)),
                                  _mm512_set1_epi16(0x7fc0));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(bits, _mm512_set1_epi16(0x80)), 8);
    _mm512_mask_storeu_epi16(to + i, mask, _mm512_or_si512(value, sign));
  }
}
#endif

// A whole number has no more bits than bfloat16: nothing is rounded.
#ifdef __AVX512BF16__
inline void widen(const int8* from, int64_t size, bf16* to) {
  for (int64_t i = 0; i < size; i += 32) {
    const __mmask32 mask = size - i < 32 ? (1u << (size - i)) - 1 : 0xffffffff;
    const __m256i bytes = _mm256_maskz_loadu_epi8(mask, from + i);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    _mm512_mask_storeu_epi16(to + i, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}
#endif

// The other way, as whole numbers. Returns by what they are multiplied: the largest value is 127 of it; NaN where
// anything is not finite.
template <class T>
inline float keep(const T* from, int64_t size, int8* to) {
  using I = typename Lanes<W>::i;
  const I no_sign = I{} + 0x7fffffff;
  I most = {};  // sizes without sign are ordered as whole numbers are, and NaNs are the largest
  for (int64_t i = 0; i < size; i += W) {
    const I own = (I)load<W>(from + i) & no_sign;
    most = own > most ? own : most;
  }
  int32_t bits = 0;
  for (int lane = 0; lane < W; lane++) bits = most[lane] > bits ? most[lane] : bits;
  float scale = NAN;
  if (bits < 0x7f800000) {
    std::memcpy(&scale, &bits, sizeof scale);
    scale /= kMostOfInt8;
  }
  if (!(scale > 0)) {
    std::memset(to, 0, size);
    return scale;
  }
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  for (int64_t i = 0; i < size; i += W) {
    F<W> own = (load<W>(from + i) / scale + magic) - magic;
    own = own > kMostOfInt8 ? all<W>(kMostOfInt8) : own;
    own = own < -kMostOfInt8 ? all<W>(-kMostOfInt8) : own;
    store_bytes<W>(to + i, __builtin_convertvector(own, I));
  }
  return scale;
}

// The same where no scale is.
template <class T, class S>
inline void keep(const T* from, int64_t size, S* to) {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(to, from, size * sizeof(T));
  } else {
    for (int64_t i = 0; i < size; i += W) store<W>(to + i, load<W>(from + i));
  }
}

}  // namespace blockc

// Calls CALL for the element type T that DTYPE says and the type S in which a cache keeps them: 0 T itself, 1 e4m3, 2 int8.
#define BLOCKC_DISPATCH_CACHE(DTYPE, KEPT, CALL) \
  BLOCKC_DISPATCH(DTYPE, if ((KEPT) == 0) {      \
    using S = T;                                 \
    CALL;                                        \
  } else if ((KEPT) == 1) {                      \
    using S = blockc::e4m3;                      \
    CALL;                                        \
  } else {                                       \
    using S = blockc::int8;                      \
    CALL;                                        \
  })
