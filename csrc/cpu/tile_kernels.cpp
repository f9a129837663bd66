// Compiles tile_kernels.inc and gemm.inc for each instruction set and chooses among them.
#include "tile_kernels.h"

#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>
#include <utility>

#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__)
UNICLIP_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define UNICLIP_VECTOR_BYTES 64
namespace uniclip::avx512 {
#include "gemm.inc"
#include "tile_kernels.inc"
}  // namespace uniclip::avx512
#undef UNICLIP_VECTOR_BYTES
UNICLIP_END_TARGET

UNICLIP_BEGIN_TARGET("avx2,fma")
#define UNICLIP_VECTOR_BYTES 32
namespace uniclip::avx2 {
#include "gemm.inc"
#include "tile_kernels.inc"
}  // namespace uniclip::avx2
#undef UNICLIP_VECTOR_BYTES
UNICLIP_END_TARGET
#endif

#define UNICLIP_VECTOR_BYTES 16
namespace uniclip::baseline {
#include "gemm.inc"
#include "tile_kernels.inc"
}  // namespace uniclip::baseline
#undef UNICLIP_VECTOR_BYTES

namespace uniclip {
namespace {

enum class Level { kBaseline, kAvx2, kAvx512 };

Level detect() {
  Level level = Level::kBaseline;
#if defined(__x86_64__)
  const char* set = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = set ? set : "avx512";
  if (wanted == "default") return level;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) level = Level::kAvx2;
  if (wanted == "avx2") return level;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    level = Level::kAvx512;
  }
#endif
  return level;
}

Level level() {
  static const Level chosen = detect();
  return chosen;
}

#if defined(__x86_64__)
#define UNICLIP_CHOOSE(...)                        \
  (level() == Level::kAvx512 ? avx512::__VA_ARGS__ \
   : level() == Level::kAvx2 ? avx2::__VA_ARGS__   \
                             : baseline::__VA_ARGS__)
#else
#define UNICLIP_CHOOSE(...) baseline::__VA_ARGS__
#endif

}  // namespace

const char* instruction_set() {
  constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(level())];
}

bool has_bfloat16_instruction() {
#if defined(__x86_64__)
  return level() == Level::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void transpose(const uint32_t* in, int64_t in_stride, int64_t rows, int64_t cols, uint32_t* out, int64_t out_stride) {
  UNICLIP_CHOOSE(transpose(in, in_stride, rows, cols, out, out_stride));
}

template <class C>
void multiply(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_stride, const C* b, int64_t b_stride,
              Accumulator<C>* c, int64_t c_stride, bool add, int64_t chain) {
  UNICLIP_CHOOSE(multiply(m, n, k, a, a_stride, b, b_stride, c, c_stride, add, chain));
}
template void multiply(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool,
                       int64_t);
template void multiply(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t,
                       bool, int64_t);

template <>
void multiply(int64_t m, int64_t n, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* b, int64_t b_stride,
              float* c, int64_t c_stride, bool add, int64_t chain) {
#if defined(__x86_64__)
  static const bool fast = has_bfloat16_instruction();
  if (fast) {
    return avx512::multiply<bfloat16, avx512::BFloat16Instruction>(m, n, k, a, a_stride, b, b_stride, c, c_stride, add,
                                                                   chain);
  }
#endif
  UNICLIP_CHOOSE(multiply(m, n, k, a, a_stride, b, b_stride, c, c_stride, add, chain));
}

template <class C>
const TileKernels<C>& tile_kernels() {
  static const TileKernels<C> table = UNICLIP_CHOOSE(tile_table<C>());
  return table;
}
template const TileKernels<float>& tile_kernels<float>();
template const TileKernels<double>& tile_kernels<double>();
template const TileKernels<bfloat16>& tile_kernels<bfloat16>();
template const TileKernels<fixed16>& tile_kernels<fixed16>();

template <class In, class C>
const RowKernels<In, C>& row_kernels() {
  static const RowKernels<In, C> table = UNICLIP_CHOOSE(row_table<In, C>());
  return table;
}
template const RowKernels<double, double>& row_kernels<double, double>();
template const RowKernels<float, float>& row_kernels<float, float>();
template const RowKernels<half, float>& row_kernels<half, float>();
template const RowKernels<bfloat16, float>& row_kernels<bfloat16, float>();
template const RowKernels<bfloat16, bfloat16>& row_kernels<bfloat16, bfloat16>();
template const RowKernels<bfloat16, fixed16>& row_kernels<bfloat16, fixed16>();

}  // namespace uniclip
