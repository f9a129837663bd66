#include "fixed_point.h"

#include <cstring>
#include <string_view>

#include "target.h"
#include "tile_kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace uniclip {
namespace {

struct Operands {
  int64_t k;
  const fixed16* a;
  int64_t a_stride;
  const fixed16* b;  // a strip
  const float* unit;
  int64_t unit_stride;
  float* c;
  int64_t c_stride;
};

}  // namespace
}  // namespace uniclip

#if defined(__x86_64__)
UNICLIP_BEGIN_TARGET("avx512f,avx512vnni")
#define UNICLIP_VNNI 1
namespace uniclip::fixed_vnni {
#include "fixed_point.inc"
}  // namespace uniclip::fixed_vnni
#undef UNICLIP_VNNI
UNICLIP_END_TARGET
#endif

#define UNICLIP_VNNI 0
namespace uniclip::fixed_baseline {
#include "fixed_point.inc"
}  // namespace uniclip::fixed_baseline
#undef UNICLIP_VNNI

namespace uniclip {

bool has_fixed_point_instruction() {
#if defined(__x86_64__)
  return std::string_view(instruction_set()) == "avx512" && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

void multiply_fixed(int64_t m, int64_t n, int64_t k, const fixed16* a, int64_t a_stride, const fixed16* b,
                    int64_t b_stride, const float* unit, int64_t unit_stride, float* c, int64_t c_stride, bool add) {
  const Operands operands{k, a, a_stride, b, unit, unit_stride, c, c_stride};
#if defined(__x86_64__)
  static const bool fast = has_fixed_point_instruction();
  if (fast) {
    return (add ? fixed_vnni::multiply<true> : fixed_vnni::multiply<false>)(m, n, b_stride, operands);
  }
#endif
  (add ? fixed_baseline::multiply<true> : fixed_baseline::multiply<false>)(m, n, b_stride, operands);
}

}  // namespace uniclip
