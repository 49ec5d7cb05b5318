// Kernels one after the other in one call: the interpreter between two of them would run with cold caches each time.

#include "kernels.h"

#include <cstring>
#include <type_traits>
#include <utility>

namespace {

// An argument out of its word: numbers and addresses as they are, a float in the lower half.
template <class T>
T from_word(int64_t word) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(word);
  } else if constexpr (std::is_same_v<T, float>) {
    const uint32_t bits = uint32_t(word);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return T(word);
  }
}

// Calls KERNEL with the words that follow, and returns how many these were.
template <class... A, size_t... I>
int64_t call_with(void (*kernel)(A...), const int64_t* words, std::index_sequence<I...>) {
  kernel(from_word<A>(words[I])...);
  return sizeof...(A);
}

template <class... A>
int64_t call_with(void (*kernel)(A...), const int64_t* words) {
  return call_with(kernel, words, std::index_sequence_for<A...>{});
}

template <auto KERNEL>
int64_t call(const int64_t* words) {
  return call_with(KERNEL, words);
}

struct Named {
  const char* name;
  int64_t (*call)(const int64_t*);
};

constexpr Named kQueued[] = {
    {"add", call<blockc_add>},
    {"rms_norm", call<blockc_rms_norm>},
    {"gated", call<blockc_gated>},
    {"low_rank", call<blockc_low_rank>},
    {"attend", call<blockc_attend>},
    {"attend_chunks", call<blockc_attend_chunks>},
    {"by_panels", call<blockc_by_panels>},
#ifdef __AVX512BF16__
    {"by_tiles", call<blockc_by_tiles>},
#endif
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The name of a kernel that can be queued, by its number; null: there are no more.
const char* blockc_queued(int64_t number) {
  return number < int64_t(sizeof kQueued / sizeof *kQueued) ? kQueued[number].name : nullptr;
}

// Of each call the number of its kernel and a word for each argument; `count` words in all.
void blockc_run(const int64_t* words, int64_t count) {
  for (int64_t at = 0; at < count;) at += 1 + kQueued[words[at]].call(words + at + 1);
}

}  // extern "C"
#pragma GCC visibility pop
