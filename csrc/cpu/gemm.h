// Matrix products of small blocks, one thread each. They are our own, since PyTorch's block products have no stable
// interface.
#pragma once

#include "types.h"

namespace uniclip {

// How B of C = A B must lie in memory: as given (k rows of n), or, for 16-bit types, in pairs of rows: [k / 2][n][2].
// Fixed point wants strips of such pairs (fixed_point.h): pack_b packs one, pack_b_transposed all of them.
// pack_b takes B (k x n), pack_b_transposed takes Bᵀ (n x k); n and k are multiples of 32, the packed stride is n.
template <class C>
void pack_b(const C* b, int64_t stride, int64_t k, int64_t n, C* packed);
template <class C>
void pack_b_transposed(const C* b, int64_t stride, int64_t n, int64_t k, C* packed);

// Of similarities, whose errors exponentials enlarge.
constexpr int64_t kShortChain = 64;

// c (m x n) = a (m x k) times b (k x n, laid out as above, stride b_stride), added to c if `add`. Sums that take one
// product after the other do so for `chain` products, and are then added up: rounding grows with the length of chains.
template <class C>
void gemm(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_stride, const C* b, int64_t b_stride,
          Accumulator<C>* c, int64_t c_stride, bool add, int64_t chain);

// To be called by a thread after its last product of a parallel region: gives the processor's tile registers back.
void gemm_release();

// The type in which this processor multiplies rows given in bfloat16 fastest, as PyTorch names it: "bfloat16" itself,
// "int16" for fixed point, or "float32".
const char* bfloat16_products();

}  // namespace uniclip
