// Partial sums of the gradients of temperature and offset, added up by domain pair in a fixed order, in float64.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kSumThreads = 1024;

struct SumShared {
  double of_warp[2][kSumThreads / 32];
};

// A block has a pair (a, b).
__global__ void __launch_bounds__(kSumThreads)
    add_pair_sums_kernel(const float* parts, int64_t rows, int64_t cols, const int* row_domains, int64_t row_stride,
                         const int* col_domains, int64_t col_stride, bool triangle, int domains, double* sums) {
  auto& shared = shared_memory<SumShared>();
  const int a = static_cast<int>(blockIdx.x) / domains, b = static_cast<int>(blockIdx.x) % domains;
  const int thread = static_cast<int>(threadIdx.x);
  double sum[2] = {0, 0};
  const auto add = [&](int64_t r, int64_t c) {
    sum[0] += parts[r * cols + c];
    sum[1] += parts[(rows + r) * cols + c];
  };
  // A warp has a row of parts; where columns are domains only column b counts, and a thread has a row.
  if (col_domains == nullptr) {
    for (int64_t r = thread; r < rows; r += kSumThreads) {
      if (row_domains[r * row_stride] == a) add(r, b);
    }
  } else {
    for (int64_t r = thread / 32; r < rows; r += kSumThreads / 32) {
      if (row_domains[r * row_stride] != a) continue;
      int64_t c = (triangle ? r - r % 32 : 0) + thread % 32;
      if (triangle && c < r) c += 32;
#pragma unroll 4
      for (; c < cols; c += 32) {  // read whatever the domain is, so as not to wait for it first
        const double first = parts[r * cols + c], second = parts[(rows + r) * cols + c];
        const bool wanted = col_domains[c * col_stride] == b;
        sum[0] += wanted ? first : 0;
        sum[1] += wanted ? second : 0;
      }
    }
  }
  for (int k = 0; k < 2; ++k) {
    sum[k] = warp_sum(sum[k]);
    if (thread % 32 == 0) shared.of_warp[k][thread / 32] = sum[k];
  }
  __syncthreads();
  if (thread < 2) {
    double total = 0;
    for (int warp = 0; warp < kSumThreads / 32; ++warp) total += shared.of_warp[thread][warp];
    sums[static_cast<int64_t>(blockIdx.x) * 2 + thread] += total;
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_add_pair_sums(const float* parts, int64_t rows, int64_t cols, const int* row_domains,
                               int64_t row_stride, const int* col_domains, int64_t col_stride, bool triangle,
                               int domains, double* sums, void* stream) {
  return launch(add_pair_sums_kernel, static_cast<int64_t>(domains) * domains, kSumThreads, sizeof(SumShared),
                static_cast<cudaStream_t>(stream), parts, rows, cols, row_domains, row_stride, col_domains, col_stride,
                triangle, domains, sums);
}
