// Products by matrices kept in the tiles that AMX multiplies: y = x W^T + b, up to 16 rows at the rate at which memory is
// read. Values are bfloat16, or integers of 8 or 4 bits that become bfloat16, which holds them exactly, tile by tile.
//
// A tile is 16 outputs by 32 inputs, pairs of inputs side by side. The tiles of 16 outputs lie one after the other along
// the inputs; outputs and inputs are padded with zeros to 32.

#include "tiles.h"

#ifdef __AMX_BF16__

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "kernels.h"

namespace {

using namespace blockc;

constexpr int64_t kBlock = 256;   // rows whose inputs stay in a core's own cache
constexpr int64_t kAheadTiles = 3;

// `scale` null: one; of each output else.
struct Target {
  bf16* y;
  int64_t stride, rows, outs;
  const bf16 *bias, *scale;
};

// A tile of sums to where it belongs, rounded once.
void put_tile(const float* sums, const Target& to, int64_t row, int64_t out) {
  const int64_t rows = to.rows - row < kRows ? to.rows - row : kRows;
  const __mmask16 mask = to.outs - out < kRows ? (1u << (to.outs > out ? to.outs - out : 0)) - 1 : 0xffff;
  const __m512 bias = to.bias ? widened(to.bias + out, mask) : _mm512_setzero_ps();
  const __m512 scale = to.scale ? widened(to.scale + out, mask) : _mm512_set1_ps(1.0f);
  for (int64_t r = 0; r < rows; r++) {
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_fmadd_ps(_mm512_loadu_ps(sums + r * kRows), scale, bias));
    _mm256_mask_storeu_epi16(to.y + (row + r) * to.stride + out, mask, (__m256i)half);
  }
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

// A matrix of bfloat16.
struct Dense {
  const bf16* tiles;
  int64_t along;

  int64_t scratch() const { return 0; }

  void fetch_first(int64_t block) const { fetch(tiles + block * 2 * along * kTile, kAhead); }

  const bf16* panel(int64_t block, bf16*) const { return tiles + block * 2 * along * kTile; }

  // 16 rows by 32 outputs. Every byte of the matrix is read once: what counts is that reads are under way early.
  void few_rows(const bf16* x, const Target& to, int64_t block, bf16*) const {
    alignas(64) float sums[2][kRows * kRows];
    const bf16 *left = panel(block, nullptr), *right = left + along * kTile;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < along; k++) {
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
    put_tile(sums[0], to, 0, block * 32);
    put_tile(sums[1], to, 0, block * 32 + kRows);
  }
};

// 16 pairs of signed bytes as 16 pairs of bfloat16, which hold them exactly: what the shift cuts off is zero.
inline __m512i from_bytes(__m512i words) {
  const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16), odd = _mm512_srai_epi32(words, 16);
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(even)), 16);
  return _mm512_or_si512(low, _mm512_castps_si512(_mm512_cvtepi32_ps(odd)));
}

// A matrix of integers: BITS 8 signed, BITS 4 less 8. A scale for each output and `group` tiles along the inputs:
// [outs / 16][along / group][16].
template <int BITS>
struct Integers {
  const uint8_t* codes;
  const bf16* scales;
  int64_t along, group;

  static constexpr int64_t kBytes = kTile * BITS / 8;

  int64_t scratch() const { return 2 * along * kTile; }

  void fetch_first(int64_t block) const { fetch(codes + block * 2 * along * kBytes, kAhead); }

