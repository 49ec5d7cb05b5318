// The paged cache: writing new keys and values, and attention of rows of one token each over their pages.

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <vector>

#include "attention.h"
#include "decode.h"
#include "kernels.h"

namespace {

using namespace blockc;

template <class T, class S>
void write(const T* from, int64_t token_stride, int64_t head_stride, const int64_t* slots, S* to, float* scales,
           int64_t tokens, int64_t heads, int64_t size) {
#pragma omp parallel for schedule(static) if (tokens * heads * size * int64_t(sizeof(T)) > kGrain)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads; head++)
      put_kept(from + token * token_stride + head * head_stride, size, to + (slots[token] * heads + head) * size,
               scales + slots[token] * heads + head);
}

// What one thread needs for the heads that it does at a time.
template <class T>
struct Scratch {
  std::vector<T> rotated;
  std::vector<typename Query<T>::type> query, page;
  std::vector<float> scores, result, factor, scales;
};

// Runs `use(positions so far, first slot, how many, first slot of the next page or -1)` over pages from first to last.
template <class Use>
inline void over_pages(const int32_t* table, int64_t page_tokens, int64_t first, int64_t last, Use use) {
  for (int64_t at = first; at <= last;) {
    const int64_t inside = at % page_tokens, whole = page_tokens - inside, left = last + 1 - at;
    const int64_t count = left < whole ? left : whole;
    const int64_t next = at + count <= last ? table[(at + count) / page_tokens] * page_tokens : -1;
    use(at - first, table[at / page_tokens] * page_tokens + inside, count, next);
    at += count;
  }
}

// Of one head at a time, before the head that is computed meanwhile: a whole page at once fills the queue of what is
// asked for, and then waits.
template <class T>
inline void fetch_rows(const T* page, int64_t stride, int64_t head, int64_t size, int64_t count) {
  for (int64_t j = 0; j < count; j++) fetch(page + j * stride + head * size, size * sizeof(T));
}

// What keys and values of S are computed with beside queries of T: as they lie, or as what a query is kept as.
template <class T, class S>
using Held = std::conditional_t<std::is_same_v<T, S>, T, typename Query<T>::type>;

// Rows of one head in a page, as they lie if that is as they are computed with; else side by side in `page`.
template <class T, class S>
inline const Held<T, S>* rows_of(const S* from, int64_t& stride, int64_t count, int64_t size,
                                 typename Query<T>::type* page) {
  if constexpr (std::is_same_v<T, S>) {
    return from;
  } else {
    for (int64_t j = 0; j < count; j++) widen(from + j * stride, size, page + j * size);
    stride = size;
    return page;
  }
}

// Scores, or weights, of `count` keys, for each query of a KV head, by the scales of the keys, which lie `apart`.
inline void scale_by(float* scores, int64_t queries, int64_t scores_stride, const float* scales, int64_t apart,
                     int64_t count, float* side_by_side) {
  for (int64_t j = 0; j < count; j++) side_by_side[j] = scales[j * apart];
  for (int64_t g = 0; g < queries; g++)
    for (int64_t j = 0; j < count; j += W) {
      float* at = scores + g * scores_stride + j;
      if (count - j >= W)
        store<W>(at, load<W>(at) * load<W>(side_by_side + j));
      else
        for (int64_t i = 0; i < count - j; i++) at[i] *= side_by_side[j + i];
    }
}

template <class T, class S>
void read_query(const Heads<T>& q, const New<T>& fresh, const Cache<S>& cache, int64_t token, int64_t head,
                int64_t heads, Scratch<T>& scratch) {
  for (int64_t h = 0; h < heads; h++) {
    const T* from = q.at(token, head + h);
    if (fresh.cos) {
      rotate(from, fresh.cos + token * fresh.angle_stride, fresh.sin + token * fresh.angle_stride, cache.key_size / 2,
             scratch.rotated.data());
      from = scratch.rotated.data();
    }
    for (int64_t i = 0; i < cache.key_size; i++) convert(scratch.query.data() + h * cache.key_size + i, from[i]);
  }
}

// KV heads `head .. stop` of one row. A page holds all heads of a position side by side: they are read together.
// `row`: its token, its first page, and the first and the last position that it sees, counted from there.
template <class T, class S>
void attend_heads(const Heads<T>& q, int64_t queries, const New<T>& fresh, const Cache<S>& cache, const int32_t* row,
                  const int32_t* pages, int64_t head, int64_t stop, int64_t longest, const Form& form,
                  Scratch<T>& scratch, T* out) {
  using H = Held<T, S>;
  const int64_t key_stride = cache.kv_heads * cache.key_size, value_stride = cache.kv_heads * cache.value_size;
  const int64_t heads = (stop - head) * queries, token = row[0], first = row[2], last = row[3];
  const int32_t* table = pages + row[1];
  const auto* query = scratch.query.data();
  float *scores = scratch.scores.data(), *result = scratch.result.data();
  if (fresh.k.from) write_new(fresh, cache, token, head, stop);
  read_query(q, fresh, cache, token, head * queries, heads, scratch);
  over_pages(table, cache.page_tokens, first, last, [&](int64_t done, int64_t slot, int64_t count, int64_t next) {
    for (int64_t k = head; k < stop; k++) {
      if (next >= 0) fetch_rows(cache.keys + next * key_stride, key_stride, k, cache.key_size, cache.page_tokens);
      const int64_t h = (k - head) * queries;
      int64_t stride = key_stride;
      const H* from = rows_of<T>(cache.keys + slot * key_stride + k * cache.key_size, stride, count, cache.key_size,
                                 scratch.page.data());
      auto of = cache.key_size == 64 ? scores_of<H, 64> : cache.key_size == 128 ? scores_of<H, 128> : scores_of<H, 0>;
      of(query + h * cache.key_size, queries, from, stride, count, cache.key_size, scores + h * longest + done,
         longest);
      if constexpr (kScaled<S>)
        scale_by(scores + h * longest + done, queries, longest, cache.key_scales + slot * cache.kv_heads + k,
                 cache.kv_heads, count, scratch.scales.data());
    }
  });
  for (int64_t h = 0; h < heads; h++)
    scratch.factor[h] = soften(scores + h * longest, last + 1 - first, form.scale, form.softcap,
                               form.sinks ? form.sinks + head * queries + h : nullptr);
  std::memset(result, 0, sizeof(float) * heads * cache.value_size);
  over_pages(table, cache.page_tokens, first, last, [&](int64_t done, int64_t slot, int64_t count, int64_t next) {
    for (int64_t k = head; k < stop; k++) {
      if (next >= 0) fetch_rows(cache.values + next * value_stride, value_stride, k, cache.value_size, cache.page_tokens);
      int64_t stride = value_stride;
      const H* from = rows_of<T>(cache.values + slot * value_stride + k * cache.value_size, stride, count,
                                 cache.value_size, scratch.page.data());
      if constexpr (kScaled<S>)
        scale_by(scores + (k - head) * queries * longest + done, queries, longest,
                 cache.value_scales + slot * cache.kv_heads + k, cache.kv_heads, count, scratch.scales.data());
      for (int64_t g = 0; g < queries;) {
        const int64_t h = (k - head) * queries + g, left = queries - g;
        auto of = left >= 4 ? weighted<H, 4> : left >= 2 ? weighted<H, 2> : weighted<H, 1>;
        of(scores + h * longest + done, longest, from, stride, count, cache.value_size,
           result + h * cache.value_size);
        g += left >= 4 ? 4 : left >= 2 ? 2 : 1;
      }
    }
  });
  T* to = out + (token * cache.kv_heads + head) * queries * cache.value_size;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = h * cache.value_size; i < (h + 1) * cache.value_size; i += W)
      store<W>(to + i, load<W>(result + i) * scratch.factor[h]);
}

