#include "gemm.h"

#include <algorithm>
#include <limits>

#include "amx.h"
#include "fixed_point.h"
#include "tile_kernels.h"

namespace uniclip {

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

template <class C>
void gemm(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_stride, const C* b, int64_t b_stride,
          Accumulator<C>* c, int64_t c_stride, bool add, int64_t chain) {
  multiply(m, n, k, a, a_stride, b, b_stride, c, c_stride, add, chain);
}
template void gemm(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool,
                   int64_t);
template void gemm(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t, bool,
                   int64_t);

template <>
void gemm(int64_t m, int64_t n, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* b, int64_t b_stride,
          float* c, int64_t c_stride, bool add, int64_t chain) {
  if (use_amx()) return multiply_amx(m, n, k, a, a_stride, b, b_stride, c, c_stride, add);
  multiply(m, n, k, a, a_stride, b, b_stride, c, c_stride, add, chain);
}

template <>
void gemm(int64_t m, int64_t n, int64_t k, const fixed16* a, int64_t a_stride, const fixed16* b, int64_t, float* c,
          int64_t c_stride, bool add, int64_t) {
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

void gemm_release() { release_amx(); }

const char* bfloat16_products() {
#if defined(__x86_64__)
  // With vectors, Intel's processors since Sapphire Rapids need twice the time of float32 for it. They have tiles,
  // which a virtual machine may hide.
  if (use_amx()) return "bfloat16";
  if (has_bfloat16_instruction() && (__builtin_cpu_is("cooperlake") || !__builtin_cpu_is("intel"))) return "bfloat16";
#endif
  return has_fixed_point_instruction() ? "int16" : "float32";
}

}  // namespace uniclip
