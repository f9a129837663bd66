#include "fixed_point.h"

#include <cstring>
#include <string_view>

#include "tile_kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace uniclip {

namespace {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

constexpr int kLanes = 16;
constexpr int kVectors = kStrip / kLanes;
constexpr int64_t kLine = 32;  // elements of a line of cache
constexpr int kRows = 8;       // 16 sums, enough to hide the latency of the instruction that adds to them

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

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// sum += a's two halves of each lane times b's.
template <bool vnni>
__attribute__((always_inline)) inline void dot2(Ints& sum, Ints a, Ints b) {
#if defined(__x86_64__)
  if constexpr (vnni) {
    // The intrinsic has GCC copy every sum to and fro, at half the speed.
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return;
  }
#endif
  sum = (Ints)((Words)sum + (Words)((a << 16 >> 16) * (b << 16 >> 16)) + (Words)((a >> 16) * (b >> 16)));
}

// `rows` rows of a strip of c.
template <int rows, bool add, bool vnni>
__attribute__((always_inline)) inline void multiply_rows(const Operands o) {
  Ints sum[rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = Ints{};
      if (add) __builtin_prefetch(o.c + r * o.c_stride + kLanes * v, 1);  // wanted at the end
    }
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < o.k; k += 2) {
    // the next rows, whose lines lie too far apart for the processor to foresee
    __builtin_prefetch(o.a + (rows + k / 2 % rows) * o.a_stride + k);
    Ints b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b[v] = load<Ints>(o.b + k * kStrip + 2 * kLanes * v);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Ints a = load<int32_t>(o.a + r * o.a_stride + k) - Ints{};
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) dot2<vnni>(sum[r][v], a, b[v]);
    }
  }
  float* c = o.c;
  const float* unit = o.unit;
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r, c += o.c_stride, unit += o.unit_stride) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Floats product = __builtin_convertvector(sum[r][v], Floats) * *unit;
      const Floats out = add ? load<Floats>(c + kLanes * v) + product : product;
      std::memcpy(c + kLanes * v, &out, sizeof out);
    }
  }
}

template <bool add, bool vnni>
__attribute__((always_inline)) inline void multiply(int64_t m, int64_t n, int64_t b_stride, const Operands& whole) {
  // A sum goes on with the rows of b below these: every block of rows of c asks for its part of them.
  const int64_t below = whole.k * kStrip, part = below * kRows / m;
  for (int64_t j = 0; j < n; j += kStrip) {
    Operands o = whole;
    o.b += j / kStrip * b_stride;
    for (int64_t i = 0; i < m;) {
      o.a = whole.a + i * o.a_stride;
      o.unit = whole.unit + i * o.unit_stride;
      o.c = whole.c + i * o.c_stride + j;
      if (m - i >= kRows) {
        for (int64_t p = 0; add && p < part; p += kLine) __builtin_prefetch(o.b + below + i / kRows * part + p);
        multiply_rows<kRows, add, vnni>(o);
        i += kRows;
      } else {
        multiply_rows<1, add, vnni>(o);
        i += 1;
      }
    }
  }
}

#if defined(__x86_64__)
template <bool add>
__attribute__((target("avx512f,avx512vnni"))) void multiply_vnni(int64_t m, int64_t n, int64_t b_stride,
                                                                 const Operands& operands) {
  multiply<add, true>(m, n, b_stride, operands);
}
#endif

}  // namespace

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
  if (fast) return (add ? multiply_vnni<true> : multiply_vnni<false>)(m, n, b_stride, operands);
#endif
  (add ? multiply<true, false> : multiply<false, false>)(m, n, b_stride, operands);
}

}  // namespace uniclip
