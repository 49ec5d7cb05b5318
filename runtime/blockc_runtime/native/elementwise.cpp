// Norm, gated activation, rotary embedding and sums: one pass over memory each.

#include "kernels.h"
#include "vector.h"

namespace {

using namespace blockc;

template <class T>
void add(const T* x, const T* y, T* out, int64_t size) {
  constexpr int64_t part = 4096;
#pragma omp parallel for schedule(static) if (size * int64_t(sizeof(T)) > kGrain)
  for (int64_t start = 0; start < size; start += part) {
    const int64_t stop = start + part < size ? start + part : size;
    int64_t i = start;
    for (; i + W <= stop; i += W) store<W>(out + i, load<W>(x + i) + load<W>(y + i));
    for (; i < stop; i++) put(out + i, to_float(x[i]) + to_float(y[i]));
  }
}

template <class T>
void rms_norm(const T* x, int64_t x_stride, const T* weight, T* out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size * int64_t(sizeof(T)) > kGrain)
  for (int64_t row = 0; row < rows; row++) {
    const T* from = x + row * x_stride;
    T* to = out + row * size;
    F<W> squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= size; i += 4 * W)
      for (int j = 0; j < 4; j++) {
        F<W> value = load<W>(from + i + j * W);
        squares[j] += value * value;
      }
    for (; i + W <= size; i += W) {
      F<W> value = load<W>(from + i);
      squares[0] += value * value;
    }
    float total = sum<W>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; i < size; i++) total += to_float(from[i]) * to_float(from[i]);
    const float scale = 1.0f / std::sqrt(total / float(size) + eps);
    for (i = 0; i + W <= size; i += W) store<W>(to + i, load<W>(from + i) * scale * load<W>(weight + i));
    for (; i < size; i++) put(to + i, to_float(from[i]) * scale * to_float(weight[i]));
  }
}

// act(x): 0 silu, 1 gelu by tanh.
template <int N>
inline F<N> activated(F<N> x, int kind) {
  F<N> z = kind == 0 ? x : 1.5957691216f * (x + 0.044715f * x * x * x);  // 2 sqrt(2 / pi)
  return x / (1.0f + exp<N>(-z));
}

template <class T>
void gated(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride, T* out, int64_t rows, int64_t size,
           int kind) {
#pragma omp parallel for schedule(static) collapse(2) if (rows * size * int64_t(sizeof(T)) > kGrain / 4)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t start = 0; start < size; start += 1024) {
      const int64_t stop = start + 1024 < size ? start + 1024 : size;
      const T *g = gate + row * gate_stride, *u = up + row * up_stride;
      T* to = out + row * size;
      int64_t i = start;
      for (; i + W <= stop; i += W) store<W>(to + i, activated<W>(load<W>(g + i), kind) * load<W>(u + i));
      for (; i < stop; i++) {
        F<1> value = {to_float(g[i])};
        put(to + i, activated<1>(value, kind)[0] * to_float(u[i]));
      }
    }
}

// x [tokens, heads, size] by strides, cos and sin [tokens, size] by stride; out [tokens, heads, size] contiguous.
template <class T>
void rotary(const T* x, int64_t token_stride, int64_t head_stride, const T* cos, const T* sin, int64_t angle_stride,
            T* out, int64_t tokens, int64_t heads, int64_t half) {
#pragma omp parallel for schedule(static) if (tokens * heads * half * int64_t(sizeof(T)) > kGrain / 2)
  for (int64_t token = 0; token < tokens; token++) {
    for (int64_t head = 0; head < heads; head++)
      rotate(x + token * token_stride + head * head_stride, cos + token * angle_stride, sin + token * angle_stride, half,
             out + (token * heads + head) * 2 * half);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void blockc_add(int dtype, const void* x, const void* y, void* out, int64_t size) {
  BLOCKC_DISPATCH(dtype, add((const T*)x, (const T*)y, (T*)out, size));
}

void blockc_rms_norm(int dtype, const void* x, int64_t x_stride, const void* weight, void* out, int64_t rows,
                     int64_t size, float eps) {
  BLOCKC_DISPATCH(dtype, rms_norm((const T*)x, x_stride, (const T*)weight, (T*)out, rows, size, eps));
}

void blockc_gated(int dtype, const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* out,
                  int64_t rows, int64_t size, int kind) {
  BLOCKC_DISPATCH(dtype, gated((const T*)gate, gate_stride, (const T*)up, up_stride, (T*)out, rows, size, kind));
}

void blockc_rotary(int dtype, const void* x, int64_t token_stride, int64_t head_stride, const void* cos,
                   const void* sin, int64_t angle_stride, void* out, int64_t tokens, int64_t heads, int64_t half) {
  BLOCKC_DISPATCH(dtype, rotary((const T*)x, token_stride, head_stride, (const T*)cos, (const T*)sin, angle_stride,
                                (T*)out, tokens, heads, half));
}

}  // extern "C"
#pragma GCC visibility pop
