// Where H / τ of a rectangle lives between its computation and the second product.
#pragma once

#include <type_traits>

#include "ops.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

constexpr int64_t kTile = 128;  // tile of S: with its operands at D = 512 it stays within 1 MiB of L2

// A matrix whose last kSpare columns are no part of H: they keep the rows from being a power of two apart, which would
// have them compete for the same lines of cache, and rows in fixed point have the unit of each of their tiles there.
constexpr int64_t kSpare = 3 * kBlock;

template <class C>
class Panel {
 public:
  explicit Panel(const Tensor& t) : matrix_(matrix<C>(t)) {
    constexpr bool has_units = std::is_same_v<C, fixed16>;
    STD_TORCH_CHECK(!has_units || cols() / kBlock * int64_t(sizeof(float)) <= kSpare * int64_t(sizeof(C)),
                    "a panel of H is too wide");
  }

  int64_t rows() const { return matrix_.rows; }
  int64_t cols() const { return matrix_.cols - kSpare; }

  // From row i and column j on, both multiples of kBlock.
  TileOfH<C> tile(int64_t i, int64_t j) const {
    C* row = matrix_[i];
    TileOfH<C> tile{row + j, matrix_.stride, nullptr, 0};
    if constexpr (std::is_same_v<C, fixed16>) {
      tile.unit = reinterpret_cast<float*>(row + cols()) + j / kBlock;
      tile.unit_stride = matrix_.stride / 2;
    }
    return tile;
  }

 private:
  Matrix<C> matrix_;
};

}  // namespace uniclip::cpu