template <class T, class S>
void attend(const Heads<T>& q, int64_t queries, const New<T>& fresh, const Cache<S>& cache, const int32_t* rows,
            const int32_t* pages, int64_t count, int64_t longest, const Form& form, T* out, int threads) {
  // Few rows: threads share the heads of one.
  const int64_t wanted = count >= 2 * threads ? 1 : (2 * threads + count - 1) / count;
  const int64_t parts = wanted < cache.kv_heads ? wanted : cache.kv_heads;
  const int64_t most = (cache.kv_heads + parts - 1) / parts * queries;
  // For a query's scores: those of a page are written some at a time, the last ones beyond its end.
  const int64_t room = (longest + kTogether + W - 1) / W * W;
#pragma omp parallel num_threads(threads)
  {
    Scratch<T> scratch;
    scratch.rotated.resize(cache.key_size);
    scratch.page.resize(cache.page_tokens * std::max(cache.key_size, cache.value_size));
    scratch.query.resize(most * cache.key_size);
    scratch.scores.resize(most * room);
    scratch.result.resize(most * cache.value_size);
    scratch.factor.resize(most);
    scratch.scales.resize(cache.page_tokens);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < count * parts; item++) {
      const int64_t part = item % parts;
      attend_heads(q, queries, fresh, cache, rows + item / parts * 4, pages, part * cache.kv_heads / parts,
                   (part + 1) * cache.kv_heads / parts, room, form, scratch, out);
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// from [tokens, heads, size] by strides -> to [slots, heads, size], and scales [slots, heads] if it is of whole numbers.
void blockc_write_cache(int dtype, int kept, const void* from, int64_t token_stride, int64_t head_stride,
                        const int64_t* slots, void* to, float* scales, int64_t tokens, int64_t heads, int64_t size) {
  BLOCKC_DISPATCH_CACHE(dtype, kept,
                        write((const T*)from, token_stride, head_stride, slots, (S*)to, scales, tokens, heads, size));
}

// q [tokens, heads, key_size] by strides; out [tokens, heads, value_size] contiguous, of which only `rows` are written.
// k and v: as `New` has them; `kept`: what the cache is of.
void blockc_attend(int dtype, int kept, const void* q, int64_t q_token, int64_t q_head, int64_t queries, const void* k,
                   int64_t k_token, int64_t k_head, const void* v, int64_t v_token, int64_t v_head, const void* cos,
                   const void* sin, int64_t angle_stride, const int64_t* slots, void* keys, void* values,
                   float* key_scales, float* value_scales, int64_t kv_heads, int64_t key_size, int64_t value_size,
                   int64_t page_tokens, const int32_t* rows, const int32_t* pages, int64_t count, int64_t longest,
                   float scale, float softcap, const float* sinks, void* out, int threads) {
  BLOCKC_DISPATCH_CACHE(
      dtype, kept,
      attend<T>({(const T*)q, q_token, q_head}, queries,
                {{(const T*)k, k_token, k_head}, {(const T*)v, v_token, v_head}, (const T*)cos, (const T*)sin,
                 angle_stride, slots},
                Cache<S>{(S*)keys, (S*)values, key_scales, value_scales, kv_heads, key_size, value_size, page_tokens},
                rows, pages, count, longest, {scale, softcap, sinks}, (T*)out, threads));
}

}  // extern "C"
#pragma GCC visibility pop
