// How the rows of each operand type are multiplied on the tensor cores, and conversions of elements.
#pragma once

#include "operands.h"
#include "ptx.cuh"

namespace uniclip::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// An operand type has: Element, as stored; Fragment<N>, N words of a thread's share of an operand ready for
// multiplication; fragment() from the words as loaded; multiply(), d += a b over 32 bytes of depth; and, as many as
// registers allow, kUnrolledSteps of 32 bytes and kBlocks that share a multiprocessor.

struct BFloat16 {
  using Element = __nv_bfloat16;
  static constexpr int kUnrolledSteps = 2, kBlocks = 2;
  template <int N>
  struct Fragment {
    uint32_t words[N];
  };
  template <int N>
  static __device__ __forceinline__ Fragment<N> fragment(const uint32_t* words) {
    Fragment<N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.words[i] = words[i];
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    ptx::mma_bf16(d, a.words, b.words);
  }
};

struct Half : BFloat16 {
  using Element = __half;
  static __device__ __forceinline__ void multiply(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    ptx::mma_f16(d, a.words, b.words);
  }
};

// float32 rounded to TF32.
struct TF32 {
  using Element = float;
  static constexpr int kUnrolledSteps = 2, kBlocks = 2;
  template <int N>
  using Fragment = BFloat16::Fragment<N>;
  template <int N>
  static __device__ __forceinline__ Fragment<N> fragment(const uint32_t* words) {
    Fragment<N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.words[i] = ptx::to_tf32(__int_as_float(static_cast<int>(words[i])));
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    ptx::mma_tf32(d, a.words, b.words);
  }
};

// float32 as a sum of two TF32 numbers; the product of the small parts is below the rounding of the sum. Tensor cores
// truncate their sums: they get those of 8 columns alone, which are then added with rounding to nearest.
struct Float {
  using Element = float;
  static constexpr int kUnrolledSteps = 1, kBlocks = 1;
  template <int N>
  struct Fragment {
    uint32_t big[N], small[N];
  };
  template <int N>
  static __device__ __forceinline__ Fragment<N> fragment(const uint32_t* words) {
    Fragment<N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float x = __int_as_float(static_cast<int>(words[i]));
      out.big[i] = ptx::to_tf32(x);
      out.small[i] = ptx::to_tf32(x - __int_as_float(static_cast<int>(out.big[i])));
    }
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    float sum[4] = {};
    ptx::mma_tf32(sum, a.small, b.big);
    ptx::mma_tf32(sum, a.big, b.small);
    ptx::mma_tf32(sum, a.big, b.big);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class E>
__device__ __forceinline__ E from_float(float x) {
  if constexpr (sizeof(E) == 4) {
    return x;
  } else if constexpr (std::is_same_v<E, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Calls f(T{}) with the operand type, or f(T{}, flag) with a flag that is known to the compiler.
template <class F>
int with_operand(Operand operand, const F& f) {
  switch (operand) {
    case Operand::kBFloat16:
      return f(BFloat16{});
    case Operand::kHalf:
      return f(Half{});
    case Operand::kTF32:
      return f(TF32{});
    default:
      return f(Float{});
  }
}
template <class F>
int with_operand(Operand operand, bool flag, const F& f) {
  return with_operand(operand,
                      [&](auto type) -> int { return flag ? f(type, std::true_type{}) : f(type, std::false_type{}); });
}

}  // namespace uniclip::cuda
