// What differs between a CUDA compiler and the host emulation of the tests: launches and shared memory.
// Kernels are launched by launch(), never by <<<>>>, and have one struct of dynamic shared memory, so that a C++
// compiler takes the same sources.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace uniclip::cuda {

template <class T>
__device__ T& shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];  // as the copy engine's swizzles want it
  return *reinterpret_cast<T*>(bytes);
}

// Runs a kernel on a stream, nothing for an empty grid. Returns what cudaGetLastError says.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > kWithoutAsking) {
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace uniclip::cuda

#else
#include "emulation.h"
#endif
