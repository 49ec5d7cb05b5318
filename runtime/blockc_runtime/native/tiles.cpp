// Products by bfloat16 matrices kept in the tiles that AMX multiplies: y = x W^T + b, up to 16 rows at the rate at
// which memory is read.
//
// A tile is 16 outputs by 32 inputs, pairs of inputs side by side, 1 KiB in one piece. The tiles of 16 outputs lie one
// after the other along the inputs; outputs and inputs are padded with zeros to 32.

#include "vector.h"

#ifdef __AMX_BF16__

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace {

using namespace blockc;

constexpr int64_t kTile = 512;    // values in a tile
constexpr int64_t kRows = 16;     // rows, and outputs, of a tile
constexpr int64_t kInputs = 32;   // inputs of a tile
constexpr int64_t kBlock = 256;   // rows whose inputs stay in a core's own cache
constexpr int64_t kAheadTiles = 3;

void configure() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}

// Rows `first .. first + kRows` of x as tiles along the inputs, `step` values from one to the next.
void gather(const bf16* x, int64_t stride, int64_t rows, int64_t first, int64_t size, bf16* to, int64_t step) {
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

struct Target {
  bf16* y;
  int64_t stride, rows, outs;
  const bf16* bias;
};

// A tile of sums to where it belongs, rounded once.
void put_tile(const float* sums, const Target& to, int64_t row, int64_t out) {
  const int64_t rows = to.rows - row < kRows ? to.rows - row : kRows;
  const __mmask16 mask = to.outs - out < kRows ? (1u << (to.outs > out ? to.outs - out : 0)) - 1 : 0xffff;
  __m512 bias = _mm512_setzero_ps();
  if (to.bias) {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, to.bias + out);
    bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  for (int64_t r = 0; r < rows; r++) {
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_loadu_ps(sums + r * kRows), bias));
    _mm256_mask_storeu_epi16(to.y + (row + r) * to.stride + out, mask, (__m256i)half);
  }
}

// 16 rows by 32 outputs. Every byte of the matrix is read once: what counts is that reads are under way early.
void few_rows(const bf16* x, const bf16* left, int64_t tiles, const Target& to, int64_t row, int64_t out) {
  alignas(64) float sums[2][kRows * kRows];
  const bf16* right = left + tiles * kTile;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < tiles; k++) {
    fetch(left + k * kTile + kAhead / sizeof(bf16), 1024);
    fetch(right + k * kTile + kAhead / sizeof(bf16), 1024);
    _tile_loadd(4, x + k * kTile, 64);
    _tile_loadd(6, left + k * kTile, 64);
    _tile_loadd(7, right + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  put_tile(sums[0], to, row, out);
  put_tile(sums[1], to, row, out + kRows);
}

inline void fetch_near(const bf16* from) {
  for (int i = 0; i < 16; i++) _mm_prefetch(reinterpret_cast<const char*>(from) + 64 * i, _MM_HINT_T0);
}

// 32 rows by 32 outputs; x has the tiles of both sixteens side by side. Each tile is loaded as soon as its last use is.
void many_rows(const bf16* x, const bf16* left, int64_t tiles, const Target& to, int64_t row, int64_t out) {
  alignas(64) float sums[4][kRows * kRows];
  const bf16* right = left + tiles * kTile;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, x, 64);
  _tile_loadd(6, left, 64);
  _tile_loadd(7, right, 64);
  _tile_loadd(5, x + kTile, 64);
  for (int64_t k = 1; k < tiles; k++) {
    x += 2 * kTile;
    left += kTile;
    right += kTile;
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(6, left, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, x + kTile, 64);
    _tile_loadd(7, right, 64);
    fetch_near(left + kAheadTiles * kTile);
    fetch_near(right + kAheadTiles * kTile);
  }
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int i = 0; i < 4; i++) put_tile(sums[i], to, row + i / 2 * kRows, out + i % 2 * kRows);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Asks the system for AMX, once a process; 0: granted.
int blockc_tiles_start() {
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return int(syscall(SYS_arch_prctl, request, tile_data));
}

// matrix [outs, size] -> outputs `first ..` of tiles, whose padding is zero already. `size` pads to 32.
void blockc_to_tiles(const void* matrix, void* tiles, int64_t first, int64_t outs, int64_t size) {
  const bf16* from = static_cast<const bf16*>(matrix);
  bf16* to = static_cast<bf16*>(tiles);
  const int64_t along = (size + kInputs - 1) / kInputs;
#pragma omp parallel for schedule(static)
  for (int64_t out = 0; out < outs; out++) {
    const int64_t at = first + out;
    bf16* row = to + at / kRows * along * kTile + at % kRows * 2;
    for (int64_t i = 0; i < size; i++)
      row[i / kInputs * kTile + i % kInputs / 2 * 2 * kRows + i % 2] = from[out * size + i];
  }
}

// x [rows, size], tiles of [outs, size], bias [outs] or null -> y [rows, outs].
void blockc_by_tiles(const void* x, int64_t x_stride, const void* tiles, const void* bias, void* y, int64_t y_stride,
                     int64_t rows, int64_t outs, int64_t size, int threads) {
  const bf16* from = static_cast<const bf16*>(x);
  const bf16* matrix = static_cast<const bf16*>(tiles);
  const Target to = {static_cast<bf16*>(y), y_stride, rows, outs, static_cast<const bf16*>(bias)};
  const int64_t along = (size + kInputs - 1) / kInputs, blocks = (outs + 31) / 32;
  static thread_local std::vector<bf16> kept;
  const int64_t at_once = rows < kBlock ? rows : kBlock;
  const bool few = rows <= kRows;
  kept.resize((few ? 1 : (at_once + 31) / 32 * 2) * along * kTile + 64);
  bf16* gathered = reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(kept.data()) + 63) & ~uintptr_t(63));
#pragma omp parallel num_threads(threads)
  {
    configure();
    const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t begin = blocks * mine / all, end = blocks * (mine + 1) / all;
    if (few) {
      if (begin < end) fetch(matrix + begin * 2 * along * kTile, kAhead);
#pragma omp for schedule(static)
      for (int64_t k = 0; k < along; k++) {
        const int64_t left = size - k * kInputs;
        gather(from + k * kInputs, x_stride, rows, 0, left < kInputs ? left : kInputs, gathered + k * kTile, kTile);
      }
      for (int64_t block = begin; block < end; block++)
        few_rows(gathered, matrix + block * 2 * along * kTile, along, to, 0, block * 32);
    } else {
      for (int64_t first = 0; first < rows; first += kBlock) {
        const int64_t left = rows - first < kBlock ? rows - first : kBlock, pairs = (left + 31) / 32;
#pragma omp for schedule(static)
        for (int64_t half = 0; half < 2 * pairs; half++)
          gather(from, x_stride, rows, first + half * kRows, size,
                 gathered + half / 2 * 2 * along * kTile + half % 2 * kTile, 2 * kTile);
        for (int64_t block = begin; block < end; block++)
          for (int64_t pair = 0; pair < pairs; pair++)
            many_rows(gathered + pair * 2 * along * kTile, matrix + block * 2 * along * kTile, along, to,
                      first + pair * 32, block * 32);
#pragma omp barrier
      }
    }
    _tile_release();
  }
}

}  // extern "C"
#pragma GCC visibility pop

#endif
