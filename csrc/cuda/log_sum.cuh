// Sums of exponentials that neither overflow nor vanish, and of softplus.
#pragma once

#include "types.cuh"

namespace uniclip::cuda {

constexpr float kNothing = -INFINITY;  // the logarithm of an empty sum

// log2(1 + 2^x) and its derivative, both exact where they are small.
struct Softplus {
  float value, slope;
  __device__ explicit Softplus(float x) {
    // log2(1 + e) / e for e in [0, 1] to 3e-8
    constexpr float kLog[] = {1.4426950f,   -0.72134018f, 0.48069295f,  -0.35840848f, 0.27564141f,
                              -0.19711897f, 0.11285619f,  -0.04256706f, 0.0075491820f};
    constexpr int kDegree = sizeof(kLog) / sizeof(float) - 1;
    const float e = ptx::exp2_approx(-fabsf(x));
    float log = kLog[kDegree];
#pragma unroll
    for (int k = kDegree - 1; k >= 0; --k) log = log * e + kLog[k];
    value = log * e + fmaxf(x, 0.f);
    slope = __fdividef(x > 0 ? 1.f : e, 1 + e);
  }
};

// Σ 2^x as a maximum and a sum of 2^(x - maximum).
struct LogSum {
  float max, sum;

  static __device__ __forceinline__ float term(float x, float pivot) { return ptx::exp2_approx(x - pivot); }

  // A pivot that can be subtracted: 0 where nothing has been added.
  static __device__ __forceinline__ float pivot(float max) { return max == kNothing ? 0.f : max; }
  static __device__ LogSum nothing() { return {kNothing, 0}; }
  static __device__ LogSum of(float log2) { return {log2, log2 == kNothing ? 0.f : 1.f}; }
  __device__ LogSum operator+(const LogSum& other) const {
    const float top = fmaxf(max, other.max), base = pivot(top);
    return {top, sum * ptx::exp2_approx(max - base) + other.sum * ptx::exp2_approx(other.max - base)};
  }
  __device__ float log2() const { return pivot(max) + log2f(sum); }
  __device__ void store(float* out, int64_t) const { *out = log2(); }
};

// Σ softplus, and the largest x.
struct SoftplusSum {
  float max, sum;

  static __device__ __forceinline__ float term(float x, float) { return Softplus(x).value; }
  static __device__ __forceinline__ float pivot(float) { return 0; }
  static __device__ SoftplusSum nothing() { return {kNothing, 0}; }
  __device__ SoftplusSum operator+(const SoftplusSum& other) const { return {fmaxf(max, other.max), sum + other.sum}; }
  // Both natural, the largest x `to_top` elements behind the sum.
  __device__ void store(float* out, int64_t to_top) const {
    out[0] = sum * kLn2;
    out[to_top] = max * kLn2;
  }
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
