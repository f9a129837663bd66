// Rows of the user to unit rows in slot order, and the gradient back through the normalisation. A warp has a row.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr float kMinNorm = 1e-12f;  // as torch.nn.functional.normalize
constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;

template <class E>
__global__ void __launch_bounds__(kRowThreads)
    gather_rows_kernel(const E* z, int64_t row_stride, int64_t column_stride, int columns, const int64_t* order,
                       int64_t slots, int d, bool normalize, E* rows, float* inv_norm) {
  const int lane = threadIdx.x % 32;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  if (slot >= slots) return;
  const int64_t source = order[slot];
  const int filled = source < 0 ? 0 : columns;
  const E* x = z + source * row_stride;
  float inverse = source < 0 ? 0 : 1;
  if (normalize && source >= 0) {
    float squares = 0;
    for (int c = lane; c < filled; c += 32) {
      const float value = to_float(x[c * column_stride]);
      squares += value * value;
    }
    const float norm = sqrtf(warp_sum(squares));
    inverse = 1 / (norm < kMinNorm ? kMinNorm : norm);  // a NaN stays
  }
  E* out = rows + slot * d;
  for (int c = lane; c < d; c += 32) out[c] = from_float<E>(c < filled ? to_float(x[c * column_stride]) * inverse : 0);
  if (lane == 0) inv_norm[slot] = inverse;
}

template <class E>
__global__ void __launch_bounds__(kRowThreads)
    scatter_rows_kernel(const float* grad_rows, int d, const E* z, int64_t row_stride, int64_t column_stride,
                        int columns, const int64_t* slot, int64_t count, const float* inv_norm, const float* factor,
                        bool normalize, E* grad) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  if (row >= count) return;
  const int64_t from = slot[row];
  E* out = grad + row * columns;
  if (from < 0) {
    for (int c = lane; c < columns; c += 32) out[c] = from_float<E>(0);
    return;
  }
  const float* g = grad_rows + from * d;
  const E* x = z + row * row_stride;
  const float inverse = inv_norm[from];
  float along = 0;
  // Below the smallest norm the division is by a constant: nothing to project.
  if (normalize && !(inverse >= 1 / kMinNorm)) {
    for (int c = lane; c < columns; c += 32) along += g[c] * (to_float(x[c * column_stride]) * inverse);
    along = warp_sum(along);
  }
  const float scale = *factor * inverse;
  for (int c = lane; c < columns; c += 32) {
    const float unit = to_float(x[c * column_stride]) * inverse;
    out[c] = from_float<E>((g[c] - along * unit) * scale);
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_gather_rows(Operand operand, const void* z, int64_t row_stride, int64_t column_stride, int columns,
                             const int64_t* order, int64_t slots, int d, bool normalize, void* rows, float* inv_norm,
                             void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using E = typename decltype(type)::Element;
    return launch(gather_rows_kernel<E>, (slots + kRowWarps - 1) / kRowWarps, kRowThreads, 0,
                  static_cast<cudaStream_t>(stream), static_cast<const E*>(z), row_stride, column_stride, columns,
                  order, slots, d, normalize, static_cast<E*>(rows), inv_norm);
  });
}

int uniclip_cuda_scatter_rows(Operand operand, const float* grad_rows, int d, const void* z, int64_t row_stride,
                              int64_t column_stride, int columns, const int64_t* slot, int64_t count,
                              const float* inv_norm, const float* factor, bool normalize, void* grad, void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using E = typename decltype(type)::Element;
    return launch(scatter_rows_kernel<E>, (count + kRowWarps - 1) / kRowWarps, kRowThreads, 0,
                  static_cast<cudaStream_t>(stream), grad_rows, d, static_cast<const E*>(z), row_stride, column_stride,
                  columns, slot, count, inv_norm, factor, normalize, static_cast<E*>(grad));
  });
}
