// The second product of the backward pass, H Z and Hᵀ Z, with sums kept in the accumulator type.
#include <algorithm>
#include <limits>

#include "fixed_point.h"
#include "ops.h"
#include "panel.h"
#include "parallel.h"
#include "tensors.h"

namespace uniclip::cpu {

namespace {

constexpr int64_t kRows = 128;   // of `out` in one task
constexpr int64_t kCols = 512;   // most columns of one task
constexpr int64_t kWidth = 128;  // columns and rows of `b` multiplied at a time: a block of it stays in L2
constexpr int64_t kDepth = 256;

// sums += h b for m rows of h from row i on, and columns [first, end) of b and sums.
template <class C, class T = Accumulator<C>>
void multiply(int64_t m, int64_t depth, const Panel<C>& h, int64_t i, const Tensor& b, int64_t first, int64_t end,
              const Matrix<T>& sums) {
  constexpr int64_t pair = std::is_same_v<C, bfloat16> ? 2 : 1;
  const Matrix<C> right = matrix<C>(b);
  for (int64_t k = 0; k < depth; k += kDepth) {
    for (int64_t j = first; j < end; j += kWidth) {
      const TileOfH<C> tile = h.tile(i, k);
      gemm(m, std::min(kWidth, end - j), std::min(kDepth, depth - k), tile.data, tile.stride, right[k] + pair * j,
           right.stride, sums[i] + j, sums.stride, true, kDepth);
    }
  }
}

// By tiles, since each has its units.
template <>
void multiply(int64_t m, int64_t depth, const Panel<fixed16>& h, int64_t i, const Tensor& b, int64_t first, int64_t end,
              const Matrix<float>& sums) {
  const fixed16* strips = static_cast<const fixed16*>(b.data_ptr());
  for (int64_t j = first; j < end; j += kStrip) {
    const fixed16* strip = strips + j / kStrip * b.stride(1);
    for (int64_t k = 0, end; k < depth; k = end) {
      for (end = k + kBlock; end < depth && *h.tile(i, end).unit == 0;) end += kBlock;
      const TileOfH<fixed16> tile = h.tile(i, k);
      multiply_fixed(m, kStrip, end - k, tile.data, tile.stride, strip + k * kStrip, 0, tile.unit, tile.unit_stride,
                     sums[i] + j, sums.stride, true);
    }
  }
}

// The products do not look for NaN. Rows with one begin with one.
void add_nan(const Tensor& b, const Matrix<float>& sums) {
  const fixed16* strips = static_cast<const fixed16*>(b.data_ptr());
  const int64_t rows = b.size(0), stride = b.stride(1);
  const auto is_nan = [&](int64_t k, int64_t j) {
    return strips[j / kStrip * stride + k / 2 * 2 * kStrip + j % kStrip * 2 + k % 2].steps == kFixedNaN;
  };
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t j = 0; is_nan(k, 0) && j < sums.cols; ++j) {
      for (int64_t i = 0; is_nan(k, j) && i < sums.rows; ++i) sums[i][j] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace

void pack_rows(const Tensor rows, Tensor packed) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    if constexpr (sizeof(C) == 2) {
      const Matrix<C> from = matrix<C>(rows);
      C* to = static_cast<C*>(packed.data_ptr());
      parallel_rows(from.rows / kBlock, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * kBlock; i < end * kBlock; i += kBlock) {
          if constexpr (std::is_same_v<C, bfloat16>) {
            pack_b(from[i], from.stride, kBlock, from.cols, to + i * from.cols);
          } else {
            for (int64_t j = 0; j < from.cols; j += kStrip) {
              pack_b(from[i] + j, from.stride, kBlock, kStrip, to + j * from.rows + i * kStrip);
            }
          }
        }
      });
    }
  });
}

// `b` is as pack_rows leaves 16-bit types, others as they are. `a` is a panel, whose H may be wider than b is high, by
// zeros up to a multiple of kBlock; b's storage goes on that far.
void accumulate(Tensor out, const Tensor a, const Tensor b) {
  dispatch_compute(b, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Matrix<T> sums = matrix<T>(out);
    const Panel<C> left(a);
    const int64_t depth = round_up(b.size(0), kBlock);
    STD_TORCH_CHECK(left.cols() >= depth && left.rows() >= sums.rows && b.numel() == b.size(0) * sums.cols,
                    "accumulate: sizes differ");
    const int64_t row_tasks = ceil_div(sums.rows, kRows);
    const int64_t cols = kStrip * pieces_of_task(row_tasks * ceil_div(sums.cols, kStrip), kCols / kStrip);
    const int64_t col_tasks = ceil_div(sums.cols, cols);
    parallel_tasks(
        row_tasks * col_tasks, [] { return 0; },
        [&](int64_t task, int) {
          const int64_t i = task / col_tasks * kRows, first = task % col_tasks * cols;
          multiply<C>(std::min(kRows, sums.rows - i), depth, left, i, b, first, std::min(first + cols, sums.cols),
                      sums);
        });
    if constexpr (std::is_same_v<C, fixed16>) add_nan(b, sums);
  });
}

}  // namespace uniclip::cpu
