// The inner loops, in one variant for each instruction set; the best one that the processor has is chosen at run time.
#pragma once

#include <algorithm>
#include <limits>

#include "types.h"

namespace uniclip {

// Rows and columns of the largest tile.
constexpr int kMaxTile = 256;

// A tile of dot products in memory. Similarities in base 2 are x = (dot - offset) * scale, scale = log2(e) / τ.
template <class T>
struct Tile {
  T* dots;
  int64_t stride;                // of rows
  int rows, cols;                // filled
  int padded_rows, padded_cols;  // may be read; multiples of the widest vector
  T scale, offset;
  const int32_t* row_ids;  // sample numbers, or null where the tile cannot hold two rows of one sample
  const int32_t* col_ids;
};

// Statistics of some pairs in base 2, x = log2(e) s: a maximum, and Σ 2^(x - maximum) or Σ softplus(s).
template <class T>
struct Statistics {
  T* max;
  T* sum;

  void clear(int n) const {
    std::fill_n(max, n, -std::numeric_limits<T>::infinity());
    std::fill_n(sum, n, T(0));
  }
};

// One number for each row and for each column of a tile.
template <class T>
struct Sides {
  const T *row, *col;
};

// What weighs the negatives of a tile: see uniclip_kernels/_problem.py, as for the next. Exponents are in base 2.
template <class T>
struct Negatives {
  bool softmax;
  Sides<T> lse, coefficient;
};

// The positives of a tile: pairs of one number, which ascend on either side. On the diagonal row i and column i are one
// slot, which is no pair, and every other pair is there twice.
template <class T>
struct Positives {
  const int32_t *row_ids, *col_ids;
  bool diagonal, softmax;
  Sides<T> base;          // with softmax +inf where there is no positive
  Sides<T> slope, share;  // for the gradient; share times the weight of the pair of domains
};

// Σ softplus(base - s) and Σ σ(base - s) over positives, or with softmax Σ s and Σ 1, and how many they are.
template <class T>
struct PositiveSums {
  T *loss, *slope, *count;
};

// Where a tile of H goes. Rows in fixed point have a unit for each tile, in which their elements stay below 1 and their
// sums over the tile below 2: products with unit rows then fit 32 bits. There is a place for one beside each kBlock
// columns: the first of the tile holds it, the others 0.
template <class C>
struct TileOfH {
  C* data;
  int64_t stride;
  float* unit;  // of row i at unit[i * unit_stride]; null for other types
  int64_t unit_stride;
};

// C is the type of the rows, T the type of all sums.
template <class C>
struct TileKernels {
  using T = Accumulator<C>;

  // Row and column statistics of a tile, of its positives or, where these are null, of its negatives; the second those
  // of softplus. `room` is for a copy of the tile.
  void (*lse_tile)(const Tile<T>& tile, const Positives<T>* positives, T* room, Statistics<T> row, Statistics<T> col);
  void (*softplus_tile)(const Tile<T>& tile, T* room, Statistics<T> row, Statistics<T> col);

  // lse[i] (natural) joined with parts[p * stride + i], p < parts, for i < n.
  void (*merge_lse)(T* lse, Statistics<T> parts, int count, int64_t stride, int64_t n);

  // Sums over the positives of each row and, off the diagonal, of each column.
  void (*positives_tile)(const Tile<T>& tile, const Positives<T>& positives, PositiveSums<T> row, PositiveSums<T> col);

  // factor * H of negatives and positives (null: there is none), zero elsewhere up to the padding: in h, in rows of
  // padded_cols, and rounded to C in out. Sets Σ H and Σ H x of negatives, then of positives.
  void (*grad_tile)(const Tile<T>& tile, const Negatives<T>& negatives, const Positives<T>* positives, T factor, T* h,
                    TileOfH<C> out, double sums[4]);

  // out = in, or in transposed, rounded to C; rows and cols of `in` are multiples of the widest vector.
  void (*store)(const T* in, int rows, int cols, TileOfH<C> out);
  void (*store_transposed)(const T* in, int rows, int cols, TileOfH<C> out);

  // out = a[0], b[0], a[1], b[1], …; n is a multiple of the widest vector.
  void (*interleave)(const C* a, const C* b, C* out, int64_t n);

  // Tiles of domain_similarity: s = dot * scale[j] - shift[j], columns of any domain, n columns.
  void (*affine_row)(const T* dots, const T* scale, const T* shift, T* s, int64_t n);
  // h = grad * factor[j], with Σ grad and Σ grad s added to each column's pair of sums.
  void (*affine_grad_row)(const T* grad, const T* s, const T* factor, T* h, T* sum_grad, T* sum_grad_s, int64_t n);
};

// Rows of the user's type In to and from rows of the compute type C.
template <class In, class C>
struct RowKernels {
  using T = Accumulator<C>;
  T (*norm)(const In* x, int64_t n);
  void (*scale)(const In* x, T factor, C* out, int64_t n);
  // out = factor (g - u (u·g)), u = inv_norm x, or factor g where `project` is false.
  void (*backward)(const T* g, const In* x, T inv_norm, bool project, T factor, In* out, int64_t n);
};

template <class C>
const TileKernels<C>& tile_kernels();
template <class In, class C>
const RowKernels<In, C>& row_kernels();

// out (cols x rows) = in (rows x cols) transposed, in 32-bit words.
void transpose(const uint32_t* in, int64_t in_stride, int64_t rows, int64_t cols, uint32_t* out, int64_t out_stride);

// c (m x n) = a (m x k) b (k x n), added to c if `add`; of bfloat16, b lies in pairs of rows: [k / 2][n][2]. n is a
// multiple of 32, k and `chain` (gemm.h) of 2.
template <class C>
void multiply(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_stride, const C* b, int64_t b_stride,
              Accumulator<C>* c, int64_t c_stride, bool add, int64_t chain);

// "avx512", "avx2" or "baseline": as the processor has it and ATEN_CPU_CAPABILITY, PyTorch's own switch, allows.
const char* instruction_set();

// Has this processor an instruction for products of bfloat16? Without one they are right but slow.
bool has_bfloat16_instruction();

}  // namespace uniclip
