// Attention of several tokens of one row over pages: keys and values are read where they lie, and no score is kept.
//
// Queries are taken in tiles: a tile has a query in each lane, those of the heads that share a KV head side by side. So
// a query's largest score, its sum of weights and its result are lanes of a register, keys are multiplied as they lie,
// and only queries and results are transposed, once a tile. Weights are rounded to bfloat16 where pairs of it are
// multiplied, as torch does; sums are float32.

#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "products.h"

namespace {

using namespace blockc;

constexpr int kVectors = W == 16 ? 4 : 2;  // of queries in a tile
constexpr int kRows = 6;                   // keys, or values of a result, at a time: with kVectors they fill the registers
constexpr int64_t kQueries = kVectors * W;
constexpr int64_t kKeys = 64;  // keys at a time: their scores stay in the first cache

constexpr float kLog2E = 1.44269504f;

typedef Lanes<W>::i Ints;

// Consecutive tokens of one row: `first` on the token axis, `count`, its first page, the position of the first token,
// counted from the start of that page.
struct Chunk {
  int32_t first, count, page, start;
};

// NaNs are passed over: they are in weights anyway.
inline F<W> largest(F<W> so_far, F<W> value) {
#ifdef __AVX512F__
  return (F<W>)_mm512_max_ps((__m512)value, (__m512)so_far);
#else
  return value > so_far ? value : so_far;
#endif
}

// What one thread needs for a tile.
template <class T>
struct Tile {
  using Word = typename Words<T>::type;
  static constexpr int64_t held = Words<T>::held;
  using Value = std::conditional_t<held == 1, float, T>;  // what words are made of

  int64_t key_words, value_size;
  std::vector<char> memory;
  Word *lines, *query, *values, *keys, *weights;  // [kQueries][key_words], [key_words][kQueries], ...
  T* turned;
  Value* pair;
  float *scores, *result;
  F<W> most[kVectors], total[kVectors], kept[kVectors];
  float key_scale[kKeys], value_scale[kKeys];
  Ints position[kVectors];

  Tile(int64_t key_size, int64_t own_value_size) : value_size(own_value_size) {
    key_words = (key_size + held * W - 1) / (held * W) * W;
    const int64_t sizes[] = {kQueries * key_words, kQueries * key_words,    kKeys / held * value_size,
                             kKeys * key_words,    kKeys / held * kQueries, kKeys * kQueries,
                             value_size * kQueries, key_size, 2 * value_size};
    int64_t whole = 64;
    for (int64_t size : sizes) whole += (size * 4 + 63) / 64 * 64;
    memory.resize(whole);
    char* at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
    auto take = [&](int64_t size) {
      char* from = at;
      at += (size * 4 + 63) / 64 * 64;
      return from;
    };
    lines = (Word*)take(sizes[0]), query = (Word*)take(sizes[1]), values = (Word*)take(sizes[2]);
    keys = (Word*)take(sizes[3]), weights = (Word*)take(sizes[4]), scores = (float*)take(sizes[5]);
    result = (float*)take(sizes[6]), turned = (T*)take(sizes[7]), pair = (Value*)take(sizes[8]);
  }
};

// What a tile is about: its queries are `begin ..` of the `count` queries of a KV head, token by token.
template <class T, class S>
struct Task {
  const Heads<T>& q;
  const New<T>& fresh;
  const Cache<S>& cache;
  const Form& form;
  Chunk chunk;
  const int32_t* pages;
  int64_t queries, head, begin, window;

