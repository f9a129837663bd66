// CUDA C++ for a C++ compiler on the host: as much of the language and the runtime as the kernels in csrc/cuda use.
// csrc/cuda/launch.cuh includes this where there is no CUDA compiler.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dlfcn.h>
#include <math.h>

#include <bit>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "block.h"

#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct EmulatedIndex {
  unsigned x;
};
#define threadIdx (EmulatedIndex{emulation::self().index})
#define blockIdx (EmulatedIndex{emulation::self().block->index})

inline void __syncthreads(emulation::Where where = emulation::Where::current()) { emulation::barrier(where); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, emulation::Where where = emulation::Where::current()) {
  if (mask != 0xffffffffu) emulation::fail("only whole warps are emulated");
  T result;
  const auto exchange = [=](const void* const* in, void* const* out) {
    for (int lane = 0; lane < 32; ++lane) *static_cast<T*>(out[lane]) = *static_cast<const T*>(in[lane ^ other]);
  };
  emulation::warp_operation(&value, &result, exchange, where);
  return result;
}

inline float __fdividef(float x, float y) { return x / y; }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace emulation {

struct Argument {
  const void* value;
  int64_t bytes;
};
// If set, launches go here instead of being executed: the tests then run the compiled PTX of the kernel of this name.
using LaunchHook = void (*)(const char* kernel, int64_t blocks, int threads, int64_t shared_bytes, int argument_count,
                            const Argument* arguments);
inline LaunchHook launch_hook = nullptr;

}  // namespace emulation

namespace uniclip::cuda {

template <class T>
T& shared_memory() {
  emulation::Block& block = *emulation::self().block;
  if (sizeof(T) > block.shared_bytes) emulation::fail("too little shared memory was asked for");
  return *reinterpret_cast<T*>(block.shared.get());
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
  constexpr size_t kLeastLimit = 99 << 10;  // of compute capability 12.0, the least of those that are built for
  if (blocks == 0) return cudaSuccess;
  if (blocks < 0 || blocks > 0x7fffffff || threads > 1024 || threads % 32 != 0 || shared_bytes > kLeastLimit) {
    emulation::fail("impossible launch");
  }
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  if (emulation::launch_hook == nullptr) {
    emulation::Grid(blocks, threads, shared_bytes, [&] { std::apply(kernel, values); }).run();
    return cudaSuccess;
  }
  Dl_info symbol;
  if (dladdr(reinterpret_cast<void*>(kernel), &symbol) == 0 || symbol.dli_sname == nullptr) {
    emulation::fail("a kernel without a name");
  }
  std::apply(
      [&](const auto&... each) {
        const emulation::Argument list[] = {{&each, sizeof(each)}...};
        emulation::launch_hook(symbol.dli_sname, blocks, threads, shared_bytes, sizeof...(each), list);
      },
      values);
  return cudaSuccess;
}

}  // namespace uniclip::cuda
