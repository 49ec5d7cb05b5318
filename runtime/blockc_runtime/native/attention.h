// What kernels of attention over the paged cache have in common.

#pragma once

#include <type_traits>
#include <vector>

#include "narrow.h"

namespace blockc {

// Rows of one head each: [tokens, heads, size] by strides.
template <class T>
struct Heads {
  const T* from;
  int64_t token_stride, head_stride;

  const T* at(int64_t token, int64_t head) const { return from + token * token_stride + head * head_stride; }
};

// In the type in which it keeps them. Scales [slots, kv_heads], of whole numbers alone.
template <class S>
struct Cache {
  S *keys, *values;
  float *key_scales, *value_scales;
  int64_t kv_heads, key_size, value_size, page_tokens;
};

template <class S>
constexpr bool kScaled = std::is_same_v<S, int8>;

// One key or value to its place, `scale` that of its scale.
template <class T, class S>
inline void put_kept(const T* from, int64_t size, S* to, float* scale) {
  if constexpr (kScaled<S>)
    *scale = keep(from, size, to);
  else
    keep(from, size, to);
}

// New keys and values, which are written before anything is read; `k.from` null: they have been. With `cos`, queries
// and keys are rotated first.
template <class T>
struct New {
  Heads<T> k, v;
  const T *cos, *sin;
  int64_t angle_stride;
  const int64_t* slots;
};

struct Form {
  float scale, softcap;
  const float* sinks;
};

template <class T, class S>
inline void write_new(const New<T>& fresh, const Cache<S>& cache, int64_t token, int64_t head, int64_t stop) {
  const int64_t slot = fresh.slots[token] * cache.kv_heads;
  static thread_local std::vector<T> turned;
  if (fresh.cos) turned.resize(cache.key_size);
  for (int64_t k = head; k < stop; k++) {
    const T* key = fresh.k.at(token, k);
    if (fresh.cos) {
      rotate(key, fresh.cos + token * fresh.angle_stride, fresh.sin + token * fresh.angle_stride, cache.key_size / 2,
             turned.data());
      key = turned.data();
    }
    put_kept(key, cache.key_size, cache.keys + (slot + k) * cache.key_size, cache.key_scales + slot + k);
    put_kept(fresh.v.at(token, k), cache.value_size, cache.values + (slot + k) * cache.value_size,
             cache.value_scales + slot + k);
  }
}

}  // namespace blockc
