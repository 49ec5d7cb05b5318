// Vectors of float over float32 or bfloat16 memory, for any compiler with GCC's vector extensions.
//
// Everything is computed in float32 and rounded once, to nearest even, where it is stored. NaNs stay NaNs.

#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace blockc {

struct bf16 {
  uint16_t bits;
};

template <int N>
struct Lanes {
  typedef float f __attribute__((vector_size(4 * N)));
  typedef int32_t i __attribute__((vector_size(4 * N)));
  typedef uint32_t u __attribute__((vector_size(4 * N)));
  typedef uint16_t h __attribute__((vector_size(2 * N)));
};

template <int N>
using F = typename Lanes<N>::f;

// Floats in the widest register.
#ifdef __AVX512F__
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline void put(float* to, float value) { *to = value; }

inline void put(bf16* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000)
    bits |= 0x400000;
  else
    bits += 0x7fff + ((bits >> 16) & 1);
  to->bits = uint16_t(bits >> 16);
}

inline void convert(float* to, bf16 value) { *to = to_float(value); }
inline void convert(float* to, float value) { *to = value; }
inline void convert(bf16* to, bf16 value) { *to = value; }

template <int N>
inline F<N> load(const float* from) {
  F<N> out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

template <int N>
inline F<N> load(const bf16* from) {
  typename Lanes<N>::h half;
  std::memcpy(&half, from, sizeof half);
  return (F<N>)(__builtin_convertvector(half, typename Lanes<N>::u) << 16);
}

template <int N>
inline void store(float* to, F<N> value) {
  std::memcpy(to, &value, sizeof value);
}

template <int N>
inline void store(bf16* to, F<N> value) {
  using U = typename Lanes<N>::u;
  U bits = (U)value;
  U rounded = bits + 0x7fff + ((bits >> 16) & 1);
  bits = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded;
  auto half = __builtin_convertvector(bits >> 16, typename Lanes<N>::h);
  std::memcpy(to, &half, sizeof half);
}

// Less zero, which is nothing: adding zero makes -0 of 0, so that compilers do it, value by value.
template <int N>
inline F<N> all(float value) {
  return value - F<N>{};
}

template <int N>
inline float sum(F<N> value) {
  if constexpr (N == 1) {
    return value[0];
  } else {
    F<N / 2> low, high;
    std::memcpy(&low, &value, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
    return sum<N / 2>(low + high);
  }
}

// e^x, relative error below 2e-7 where it is a normal number; limits beyond that.
template <int N>
inline F<N> exp(F<N> x) {
  using I = typename Lanes<N>::i;
  x = x < -87.3f ? all<N>(-87.3f) : x;
  x = x > 88.0f ? all<N>(88.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  F<N> whole = (x * 1.44269504f + magic) - magic;
  F<N> rest = x - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  F<N> p = all<N>(1.9875691500e-4f);
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  I power = (__builtin_convertvector(whole, I) + 127) << 23;
  return p * (F<N>)power;
}

// 2^x for x up to 126, relative error below 2e-7, or 4e-6 where it is ROUGH; less than 2e-38 for what is smaller.
template <int N, bool ROUGH = false>
inline F<N> exp2(F<N> x) {
  auto power_of = [](F<N> rest) {
    if constexpr (ROUGH) {
      F<N> p = all<N>(9.6768e-3f);
      p = p * rest + 5.55e-2f;
      p = p * rest + 2.40222e-1f;
      p = p * rest + 6.931472e-1f;
      return p * rest + 1.0f;
    } else {
      F<N> p = all<N>(1.5403530e-4f);
      p = p * rest + 1.3333558e-3f;
      p = p * rest + 9.6181291e-3f;
      p = p * rest + 5.5504109e-2f;
      p = p * rest + 2.4022651e-1f;
      p = p * rest + 6.9314718e-1f;
      return p * rest + 1.0f;
    }
  };
#ifdef __AVX512F__
  if constexpr (N == 16) {
    const __m512 own = _mm512_max_ps(_mm512_set1_ps(-126.0f), (__m512)x);  // NaNs stay
    const __m512 whole = _mm512_roundscale_ps(own, _MM_FROUND_TO_NEAREST_INT);
    return (F<N>)_mm512_scalef_ps((__m512)power_of((F<N>)_mm512_sub_ps(own, whole)), whole);
  }
#endif
  using I = typename Lanes<N>::i;
  const float magic = 12582912.0f;  // as above
  x = x < -126.0f ? all<N>(-126.0f) : x;
  const F<N> whole = (x + magic) - magic;
  return power_of(x - whole) * (F<N>)((__builtin_convertvector(whole, I) + 127) << 23);
}

// Relative error below 1e-6.
template <int N>
inline F<N> tanh(F<N> x) {
  const F<N> size = x < 0.0f ? -x : x, square = x * x;
  const F<N> small = x * (1.0f + square * (-0.33333333f + square * (0.13333333f + square * -0.053968254f)));
  const F<N> rest = exp<N>(-2.0f * size), large = (1.0f - rest) / (1.0f + rest);
  return size < 0.2f ? small : (x < 0.0f ? -large : large);
}

// x cos + turned(x) sin for one head, where `turned` maps halves (a, b) to (-b, a).
template <class T>
inline void rotate(const T* from, const T* cos, const T* sin, int64_t half, T* to) {
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    F<W> first = load<W>(from + i), second = load<W>(from + half + i);
    store<W>(to + i, first * load<W>(cos + i) - second * load<W>(sin + i));
    store<W>(to + half + i, second * load<W>(cos + half + i) + first * load<W>(sin + half + i));
  }
  for (; i < half; i++) {
    const float first = to_float(from[i]), second = to_float(from[half + i]);
    put(to + i, first * to_float(cos[i]) - second * to_float(sin[i]));
    put(to + half + i, second * to_float(cos[half + i]) + first * to_float(sin[half + i]));
  }
}

// Asks for the first bytes of a stream that is read next: the hardware finds streams only once they are read.
inline void fetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

constexpr int64_t kAhead = 4 << 10;

// Work worth a second thread, in bytes touched: waking one takes a few microseconds.
constexpr int64_t kGrain = 64 << 10;

}  // namespace blockc

// Calls FUNCTION<T>(...) for the element type that DTYPE says: 0 float32, 1 bfloat16.
#define BLOCKC_DISPATCH(DTYPE, CALL) \
  do {                               \
    if ((DTYPE) == 0) {              \
      using T = float;               \
      CALL;                          \
    } else {                         \
      using T = blockc::bf16;        \
      CALL;                          \
    }                                \
  } while (0)
