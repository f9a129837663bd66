// The sparse side: each anchor against the few rows of its own sample, which lie in at most K runs of slots. A warp has
// an anchor.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kAnchorThreads = 256, kAnchorWarps = kAnchorThreads / 32;  // anchors of a block lie in one tile

__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x > 0 ? 1.f : e) / (1 + e);
}

// 16 bytes of a row.
template <class E>
struct alignas(16) Part {
  static constexpr int kSize = 16 / sizeof(E);
  E of[kSize];
};
template <class E>
__device__ __forceinline__ Part<E> part(const E* row, int column) {
  return *reinterpret_cast<const Part<E>*>(row + column);
}

template <class E>
__device__ __forceinline__ float dot(const E* x, const E* y, int d, int lane) {
  float sum = 0;
#pragma unroll 1  // a row has few parts for a lane
  for (int c = lane * Part<E>::kSize; c < d; c += 32 * Part<E>::kSize) {
    const Part<E> a = part(x, c), b = part(y, c);
#pragma unroll
    for (int e = 0; e < Part<E>::kSize; ++e) sum += to_float(a.of[e]) * to_float(b.of[e]);
  }
  return warp_sum(sum);
}

// What a warp knows of its anchor and of domain e.
struct Positives {
  const int* runs;
  const float *temperature, *offset, *weight;
  int domains;
  int64_t slot;
  int domain;  // -1 in an empty tile, which has no positives

  // f(p, row of p, s_ip, 1 / τ) for the positives p in domain e.
  template <class E, class F>
  __device__ __forceinline__ void for_each(const E* rows, int d, int e, int lane, const F& f) const {
    const int* run = runs + (slot * domains + e) * 2;
    const int start = run[0], end = run[1];
    if (domain < 0 || start >= end) return;
    const int pair = domain * domains + e;
    const float inverse = 1 / temperature[pair], b = offset[pair];
    for (int p = start; p < end; ++p) {
      if (p == slot) continue;
      const E* row = rows + static_cast<int64_t>(p) * d;
      f(p, row, (dot(rows + slot * d, row, d, lane) - b) * inverse, inverse);
    }
  }
};

template <class E>
__global__ void __launch_bounds__(kAnchorThreads)
    positives_forward_kernel(const E* rows, int d, const LayoutTile* tiles, const int* runs, const int* count,
                             const float* temperature, const float* offset, const float* weight, int domains,
                             const float* lse, float* loss, float* coefficient) {
  const int lane = threadIdx.x % 32;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kAnchorWarps + threadIdx.x / 32;
  const Positives positives{runs, temperature, offset, weight, domains, slot, tiles[slot / kBlock].domain};
  const float nu = lse[slot];
  float total = 0, slope = 0;
  for (int e = 0; e < domains; ++e) {
    positives.for_each(rows, d, e, lane, [&](int, const E*, float s, float) {
      const float w = weight[positives.domain * domains + e];
      total += w * softplus(nu - s);
      slope += w * sigmoid(nu - s);
    });
  }
  if (lane == 0) {
    const float n = static_cast<float>(max(count[slot], 1));
    loss[slot] = total / n;
    coefficient[slot] = slope / n;
  }
}

// Adds Σ_p H_ip ẑ_p / τ to grad_rows unless that is null; parts[0 and 1, slot, e] = Σ H and Σ H s over the p > i in e.
template <class E>
__global__ void __launch_bounds__(kAnchorThreads)
    positives_backward_kernel(const E* rows, int64_t slots, int d, const LayoutTile* tiles, const int* runs,
                              const int* count, const float* temperature, const float* offset, const float* weight,
                              int domains, const float* lse, const float* scale, float* grad_rows, float* parts) {
  const int lane = threadIdx.x % 32;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kAnchorWarps + threadIdx.x / 32;
  const Positives positives{runs, temperature, offset, weight, domains, slot, tiles[slot / kBlock].domain};
  const int a = positives.domain;
  const float nu = lse[slot], own = scale[slot] / static_cast<float>(max(count[slot], 1));
  for (int e = 0; e < domains; ++e) {
    float sum = 0, sum_with_s = 0;
    positives.for_each(rows, d, e, lane, [&](int p, const E* row, float s, float inverse) {
      const float forth = weight[a * domains + e] * sigmoid(nu - s) * own;
      const float back = weight[e * domains + a] * sigmoid(lse[p] - s) * (scale[p] / static_cast<float>(count[p]));
      const float h = -(forth + back);
      if (p > slot) {  // each unordered pair once; slots are sorted by domain
        sum += h;
        sum_with_s += h * s;
      }
      if (grad_rows == nullptr) return;
      const float by = h * inverse;
      float* grad = grad_rows + slot * d;
      for (int c = lane; c < d; c += 32) grad[c] += by * to_float(row[c]);
    });
    if (lane == 0) {
      parts[slot * domains + e] = sum;
      parts[(slots + slot) * domains + e] = sum_with_s;
    }
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_positives_forward(Operand operand, const void* rows, int64_t slots, int d, const int* tiles,
                                   const int* runs, const int* count, const float* temperature, const float* offset,
                                   const float* weight, int domains, const float* lse, float* loss, float* coefficient,
                                   void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using E = typename decltype(type)::Element;
    return launch(positives_forward_kernel<E>, slots / kAnchorWarps, kAnchorThreads, 0,
                  static_cast<cudaStream_t>(stream), static_cast<const E*>(rows), d,
                  reinterpret_cast<const LayoutTile*>(tiles), runs, count, temperature, offset, weight, domains, lse,
                  loss, coefficient);
  });
}

int uniclip_cuda_positives_backward(Operand operand, const void* rows, int64_t slots, int d, const int* tiles,
                                    const int* runs, const int* count, const float* temperature, const float* offset,
                                    const float* weight, int domains, const float* lse, const float* scale,
                                    float* grad_rows, float* parts, void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using E = typename decltype(type)::Element;
    return launch(positives_backward_kernel<E>, slots / kAnchorWarps, kAnchorThreads, 0,
                  static_cast<cudaStream_t>(stream), static_cast<const E*>(rows), slots, d,
                  reinterpret_cast<const LayoutTile*>(tiles), runs, count, temperature, offset, weight, domains, lse,
                  scale, grad_rows, parts);
  });
}