  int64_t of(int64_t lane) const { return std::min(begin + lane, chunk.count * queries - 1); }
  int64_t token(int64_t lane) const { return of(lane) / queries; }
};

template <class T, class S>
void read_queries(const Task<T, S>& task, Tile<T>& tile) {
  constexpr int64_t held = Tile<T>::held;
  const int64_t size = task.cache.key_size, words = tile.key_words;
  for (int64_t lane = 0; lane < kQueries; lane++) {
    const int64_t at = task.of(lane), token = task.chunk.first + at / task.queries;
    const T* from = task.q.at(token, task.head * task.queries + at % task.queries);
    if (task.fresh.cos) {
      rotate(from, task.fresh.cos + token * task.fresh.angle_stride, task.fresh.sin + token * task.fresh.angle_stride,
             size / 2, tile.turned);
      from = tile.turned;
    }
    if constexpr (held == 1)
      widen(from, size, tile.lines + lane * words);
    else
      std::memcpy(tile.lines + lane * words, from, size * sizeof(T));
  }
  for (int64_t v = 0; v < kVectors; v++)
    for (int64_t i = 0; i * held < size; i += W) {
      F<W> rows[W];
      for (int64_t r = 0; r < W; r++) std::memcpy(rows + r, tile.lines + (v * W + r) * words + i, sizeof *rows);
      transpose(rows);
      for (int64_t r = 0; r < W; r++) std::memcpy(tile.query + (i + r) * kQueries + v * W, rows + r, sizeof *rows);
    }
}

template <class T, class S>
void start(const Task<T, S>& task, Tile<T>& tile) {
  alignas(64) int32_t position[kQueries];
  alignas(64) float most[kQueries], total[kQueries];
  for (int64_t lane = 0; lane < kQueries; lane++) {
    position[lane] = int32_t(task.chunk.start + task.token(lane));
    const float* sinks = task.form.sinks;
    // A number, so that a query that has seen nothing yet has a weight for it.
    most[lane] = sinks ? sinks[task.head * task.queries + task.of(lane) % task.queries] * kLog2E : -1e30f;
    total[lane] = sinks ? 1.0f : 0.0f;
  }
  std::memcpy(tile.position, position, sizeof position);
  std::memcpy(tile.most, most, sizeof most);
  std::memcpy(tile.total, total, sizeof total);
  std::memset(tile.result, 0, sizeof(float) * tile.value_size * kQueries);
}

// Scores of R keys, each at its own address.
template <int R, class Word>
void scores_of(const Word* const* keys, const Word* query, int64_t words, float* scores) {
  F<W> sums[R][kVectors] = {};
  const Word* rows[R];
  for (int r = 0; r < R; r++) rows[r] = keys[r];
  add_products<R, kVectors>(
      sums,
      [&](int r, int64_t i) {
        Word word;
        std::memcpy(&word, rows[r] + i, sizeof word);
        return word;
      },
      query, kQueries, W, words);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) store<W>(scores + r * kQueries + v * W, sums[r][v]);
}

// result[r] = result[r] * kept + sum over keys of values[r] * weights, for R values of a result.
template <int R, class Word>
void add_weighted(const Word* values, int64_t stride, const Word* weights, int64_t depth, const F<W>* kept,
                  float* result) {
  F<W> sums[R][kVectors];
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) sums[r][v] = load<W>(result + r * kQueries + v * W) * kept[v];
  add_products<R, kVectors>(
      sums, [&](int r, int64_t i) { return values[i * stride + r]; }, weights, kQueries, W, depth);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) store<W>(result + r * kQueries + v * W, sums[r][v]);
}

// Calls `use` with at most kRows of `count` at a time, their number as a type.
template <class Use>
inline void by_rows(int64_t count, Use use) {
  int64_t done = 0;
  for (; done + kRows <= count; done += kRows) use(done, std::integral_constant<int, kRows>{});
  if constexpr (kRows > 4)
    for (; done + 4 <= count; done += 4) use(done, std::integral_constant<int, 4>{});
  for (; done < count; done++) use(done, std::integral_constant<int, 1>{});
}

// Scores of `count` keys from position `first` on, to weights against the largest so far: powers of two.
template <class T, class S>
void soften(const Task<T, S>& task, int64_t first, int64_t count, bool hides, Tile<T>& tile) {
  auto key_scale = [&](int64_t j) { return kScaled<S> ? tile.key_scale[j] : 1.0f; };
  auto value_scale = [&](int64_t j) { return kScaled<S> ? tile.value_scale[j] : 1.0f; };
  constexpr bool rough = Tile<T>::held == 2;  // weights are rounded to bfloat16
  const float scale = task.form.scale * kLog2E, cap = task.form.softcap;
  const bool plain = !kScaled<S> && !hides && cap <= 0 && scale > 0;
  const float left = plain ? scale : 1.0f;  // what is still to be done where weights are made
  for (int v = 0; v < kVectors; v++) {
    float* scores = tile.scores + v * W;
    F<W> most = all<W>(-INFINITY);
    const Ints last = tile.position[v], lowest = last - int32_t(std::min<int64_t>(task.window, 1 << 30));
    if (plain) {
      for (int64_t j = 0; j < count; j++) most = largest(most, load<W>(scores + j * kQueries));
      most *= scale;
    } else {
      for (int64_t j = 0; j < count; j++) {
        F<W> score = load<W>(scores + j * kQueries) * (scale * key_scale(j));
        if (cap > 0) score = tanh<W>(score * (1.0f / kLog2E / cap)) * (cap * kLog2E);
        if (hides) {
          const Ints position = Ints{} + int32_t(first + j);
          score = (position <= last) & (position > lowest) ? score : all<W>(-INFINITY);
        }
        most = largest(most, score);
        store<W>(scores + j * kQueries, score);
      }
    }
    most = largest(tile.most[v], most);
    tile.kept[v] = exp2<W>(tile.most[v] - most);
    F<W> total = tile.total[v] * tile.kept[v];
    auto weight = [&](int64_t j) {
      const F<W> score = load<W>(scores + j * kQueries);
      const F<W> out = exp2<W, rough>(score * left - most);
      return hides ? (score == -INFINITY ? F<W>{} : out) : out;
    };
    auto* to = tile.weights + v * W;
    if constexpr (Tile<T>::held == 1) {
      for (int64_t j = 0; j < count; j++) {
        const F<W> own = weight(j);
        total += own;
        store<W>(to + j * kQueries, own * value_scale(j));
      }
    } else {
#ifdef __AVX512BF16__
      for (int64_t j = 0; j < count; j += 2) {
        const F<W> one = weight(j), other = j + 1 < count ? weight(j + 1) : F<W>{};
        total += one + other;
        const int64_t after = j + 1 < count ? j + 1 : j;
        _mm512_storeu_si512(to + j / 2 * kQueries, paired(one * value_scale(j), other * value_scale(after)));
      }
#endif
    }
    tile.most[v] = most;
    tile.total[v] = total;
  }
}

