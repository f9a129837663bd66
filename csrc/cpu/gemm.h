// Matrix products of small blocks by the library that PyTorch carries (oneDNN's brgemm, else its BLAS), one thread
// each.
#pragma once

#include "types.h"

namespace uniclip {

// How B of C = A B must lie in memory: as given (k rows of n), or, for bfloat16, in pairs of rows: [k / 2][n][2].
// pack_b takes B (k x n), pack_b_transposed takes Bᵀ (n x k); n and k are multiples of 32, the packed stride is n.
template <class C>
void pack_b(const C* b, int64_t stride, int64_t k, int64_t n, C* packed);
template <class C>
void pack_b_transposed(const C* b, int64_t stride, int64_t n, int64_t k, C* packed);

// c (m x n) = a (m x k) times b (k x n, laid out as above, stride b_stride), added to c if `add`.
template <class C>
void gemm(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_stride, const C* b, int64_t b_stride,
          Accumulator<C>* c, int64_t c_stride, bool add);

// To be called by a thread after its last product of a parallel region: gives the processor's tile registers back.
void gemm_release();

// Does this processor multiply bfloat16 faster than float32?
bool has_fast_bfloat16();

}  // namespace uniclip
