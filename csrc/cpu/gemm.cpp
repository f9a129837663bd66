// The only file that uses PyTorch's unstable C++ interface: its block products have no stable counterpart.
#include "gemm.h"

#include <ATen/native/CPUBlas.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <string_view>

#include "tile_kernels.h"

namespace uniclip {

namespace blas = at::native::cpublas;

template <>
void pack_b(const bfloat16* b, int64_t stride, int64_t k, int64_t n, bfloat16* packed) {
  for (int64_t i = 0; i < k; i += 2)
    tile_kernels<bfloat16>().interleave(b + i * stride, b + (i + 1) * stride, packed + i * n, n);
}

template <>
void pack_b_transposed(const float* b, int64_t stride, int64_t n, int64_t k, float* packed) {
  transpose(reinterpret_cast<const uint32_t*>(b), stride, n, k, reinterpret_cast<uint32_t*>(packed), n);
}

template <>
void pack_b_transposed(const bfloat16* b, int64_t stride, int64_t n, int64_t k, bfloat16* packed) {
  // A pair of neighbours in a row of Bᵀ is a pair of rows of B: one word.
  transpose(reinterpret_cast<const uint32_t*>(b), stride / 2, n, k / 2, reinterpret_cast<uint32_t*>(packed), n);
}

template <>
void pack_b_transposed(const double* b, int64_t stride, int64_t n, int64_t k, double* packed) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i) packed[i * n + j] = b[j * stride + i];
  }
}

template <>
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
          int64_t c_stride, bool add) {
  blas::brgemm(m, n, k, a_stride, b_stride, c_stride, add, a, b, c, /*is_vnni=*/false);
}

template <>
void gemm(int64_t m, int64_t n, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* b, int64_t b_stride,
          float* c, int64_t c_stride, bool add) {
  blas::brgemm(m, n, k, a_stride, b_stride, c_stride, add, reinterpret_cast<const at::BFloat16*>(a),
               reinterpret_cast<const at::BFloat16*>(b), c, /*is_vnni=*/true);
}

// There is no block product for doubles: the ordinary one, on views of the blocks.
template <>
void gemm(int64_t m, int64_t n, int64_t k, const double* a, int64_t a_stride, const double* b, int64_t b_stride,
          double* c, int64_t c_stride, bool add) {
  const auto view = [](const double* data, int64_t rows, int64_t cols, int64_t stride) {
    return torch::stable::from_blob(const_cast<double*>(data), std::array{rows, cols}, std::array{stride, int64_t(1)},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                    torch::headeronly::ScalarType::Double);
  };
  const auto out = view(c, m, n, c_stride);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), view(a, m, k, a_stride).get(),
                                                         view(b, k, n, b_stride).get(), add ? 1.0 : 0.0, 1.0));
}

void gemm_release() { blas::brgemm_release(/*is_vnni=*/true); }

bool has_fast_bfloat16() {
#if defined(__x86_64__)
  if (std::string_view(instruction_set()) != "avx512" || !__builtin_cpu_supports("avx512bf16")) return false;
  // Intel's processors since Sapphire Rapids have tiles for it, which a virtual machine may hide; with vectors they
  // need twice the time of float32.
  return __builtin_cpu_supports("amx-bf16") || __builtin_cpu_is("cooperlake") || !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace uniclip