// Values of `count` keys side by side, as words along the keys.
template <class T, class S>
void read_values(const S* const* from, int64_t count, Tile<T>& tile) {
  const int64_t size = tile.value_size;
  if constexpr (Tile<T>::held == 1) {
    for (int64_t j = 0; j < count; j++) widen(from[j], size, tile.values + j * size);
  } else {
#ifdef __AVX512BF16__
    auto row = [&](int64_t j) -> const T* {
      if constexpr (std::is_same_v<S, T>) {
        return from[j];
      } else {
        widen(from[j], size, tile.pair + j % 2 * size);
        return tile.pair + j % 2 * size;
      }
    };
    for (int64_t j = 0; j < count; j += 2) {
      const bool is_last = j + 1 == count;
      const T *one = row(j), *other = is_last ? one : row(j + 1);
      for (int64_t i = 0; i < size; i += 32) {
        const __mmask32 mask = size - i < 32 ? (1u << (size - i)) - 1 : 0xffffffff;
        const __m512i first = _mm512_maskz_loadu_epi16(mask, one + i);
        const __m512i second = _mm512_maskz_loadu_epi16(is_last ? 0 : mask, other + i);
        uint32_t* to = tile.values + j / 2 * size + i;
        if (size - i >= 32) {
          pair_up(first, second, to);
        } else {
          alignas(64) uint32_t pairs[32];
          pair_up(first, second, pairs);
          std::memcpy(to, pairs, 4 * (size - i));
        }
      }
    }
#endif
  }
}

template <class T, class S>
void write_result(const Task<T, S>& task, Tile<T>& tile, T* out) {
  const int64_t size = tile.value_size, heads = task.cache.kv_heads * task.queries;
  for (int v = 0; v < kVectors; v++) {
    const F<W> factor = 1.0f / tile.total[v];
    for (int64_t i = 0; i < size; i += W) {
      F<W> rows[W];
      for (int64_t r = 0; r < W; r++) rows[r] = load<W>(tile.result + (i + r) * kQueries + v * W) * factor;
      transpose(rows);
      for (int64_t r = 0; r < W; r++) {
        const int64_t at = task.begin + v * W + r;
        if (at >= task.chunk.count * task.queries) break;
        const int64_t token = task.chunk.first + at / task.queries;
        store<W>(out + (token * heads + task.head * task.queries + at % task.queries) * size + i, rows[r]);
      }
    }
  }
}

