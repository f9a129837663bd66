// Products of fixed-point blocks: integers, so the sum over k is exact and the same on every processor.
#pragma once

#include "types.h"

namespace uniclip {

// c (m x n) = a (m x k) times b (k x n), row i in units of unit[i * unit_stride] (of a product of steps), added to c if
// `add`. b lies in strips of kStrip columns, b_stride apart, and there in pairs of rows: [k / 2][kStrip][2]. n is a
// multiple of kStrip, k of 2. No sum may pass 2^31 steps: true of two rows of length 1 (Cauchy and Schwarz), and of the
// rows of H by their unit. NaN is not looked at.
constexpr int64_t kStrip = 32;
void multiply_fixed(int64_t m, int64_t n, int64_t k, const fixed16* a, int64_t a_stride, const fixed16* b,
                    int64_t b_stride, const float* unit, int64_t unit_stride, float* c, int64_t c_stride, bool add);

// Has this processor an instruction for it, at twice the rate of float32? Without one the product is right but slow.
bool has_fixed_point_instruction();

}  // namespace uniclip