  static void decode(const uint8_t* from, bf16* to) {
    if constexpr (BITS == 8) {
      for (int row = 0; row < kRows; row++) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * row));
        _mm512_store_si512(to + 32 * row, from_bytes(_mm512_cvtepi8_epi16(bytes)));
      }
    } else {
      alignas(64) static const uint16_t values[32] = {
          0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,  // -8 to -1
          0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,  // 0 to 7
      };
      const __m512i table = _mm512_load_si512(values), mask = _mm512_set1_epi32(0x000f000f);
      for (int row = 0; row < kRows; row++) {
        const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * row)));
        const __m512i both = _mm512_ternarylogic_epi32(pairs, _mm512_slli_epi32(pairs, 12), mask, 0xa8);
        _mm512_store_si512(to + 32 * row, _mm512_permutexvar_epi16(both, table));
      }
    }
  }

  static void scale_tile(bf16* tile, __m512 scale) {
    for (int row = 0; row < kRows; row++) {
      const __m512i pairs = _mm512_load_si512(tile + 32 * row);
      const __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), scale);
      const __m512 odd = _mm512_mul_ps(
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000)))), scale);
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
      _mm512_store_si512(tile + 32 * row, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }

  const bf16* panel(int64_t block, bf16* to) const {
    for (int64_t half = 0; half < 2; half++)
      for (int64_t k = 0; k < along; k++) {
        bf16* tile = to + (half * along + k) * kTile;
        decode(codes + ((2 * block + half) * along + k) * kBytes, tile);
        if (group < along)
          scale_tile(tile, widened(scales + ((2 * block + half) * (along / group) + k / group) * kRows));
      }
    return to;
  }

  // As that of `Dense`; scales are applied to the sums over a group, in float32. Tiles are decoded one step before they
  // are loaded, so that no load waits for a store.
  void few_rows(const bf16* x, const Target& to, int64_t block, bf16* scratch) const {
    alignas(64) float sums[2][kRows * kRows];
    __m512 totals[2][kRows];
    const int64_t rows = to.rows, groups = along / group;
    const uint8_t *left = codes + 2 * block * along * kBytes, *right = left + along * kBytes;
    auto decoded = [&](int64_t k) {
      bf16* tile = scratch + k % 4 * 2 * kTile;
      if (k < along) {
        fetch(left + k * kBytes + kAhead / 2, kBytes);
        fetch(right + k * kBytes + kAhead / 2, kBytes);
        decode(left + k * kBytes, tile);
        decode(right + k * kBytes, tile + kTile);
      }
    };
    if (groups > 1)
      for (int64_t r = 0; r < rows; r++) totals[0][r] = totals[1][r] = _mm512_setzero_ps();
    decoded(0);
    for (int64_t number = 0; number < groups; number++) {
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t k = number * group; k < (number + 1) * group; k++) {
        const bf16* tile = scratch + k % 4 * 2 * kTile;
        decoded(k + 1);
        _tile_loadd(4, x + k * kTile, 64);
        _tile_loadd(6, tile, 64);
        _tile_loadd(7, tile + kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, sums[0], 64);
      _tile_stored(1, sums[1], 64);
      if (groups > 1)
        for (int64_t half = 0; half < 2; half++) {
          const __m512 scale = widened(scales + ((2 * block + half) * groups + number) * kRows);
          for (int64_t r = 0; r < rows; r++)
            totals[half][r] = _mm512_fmadd_ps(_mm512_load_ps(sums[half] + r * kRows), scale, totals[half][r]);
        }
    }
    if (groups > 1)
      for (int64_t half = 0; half < 2; half++)
        for (int64_t r = 0; r < rows; r++) _mm512_store_ps(sums[half] + r * kRows, totals[half][r]);
    put_tile(sums[0], to, 0, block * 32);
    put_tile(sums[1], to, 0, block * 32 + kRows);
  }
};