template <class T, class S>
void attend_tile(const Task<T, S>& task, Tile<T>& tile, T* out) {
  using Word = typename Tile<T>::Word;
  const Cache<S>& cache = task.cache;
  const int64_t page_tokens = cache.page_tokens, words = (cache.key_size + Tile<T>::held - 1) / Tile<T>::held;
  read_queries(task, tile);
  start(task, tile);
  const int64_t first = task.chunk.start + task.token(0), last = task.chunk.start + task.token(kQueries - 1);
  const int32_t* table = task.pages + task.chunk.page;
  for (int64_t at = std::max<int64_t>(0, first - task.window + 1); at <= last;) {
    const int64_t count = std::min(kKeys, last + 1 - at);
    const Word* keys[kKeys];
    const S* values[kKeys];
    for (int64_t j = 0; j < count; j++) {
      const int64_t slot = table[(at + j) / page_tokens] * page_tokens + (at + j) % page_tokens;
      const S* key = cache.keys + (slot * cache.kv_heads + task.head) * cache.key_size;
      values[j] = cache.values + (slot * cache.kv_heads + task.head) * cache.value_size;
      if constexpr (kScaled<S>) {
        tile.key_scale[j] = cache.key_scales[slot * cache.kv_heads + task.head];
        tile.value_scale[j] = cache.value_scales[slot * cache.kv_heads + task.head];
      }
      if constexpr (std::is_same_v<S, typename Tile<T>::Value>) {
        keys[j] = reinterpret_cast<const Word*>(key);
      } else {
        keys[j] = tile.keys + j * tile.key_words;
        widen(key, cache.key_size, reinterpret_cast<typename Tile<T>::Value*>(tile.keys + j * tile.key_words));
      }
    }
    by_rows(count, [&](int64_t j, auto rows) {
      scores_of<decltype(rows)::value>(keys + j, tile.query, words, tile.scores + j * kQueries);
    });
    soften(task, at, count, at + count - 1 > first || last - at >= task.window, tile);
    read_values(values, count, tile);
    by_rows(tile.value_size, [&](int64_t i, auto rows) {
      add_weighted<decltype(rows)::value>(tile.values + i, tile.value_size, tile.weights,
                                          (count + Tile<T>::held - 1) / Tile<T>::held, tile.kept,
                                          tile.result + i * kQueries);
    });
    at += count;
  }
  write_result(task, tile, out);
}

template <class T, class S>
void attend_chunks(const Heads<T>& q, int64_t queries, const New<T>& fresh, const Cache<S>& cache, const Chunk* chunks,
                   const int32_t* pages, int64_t count, int64_t window, const Form& form, T* out, int threads) {
  // Tiles of one KV head one after the other: they read the same pages.
  std::vector<int64_t> before(count + 1);
  for (int64_t c = 0; c < count; c++)
    before[c + 1] = before[c] + (chunks[c].count * queries + kQueries - 1) / kQueries * cache.kv_heads;
#pragma omp parallel num_threads(threads)
  {
    if (fresh.k.from)
      for (int64_t c = 0; c < count; c++)
#pragma omp for schedule(static) nowait
        for (int64_t token = chunks[c].first; token < chunks[c].first + chunks[c].count; token++)
          write_new(fresh, cache, token, 0, cache.kv_heads);
#pragma omp barrier
    Tile<T> tile(cache.key_size, cache.value_size);
    int64_t c = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < before[count]; item++) {
      if (item < before[c]) c = 0;
      while (item >= before[c + 1]) c++;
      const int64_t tiles = (before[c + 1] - before[c]) / cache.kv_heads, own = item - before[c];
      const Task<T, S> task = {q,     fresh,   cache,       form,                   chunks[c],
                               pages, queries, own / tiles, own % tiles * kQueries, window};
      attend_tile(task, tile, out);
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// As blockc_attend; `chunks` as `Chunk` has them, `window` the most positions that a query sees.
void blockc_attend_chunks(int dtype, int kept, const void* q, int64_t q_token, int64_t q_head, int64_t queries,
                          const void* k, int64_t k_token, int64_t k_head, const void* v, int64_t v_token,
                          int64_t v_head, const void* cos, const void* sin, int64_t angle_stride, const int64_t* slots,
                          void* keys, void* values, float* key_scales, float* value_scales, int64_t kv_heads,
                          int64_t key_size, int64_t value_size, int64_t page_tokens, const void* chunks,
                          const int32_t* pages, int64_t count, int64_t window, float scale, float softcap,
                          const float* sinks, void* out, int threads) {
  BLOCKC_DISPATCH_CACHE(
      dtype, kept,
      attend_chunks<T>({(const T*)q, q_token, q_head}, queries,
                       {{(const T*)k, k_token, k_head}, {(const T*)v, v_token, v_head}, (const T*)cos, (const T*)sin,
                        angle_stride, slots},
                       Cache<S>{(S*)keys, (S*)values, key_scales, value_scales, kv_heads, key_size, value_size,
                                page_tokens},
                       (const Chunk*)chunks, pages, count, window, {scale, softcap, sinks}, (T*)out, threads));
}

}  // extern "C"
#pragma GCC visibility pop
