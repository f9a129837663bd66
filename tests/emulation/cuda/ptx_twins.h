// What each function of csrc/cuda/ptx.cuh does, for the host: fragments as the PTX ISA documents them.
// mma multiplies exactly and truncates its sum once, about as an H100 was seen to. TF32 operands are truncated, as by
// hardware.
#pragma once

#include <cfloat>
#include <cmath>

#include "emulation.h"

namespace uniclip::cuda::ptx {

using emulation::Where;

// Lands as late as the ISA allows, in the wait, and until then the target holds NaN: a missing wait shows.
inline void cp_async_16(void* to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0) {
    emulation::fail("cp.async of a misaligned address");
  }
  for (int i = 0; i < 16; ++i) static_cast<volatile unsigned char*>(to)[i] = 0xFF;
  emulation::self().copies.back().push_back({to, from});
}
inline void cp_async_commit() { emulation::self().copies.emplace_back(); }
template <int kPending>
void cp_async_wait() {
  auto& groups = emulation::self().copies;
  while (groups.size() > kPending + 1) {
    for (const emulation::Copy& copy : groups.front()) {
      for (int i = 0; i < 16; ++i) static_cast<char*>(copy.to)[i] = static_cast<const char*>(copy.from)[i];
    }
    groups.erase(groups.begin());
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  struct Words {
    uint32_t of[4];
  } mine, result;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("ldmatrix of a misaligned row");
  for (int i = 0; i < 4; ++i) mine.of[i] = static_cast<const uint32_t*>(row)[i];  // read here, where sanitizers see it
  const auto spread = [](const void* const* in, void* const* out) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto* words = static_cast<const Words*>(in[matrix * 8 + lane / 4]);
        static_cast<Words*>(out[lane])->of[matrix] = words->of[lane % 4];
      }
    }
  };
  emulation::warp_operation(&mine, &result, spread, where);
  for (int i = 0; i < 4; ++i) r[i] = result.of[i];
}

inline float towards_zero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(nearest) > std::fabs(x) ? std::nextafter(nearest, 0.f) : nearest;
}

// d += a b for a (16, kDepth) and b (kDepth, 8), where `element` takes the h-th number of kPerWord out of a word.
template <int kPerWord, class F>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const F& element, Where where) {
  constexpr int kDepth = 8 * kPerWord;
  struct Fragments {
    float d[4];
    uint32_t a[4], b[2];
  } mine;
  for (int i = 0; i < 4; ++i) {
    mine.d[i] = d[i];
    mine.a[i] = a[i];
    if (i < 2) mine.b[i] = b[i];
  }
  const auto multiply = [&](const void* const* in, void* const* out) {
    float left[16][kDepth], right[8][kDepth];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& f = *static_cast<const Fragments*>(in[lane]);
      const int group = lane / 4, first = lane % 4 * kPerWord;
      for (int h = 0; h < kPerWord; ++h) {
        for (int i = 0; i < 4; ++i) left[group + i % 2 * 8][first + h + i / 2 * kDepth / 2] = element(f.a[i], h);
        for (int i = 0; i < 2; ++i) right[group][first + h + i * kDepth / 2] = element(f.b[i], h);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const auto& f = *static_cast<const Fragments*>(in[lane]);
      for (int i = 0; i < 4; ++i) {
        double sum = f.d[i];
        for (int k = 0; k < kDepth; ++k) {
          sum += double(left[lane / 4 + i / 2 * 8][k]) * double(right[lane % 4 * 2 + i % 2][k]);
        }
        static_cast<float*>(out[lane])[i] = towards_zero(sum);
      }
    }
  };
  float result[4];
  emulation::warp_operation(&mine, result, multiply, where);
  for (int i = 0; i < 4; ++i) d[i] = result[i];
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  mma<2>(
      d, a, b, [](uint32_t word, int h) { return std::bit_cast<float>(h == 1 ? word & 0xFFFF0000u : word << 16); },
      where);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  const auto element = [](uint32_t word, int h) {
    return __half2float(std::bit_cast<__half>(static_cast<uint16_t>(word >> (16 * h))));
  };
  mma<2>(d, a, b, element, where);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  mma<1>(d, a, b, [](uint32_t word, int) { return std::bit_cast<float>(word & ~0x1FFFu); }, where);
}

// To nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1FFFu : bits;
}

inline float exp2_approx(float x) {
  const float y = std::exp2(std::fabs(x) < FLT_MIN ? 0.f : x);
  return y < FLT_MIN ? 0.f : y;
}

}  // namespace uniclip::cuda::ptx
