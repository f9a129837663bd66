// All inline PTX of the kernels, one instruction a function. The host emulation has a twin of each (ptx_twins.h), and
// the PTX executor of the tests runs these themselves. Fragments are laid out as the PTX ISA documents for each mma
// shape.
#pragma once

#include "launch.cuh"

#ifdef __CUDACC__

namespace uniclip::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, landing by the time of the wait that covers them.
__device__ __forceinline__ void cp_async_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but this thread's last `kPending` groups have landed.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 16-byte matrices, whose rows lanes 0-7, 8-15, 16-23 and 24-31 point to; lane l gets word l % 4 of row l / 4.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#define UNICLIP_MMA(name, shape_and_types)                                                              \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." shape_and_types                                                    \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                   \
  }
UNICLIP_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
UNICLIP_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
UNICLIP_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef UNICLIP_MMA

// Nearest TF32 number, in the bits of a float32.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
// 2^x to about 2^-22, with subnormal results flushed to zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace uniclip::cuda::ptx

#else
#include "ptx_twins.h"
#endif
