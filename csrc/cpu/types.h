// Element types and what belongs to each: the type that sums are kept in. Numbers that all files share.
#pragma once

#include <cstdint>

namespace uniclip {

struct bfloat16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};
// A number of [-1, 1] in steps of 1 / 32767, whose products integers add up exactly. The lowest stands for NaN.
struct fixed16 {
  int16_t steps;
};
constexpr float kFixedSteps = 32767;
constexpr int16_t kFixedNaN = -32768;

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Rows of a tile of the layout: domains start at multiples of it, and widths of products are padded to it.
constexpr int64_t kBlock = 32;

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

}  // namespace uniclip
