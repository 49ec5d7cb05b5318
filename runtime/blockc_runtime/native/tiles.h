// What kernels that multiply by tiles have in common.

#pragma once

#include "vector.h"

#ifdef __AVX512BF16__

#include <immintrin.h>

namespace blockc {

constexpr int64_t kTile = 512;   // values in a tile
constexpr int64_t kRows = 16;    // rows, and outputs, of a tile
constexpr int64_t kInputs = 32;  // inputs of a tile

#ifdef __AMX_BF16__
inline void configure() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}
#endif

// Rows `first .. first + kRows` of x as tiles along the inputs, `step` values from one to the next.
inline void gather(const bf16* x, int64_t stride, int64_t rows, int64_t first, int64_t size, bf16* to, int64_t step) {
  for (int64_t row = 0; row < kRows; row++) {
    const bf16* from = x + (first + row) * stride;
    bf16* at = to + row * kInputs;
    int64_t i = 0;
    if (first + row < rows)
      for (; i + kInputs <= size; i += kInputs, at += step) std::memcpy(at, from + i, kInputs * sizeof(bf16));
    for (; i < size; i += kInputs, at += step) {
      std::memset(static_cast<void*>(at), 0, kInputs * sizeof(bf16));
      if (first + row < rows) std::memcpy(at, from + i, (size - i) * sizeof(bf16));
    }
  }
}

inline __m512 widened(const bf16* from, __mmask16 mask = 0xffff) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

// Values that begin at a multiple of 64 bytes, which a call leaves to the next one of its thread.
inline bf16* aligned(bf16* from) {
  return reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(from) + 63) & ~uintptr_t(63));
}

}  // namespace blockc

#endif
