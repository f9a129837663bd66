// Tiles of similarities between the rows of one rectangle: reduced to lse, or turned into the gradient H / τ.
#include <algorithm>
#include <limits>
#include <vector>

#include "ops.h"
#include "panel.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

namespace {

constexpr int64_t kDepth = 512;   // columns of D multiplied at a time
constexpr int64_t kRowTiles = 8;  // most tiles of one task, below one packed operand

// The tiles of slots [i0, i1) x [j0, j1), which lie in one domain pair; with i0 == j0 only those on and above the
// diagonal.
template <class C>
class Rectangle {
 public:
  using T = Accumulator<C>;

  Rectangle(const Tensor& rows, const Tensor& ids, const Tensor& tiles, const Tensor& temperature, const Tensor& offset,
            int64_t i0, int64_t i1, int64_t j0, int64_t j1)
      : i0(i0), i1(i1), j0(j0), j1(j1), rows_(matrix<C>(rows)), ids_(vector<int32_t>(ids)) {
    const Matrix<int32_t> table = matrix<int32_t>(tiles);
    domain_i = table[i0 / kBlock][0];
    domain_j = table[j0 / kBlock][0];
    tau = matrix<T>(temperature)[domain_i][domain_j];
    scale_ = T(kLog2E) / tau;
    shift_ = matrix<T>(offset)[domain_i][domain_j] * scale_;
  }

  const int64_t i0, i1, j0, j1;
  int32_t domain_i, domain_j;
  T tau;

  bool diagonal() const { return i0 == j0; }
  int64_t row_tiles() const { return ceil_div(i1 - i0, kTile); }
  int64_t col_tiles() const { return ceil_div(j1 - j0, kTile); }

  struct Scratch {
    Buffer<C> packed;
    Buffer<T> dots, h;
  };

  // f(it, jt, tile, room for H) for all tiles, with the dot products in the tile. They are those in `kept`, if it is
  // not empty: `computed` tells whether they are there already.
  template <class F>
  void for_each_tile(const Matrix<T>& kept, bool computed, const F& f) const {
    const int64_t height = pieces_of_task(row_tiles() * col_tiles(), kRowTiles);
    const int64_t d = rows_.cols;
    const auto scratch = [&] {
      return Scratch{make_buffer<C>(kTile * d), make_buffer<T>(kTile * kTile), make_buffer<T>(kTile * kTile)};
    };
    parallel_tasks(col_tiles() * ceil_div(row_tiles(), height), scratch, [&](int64_t task, Scratch& s) {
      const int64_t jt = col_tiles() - 1 - task % col_tiles();  // on the diagonal the longest columns first
      const int64_t first = task / col_tiles() * height;
      const int64_t end = std::min(first + height, diagonal() ? jt + 1 : row_tiles());
      if (first >= end) return;
      const int64_t j = j0 + jt * kTile, cols = std::min(kTile, j1 - j), n = round_up(cols, kBlock);
      for (int64_t k = 0; k < d && !computed; k += kDepth) {
        pack_b_transposed(rows_[j] + k, rows_.stride, n, std::min(kDepth, d - k), s.packed.get() + k * n);
      }
      for (int64_t it = first; it < end; ++it) {
        const int64_t i = i0 + it * kTile, count = std::min(kTile, i1 - i), m = round_up(count, kBlock);
        T* dots = kept.rows > 0 ? kept[it * kTile] + jt * kTile : s.dots.get();
        const int64_t stride = kept.rows > 0 ? kept.stride : n;
        for (int64_t k = 0; k < d && !computed; k += kDepth) {
          gemm(m, n, std::min(kDepth, d - k), rows_[i] + k, rows_.stride, s.packed.get() + k * n, n, dots, stride,
               k > 0);
        }
        Tile<T> tile{dots, stride, int(count), int(cols), int(m), int(n), scale_, shift_, nullptr, nullptr};
        // ids ascend: the ranges meet
        if (std::max(ids_[i], ids_[j]) <= std::min(ids_[i + count - 1], ids_[j + cols - 1])) {
          tile.row_ids = ids_ + i;
          tile.col_ids = ids_ + j;
        }
        f(it, jt, tile, s.h.get());
      }
    });
  }

