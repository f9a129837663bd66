// The only file that uses PyTorch's unstable C++ interface: its block products have no stable counterpart.
#include "gemm.h"

#include <ATen/native/CPUBlas.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include "fixed_point.h"
#include "tile_kernels.h"

namespace uniclip {

namespace blas = at::native::cpublas;

template <class C>
void pack_b(const C* b, int64_t stride, int64_t k, int64_t n, C* packed) {
  for (int64_t i = 0; i < k; i += 2) {
    tile_kernels<C>().interleave(b + i * stride, b + (i + 1) * stride, packed + i * n, n);
  }
}
template void pack_b(const bfloat16*, int64_t, int64_t, int64_t, bfloat16*);
template void pack_b(const fixed16*, int64_t, int64_t, int64_t, fixed16*);

namespace {
// A pair of neighbours in a row of Bᵀ is a pair of rows of B: one word.
template <class C>
void transpose_pairs(const C* b, int64_t stride, int64_t n, int64_t k, C* packed) {
  transpose(reinterpret_cast<const uint32_t*>(b), stride / 2, n, k / 2, reinterpret_cast<uint32_t*>(packed), n);
}
}  // namespace

template <>
void pack_b_transposed(const float* b, int64_t stride, int64_t n, int64_t k, float* packed) {
  transpose(reinterpret_cast<const uint32_t*>(b), stride, n, k, reinterpret_cast<uint32_t*>(packed), n);
}

template <>
void pack_b_transposed(const bfloat16* b, int64_t stride, int64_t n, int64_t k, bfloat16* packed) {
  transpose_pairs(b, stride, n, k, packed);
}

template <>
void pack_b_transposed(const fixed16* b, int64_t stride, int64_t n, int64_t k, fixed16* packed) {
  for (int64_t j = 0; j < n; j += kStrip) transpose_pairs(b + j * stride, stride, kStrip, k, packed + j * k);
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

template <>
void gemm(int64_t m, int64_t n, int64_t k, const fixed16* a, int64_t a_stride, const fixed16* b, int64_t, float* c,
          int64_t c_stride, bool add) {
  constexpr float unit = 1 / (kFixedSteps * kFixedSteps), nan = std::numeric_limits<float>::quiet_NaN();
  multiply_fixed(m, n, k, a, a_stride, b, kStrip * k, &unit, 0, c, c_stride, add);
  // Rows with a NaN begin with one.
  for (int64_t i = 0; i < m; ++i) {
    if (a[i * a_stride].steps == kFixedNaN) std::fill_n(c + i * c_stride, n, nan);
  }
  for (int64_t j = 0; j < n; ++j) {
    if (b[j / kStrip * k * kStrip + j % kStrip * 2].steps != kFixedNaN) continue;
    for (int64_t i = 0; i < m; ++i) c[i * c_stride + j] = nan;
  }
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
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), view(a, m, k, a_stride).get(),
                                                  view(b, k, n, b_stride).get(), add ? 1.0 : 0.0, 1.0));
}

void gemm_release() { blas::brgemm_release(/*is_vnni=*/true); }

const char* bfloat16_products() {
#if defined(__x86_64__)
  if (std::string_view(instruction_set()) == "avx512" && __builtin_cpu_supports("avx512bf16")) {
    // Intel's processors since Sapphire Rapids have tiles for it, which a virtual machine may hide; with vectors they
    // need twice the time of float32.
    if (__builtin_cpu_supports("amx-bf16") || __builtin_cpu_is("cooperlake") || !__builtin_cpu_is("intel")) {
      return "bfloat16";
    }
  }
#endif
  return has_fixed_point_instruction() ? "int16" : "float32";
}

}  // namespace uniclip
