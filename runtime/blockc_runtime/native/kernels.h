// What kernels are called by: plain C functions over addresses. `queue.cpp` calls them one after the other.

#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

void blockc_add(int dtype, const void* x, const void* y, void* out, int64_t size);

void blockc_rms_norm(int dtype, const void* x, int64_t x_stride, const void* weight, void* out, int64_t rows,
                     int64_t size, float eps);

void blockc_gated(int dtype, const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* out,
                  int64_t rows, int64_t size, int kind);

void blockc_low_rank(int dtype, const void* x, int64_t x_stride, int64_t size, const void* a, int64_t ranks,
                     int64_t rank, const void* rows, int64_t row_count, void* y, const void* outputs,
                     int64_t output_count, int threads);

void blockc_attend(int dtype, int kept, const void* q, int64_t q_token, int64_t q_head, int64_t queries, const void* k,
                   int64_t k_token, int64_t k_head, const void* v, int64_t v_token, int64_t v_head, const void* cos,
                   const void* sin, int64_t angle_stride, const int64_t* slots, void* keys, void* values,
                   float* key_scales, float* value_scales, int64_t kv_heads, int64_t key_size, int64_t value_size,
                   int64_t page_tokens, const int32_t* rows, const int32_t* pages, int64_t count, int64_t longest,
                   float scale, float softcap, const float* sinks, void* out, int threads);

void blockc_attend_chunks(int dtype, int kept, const void* q, int64_t q_token, int64_t q_head, int64_t queries,
                          const void* k, int64_t k_token, int64_t k_head, const void* v, int64_t v_token,
                          int64_t v_head, const void* cos, const void* sin, int64_t angle_stride, const int64_t* slots,
                          void* keys, void* values, float* key_scales, float* value_scales, int64_t kv_heads,
                          int64_t key_size, int64_t value_size, int64_t page_tokens, const void* chunks,
                          const int32_t* pages, int64_t count, int64_t window, float scale, float softcap,
                          const float* sinks, void* out, int threads);

void blockc_by_panels(const void* x, int64_t x_stride, const void* panels, const void* bias, void* y, int64_t y_stride,
                      int64_t rows, int64_t outs, int64_t size, int threads);

#ifdef __AVX512BF16__
void blockc_by_tiles(const void* x, int64_t x_stride, const void* tiles, const void* bias, void* y, int64_t y_stride,
                     int64_t rows, int64_t outs, int64_t size, int threads);
#endif

}  // extern "C"
#pragma GCC visibility pop
