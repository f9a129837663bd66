// Sums of exponentials that neither overflow nor vanish.
#pragma once

#include "types.cuh"

namespace uniclip::cuda {

constexpr float kNothing = -INFINITY;  // the logarithm of an empty sum

// Σ 2^x as a maximum and a sum of 2^(x - maximum).
struct LogSum {
  float max, sum;

  // A pivot that can be subtracted: 0 where nothing has been added.
  static __device__ __forceinline__ float pivot(float max) { return max == kNothing ? 0.f : max; }
  static __device__ LogSum nothing() { return {kNothing, 0}; }
  static __device__ LogSum of(float log2) { return {log2, log2 == kNothing ? 0.f : 1.f}; }
  __device__ LogSum operator+(const LogSum& other) const {
    const float top = fmaxf(max, other.max), base = pivot(top);
    return {top, sum * ptx::exp2_approx(max - base) + other.sum * ptx::exp2_approx(other.max - base)};
  }
  __device__ float log2() const { return pivot(max) + log2f(sum); }
};

// Several threads of a block, its ways, have parts of the sum of one slot.
constexpr int kMergeSlots = 32, kMergeWays = 8;

struct MergeShared {
  LogSum of[kMergeWays][kMergeSlots];

  // Joins the running natural logarithm of a slot with the sums of its ways.
  __device__ void add(int lane, int way, const LogSum& sum, float& running) {
    of[way][lane] = sum;
    __syncthreads();
    if (way > 0) return;
    LogSum total = LogSum::of(running * kLog2E);
    for (int other = 0; other < kMergeWays; ++other) total = total + of[other][lane];
    running = total.log2() * kLn2;
  }
};

}  // namespace uniclip::cuda
