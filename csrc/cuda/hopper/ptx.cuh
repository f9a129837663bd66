// The instructions of sm_90a that the kernels of this folder are made of, one a function: barriers in shared memory,
// the copy engine, and matrix products by a warpgroup.
#pragma once

#include <cuda.h>

#include "../types.cuh"

namespace uniclip::cuda::hopper::ptx {

using cuda::ptx::exp2_approx;
using cuda::ptx::shared_address;

// Barriers are 8 bytes of shared memory, given by their address. A phase of one ends when all its arrivals are in and
// all bytes that were announced to it have landed.
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier, uint32_t count = 1) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool phase_ended(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
               : "=r"(ended)
               : "r"(barrier), "r"(parity)
               : "memory");
  return ended != 0;
}
// Until the phase of that parity has ended: phases count from 0, and the one before the first counts as ended.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  while (!phase_ended(barrier, parity)) {
  }
}

// A block of a matrix to shared memory, its bytes announced to a barrier.
__device__ __forceinline__ void copy_block(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

// A warpgroup hands registers back to the multiprocessor, or asks for more.
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Named barriers of warpgroups; number 0 is that of __syncthreads(). Until all 128 threads of a warpgroup are here:
__device__ __forceinline__ void sync_warpgroup(int barrier) {
  asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}
// Until the other warpgroup has called hand_over with the same barrier.
__device__ __forceinline__ void take_over(int barrier) { asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void hand_over(int barrier) {
  asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory");
}
// As sync_warpgroup; whether the condition holds for any of the threads.
__device__ __forceinline__ bool any_in_warpgroup(int barrier, bool condition) {
  uint32_t any;
  asm volatile("{\n.reg .pred p, q;\nsetp.ne.b32 p, %2, 0;\nbar.red.or.pred q, %1, 128, p;\nselp.b32 %0, 1, 0, q;\n}"
               : "=r"(any)
               : "r"(barrier), "r"(static_cast<uint32_t>(condition))
               : "memory");
  return any != 0;
}

// Products of a warpgroup run behind its back: begin, any number of multiply, commit; then wait.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last `kPending` groups are done.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving accumulators over a wait.
__device__ __forceinline__ void settle(float (&d)[64]) {
#pragma unroll
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}

// d += a bᵀ for 64 rows of a and 128 of b, 16 columns of each.
template <class E>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b);

#define UNICLIP_WGMMA(E, types)                                                                      \
  template <>                                                                                        \
  __device__ __forceinline__ void multiply<E>(float (&d)[64], uint64_t a, uint64_t b) {              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." types                                \
                 " "                                                                                 \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
                 "%64, %65, 1, 1, 1, 0, 0;"                                                          \
                 : UNICLIP_16(d, 0), UNICLIP_16(d, 16), UNICLIP_16(d, 32), UNICLIP_16(d, 48)         \
                 : "l"(a), "l"(b));                                                                  \
  }
#define UNICLIP_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define UNICLIP_16(d, i) UNICLIP_4(d, i), UNICLIP_4(d, i + 4), UNICLIP_4(d, i + 8), UNICLIP_4(d, i + 12)
UNICLIP_WGMMA(__nv_bfloat16, "bf16.bf16")
UNICLIP_WGMMA(__half, "f16.f16")
#undef UNICLIP_WGMMA
#undef UNICLIP_16
#undef UNICLIP_4

// Two numbers rounded to 16 bits, the first in the lower half.
template <class E>
__device__ __forceinline__ uint32_t pack(float first, float second);
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
template <>
__device__ __forceinline__ uint32_t pack<__half>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// The transpose of an 8 x 8 matrix of 16-bit elements, of which lane l has elements 2 (l % 4) and the next of row l
// / 4.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// 16 bytes to global memory, which nobody reads soon.
__device__ __forceinline__ void store_streaming(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

}  // namespace uniclip::cuda::hopper::ptx