 private:
  Matrix<C> rows_;
  const int32_t* ids_;
  T scale_, shift_;
};

// Partial statistics of up to `tiles` tiles for each of `slots` slots.
template <class T>
struct Partials {
  Partials(int64_t tiles, int64_t slots)
      : tiles(tiles),
        stride(tiles == 0 ? 0 : round_up(slots, kTile)),
        max(make_buffer<T>(tiles * stride)),
        sum(make_buffer<T>(tiles * stride)) {}
  Statistics<T> at(int64_t tile, int64_t slot) const {
    return {max.get() + tile * stride + slot, sum.get() + tile * stride + slot};
  }
  int64_t tiles, stride;
  Buffer<T> max, sum;
};

template <class C, class T = Accumulator<C>>
void merge(T* lse, const Partials<T>& partials, int64_t slots) {
  parallel_rows(slots, 256, [&](int64_t begin, int64_t end) {
    tile_kernels<C>().merge_lse(lse + begin, partials.at(0, begin), int(partials.tiles), partials.stride, end - begin);
  });
}

}  // namespace

void similarity_lse(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                    const Tensor offset, int64_t i0, int64_t i1, int64_t j0, int64_t j1, Tensor lse, Tensor kept) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Rectangle<C> r(rows, ids, tiles, temperature, offset, i0, i1, j0, j1);
    // A slot gets one part from each tile beside it. On the diagonal, those above it come to it as columns.
    const Partials<T> by_row(r.col_tiles(), i1 - i0);
    const Partials<T> by_col(r.diagonal() ? 0 : r.row_tiles(), j1 - j0);
    r.for_each_tile(matrix<T>(kept), false, [&](int64_t it, int64_t jt, const Tile<T>& tile, T*) {
      T unused_max[kTile], unused_sum[kTile];
      const auto row = by_row.at(jt, it * kTile);
      auto col = r.diagonal() ? by_row.at(it, jt * kTile) : by_col.at(it, jt * kTile);
      if (r.diagonal() && it == jt) col = {unused_max, unused_sum};
      tile_kernels<C>().lse_tile(tile, row, col);
    });
    T* running = vector<T>(lse);
    merge<C>(running + i0, by_row, i1 - i0);
    if (!r.diagonal()) merge<C>(running + j0, by_col, j1 - j0);
  });
}

void similarity_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                     const Tensor offset, const Tensor lse, const Tensor coefficient, int64_t i0, int64_t i1,
                     int64_t j0, int64_t j1, const Tensor kept, Tensor sums, Tensor h, Tensor h_transposed) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Rectangle<C> r(rows, ids, tiles, temperature, offset, i0, i1, j0, j1);
    const auto& kernels = tile_kernels<C>();
    const Panel<C> out(h), out_transposed(h_transposed);
    const T* lse_of = vector<T>(lse);
    const T* coefficient_of = vector<T>(coefficient);
    std::vector<double> parts(2 * r.row_tiles() * r.col_tiles(), 0.0);
    const Matrix<T> dots = matrix<T>(kept);
    r.for_each_tile(dots, dots.rows > 0, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* tile_h) {
      const int64_t i = it * kTile, j = jt * kTile;
      T row_lse[kTile], col_lse[kTile];
      for (int64_t k = 0; k < tile.padded_rows; ++k) row_lse[k] = lse_of[i0 + i + k] * T(kLog2E);
      for (int64_t k = 0; k < tile.padded_cols; ++k) col_lse[k] = lse_of[j0 + j + k] * T(kLog2E);
      double* part = &parts[2 * (it * r.col_tiles() + jt)];
      kernels.grad_tile(tile, row_lse, coefficient_of + i0 + i, col_lse, coefficient_of + j0 + j, T(1) / r.tau, tile_h,
                        out.tile(i, j), part);
      if (r.diagonal() && it == jt) {  // holds every pair twice
        part[0] /= 2;
        part[1] /= 2;
        return;
      }
      const auto& to = r.diagonal() ? out : out_transposed;
      kernels.store_transposed(tile_h, tile.padded_rows, tile.padded_cols, to.tile(j, i));
    });
    double* total = vector<double>(sums) + 2 * (r.domain_i * temperature.size(1) + r.domain_j);
    for (size_t p = 0; p < parts.size(); p += 2) {
      total[0] += parts[p];
      total[1] += parts[p + 1] * kLn2;
    }
  });
}

}  // namespace uniclip::cpu
