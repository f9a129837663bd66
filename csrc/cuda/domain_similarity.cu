// domain_similarity: the matrix of s of rows in any order, and what its gradient needs.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    similarity_matrix_kernel(const typename T::Element* x, const typename T::Element* y, int d, const int* x_domains,
                             const int* y_domains, const float* temperature, const float* offset, int domains,
                             int64_t x_count, int64_t y_count, int row_tiles, int col_tiles, float* s) {
  const Rectangle all{0, 0, row_tiles, col_tiles};
  const TileIndex tile(all);
  const int64_t i = static_cast<int64_t>(tile.row) * kBlock, j = static_cast<int64_t>(tile.col) * kBlock;
  Dots dots;
  dot_tile<T>(shared_memory<Stages>(), x + i * d, y + j * d, d, dots);
  const Place place;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = i + place.row(m, half);
      const int of_row = row < x_count ? x_domains[row] * domains : 0;
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const int64_t col = j + place.col(n, q);
          if (row < x_count && col < y_count) {
            const int pair = of_row + y_domains[col];
            s[row * y_count + col] = (dots[m][n][half * 2 + q] - offset[pair]) / temperature[pair];
          }
        }
      }
    }
  }
}

constexpr int kMatrixThreads = 256, kMatrixWarps = kMatrixThreads / 32;

// g = grad / τ, zero beyond (x_count, y_count). parts[0 and 1, row, e] = Σ grad and Σ grad s over the columns of domain
// e. A warp has a row of g.
template <class E>
__global__ void __launch_bounds__(kMatrixThreads)
    similarity_matrix_grad_kernel(const float* grad, const float* s, int64_t stride, const int* x_domains,
                                  const int* y_domains, const float* temperature, int domains, int64_t x_count,
                                  int64_t y_count, E* g, int64_t g_cols, float* parts) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kMatrixWarps + threadIdx.x / 32;
  const bool filled = row < x_count;
  const float* tau = temperature + (filled ? x_domains[row] * domains : 0);
  for (int64_t c = lane; c < g_cols; c += 32) {
    g[row * g_cols + c] = from_float<E>(filled && c < y_count ? grad[row * stride + c] / tau[y_domains[c]] : 0);
  }
  for (int e = 0; filled && e < domains; ++e) {
    float sum = 0, sum_with_s = 0;
    for (int64_t c = lane; c < y_count; c += 32) {
      if (y_domains[c] != e) continue;
      sum += grad[row * stride + c];
      sum_with_s += grad[row * stride + c] * s[row * stride + c];
    }
    sum = warp_sum(sum);
    sum_with_s = warp_sum(sum_with_s);
    if (lane == 0) {
      parts[row * domains + e] = sum;
      parts[(x_count + row) * domains + e] = sum_with_s;
    }
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_similarity_matrix(Operand operand, const void* x, const void* y, int d, const int* x_domains,
                                   const int* y_domains, const float* temperature, const float* offset, int domains,
                                   int64_t x_count, int64_t y_count, float* s, void* stream) {
  const int64_t row_tiles = (x_count + kBlock - 1) / kBlock, col_tiles = (y_count + kBlock - 1) / kBlock;
  return with_operand(operand, [&](auto type) -> int {
    using T = decltype(type);
    using E = typename T::Element;
    return launch(similarity_matrix_kernel<T>, row_tiles * col_tiles, kTileThreads, sizeof(Stages),
                  static_cast<cudaStream_t>(stream), static_cast<const E*>(x), static_cast<const E*>(y), d, x_domains,
                  y_domains, temperature, offset, domains, x_count, y_count, row_tiles, col_tiles, s);
  });
}

int uniclip_cuda_similarity_matrix_grad(Operand operand, const float* grad, const float* s, int64_t stride,
                                        const int* x_domains, const int* y_domains, const float* temperature,
                                        int domains, int64_t x_count, int64_t y_count, void* g, int64_t g_rows,
                                        int64_t g_cols, float* parts, void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using E = typename decltype(type)::Element;
    return launch(similarity_matrix_grad_kernel<E>, g_rows / kMatrixWarps, kMatrixThreads, 0,
                  static_cast<cudaStream_t>(stream), grad, s, stride, x_domains, y_domains, temperature, domains,
                  x_count, y_count, static_cast<E*>(g), g_cols, parts);
  });
}