template <class Matrix>
void multiply(const Matrix& matrix, const bf16* x, int64_t x_stride, int64_t size, const Target& to, int threads) {
  const int64_t along = (size + kInputs - 1) / kInputs, blocks = (to.outs + 31) / 32, rows = to.rows;
  static thread_local std::vector<bf16> kept;
  const int64_t at_once = rows < kBlock ? rows : kBlock;
  const bool few = rows <= kRows;
  kept.resize((few ? 1 : (at_once + 31) / 32 * 2) * along * kTile + 64);
  bf16* gathered = aligned(kept.data());
#pragma omp parallel num_threads(threads)
  {
    configure();
    static thread_local std::vector<bf16> own;
    own.resize(matrix.scratch() + 8 * kTile + 64);
    bf16* scratch = aligned(own.data());
    const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t begin = blocks * mine / all, end = blocks * (mine + 1) / all;
    if (few) {
      if (begin < end) matrix.fetch_first(begin);
#pragma omp for schedule(static)
      for (int64_t k = 0; k < along; k++) {
        const int64_t left = size - k * kInputs;
        gather(x + k * kInputs, x_stride, rows, 0, left < kInputs ? left : kInputs, gathered + k * kTile, kTile);
      }
      for (int64_t block = begin; block < end; block++) matrix.few_rows(gathered, to, block, scratch);
    } else {
      for (int64_t first = 0; first < rows; first += kBlock) {
        const int64_t left = rows - first < kBlock ? rows - first : kBlock, pairs = (left + 31) / 32;
#pragma omp for schedule(static)
        for (int64_t half = 0; half < 2 * pairs; half++)
          gather(x, x_stride, rows, first + half * kRows, size,
                 gathered + half / 2 * 2 * along * kTile + half % 2 * kTile, 2 * kTile);
        for (int64_t block = begin; block < end; block++) {
          const bf16* panel = matrix.panel(block, scratch);
          for (int64_t pair = 0; pair < pairs; pair++)
            many_rows(gathered + pair * 2 * along * kTile, panel, along, to, first + pair * 32, block * 32);
        }
#pragma omp barrier
      }
    }
    _tile_release();
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Asks the system for AMX, once a process; 0: granted.
int blockc_tiles_start() {
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return int(syscall(SYS_arch_prctl, request, tile_data));
}

// x [rows, size], tiles of [outs, size], bias [outs] or null -> y [rows, outs].
void blockc_by_tiles(const void* x, int64_t x_stride, const void* tiles, const void* bias, void* y, int64_t y_stride,
                     int64_t rows, int64_t outs, int64_t size, int threads) {
  multiply(Dense{(const bf16*)tiles, (size + kInputs - 1) / kInputs}, (const bf16*)x, x_stride, size,
           {(bf16*)y, y_stride, rows, outs, (const bf16*)bias, nullptr}, threads);
}

// Codes of `bits` each, [outs, size] with the first in the lowest bits, 2^(bits - 1) for zero -> tiles, which hold zeros.
void blockc_to_integer_tiles(const uint8_t* codes, int bits, uint8_t* tiles, int64_t outs, int64_t size) {
  const int64_t along = (size + kInputs - 1) / kInputs, bytes = kTile * bits / 8;
#pragma omp parallel for schedule(static)
  for (int64_t out = 0; out < outs; out++) {
    uint8_t* lane = tiles + out / kRows * along * bytes + out % kRows * bits / 4;
    for (int64_t i = 0; i < size; i++) {
      uint8_t* pair = lane + i / kInputs * bytes + i % kInputs / 2 * kRows * bits / 4;
      if (bits == 8)
        pair[i % 2] = codes[out * size + i] ^ 0x80;
      else if (i % 2 == 0)
        *pair = codes[(out * size + i) / 2];
    }
  }
}

// As by_tiles. `scales` [outs / 16, size / group, 16], `group` a multiple of 32 or all of `size`.
void blockc_by_integer_tiles(const void* x, int64_t x_stride, const uint8_t* codes, int bits, const void* scales,
                             int64_t group, void* y, int64_t y_stride, int64_t rows, int64_t outs, int64_t size,
                             int threads) {
  const int64_t along = (size + kInputs - 1) / kInputs, tiles = group == size ? along : group / kInputs;
  const bf16* scale = (const bf16*)scales;
  const Target to = {(bf16*)y, y_stride, rows, outs, nullptr, group == size ? scale : nullptr};
  if (bits == 8)
    multiply(Integers<8>{codes, scale, along, tiles}, (const bf16*)x, x_stride, size, to, threads);
  else
    multiply(Integers<4>{codes, scale, along, tiles}, (const bf16*)x, x_stride, size, to, threads);
}

}  // extern "C"
#pragma GCC visibility pop

#endif
