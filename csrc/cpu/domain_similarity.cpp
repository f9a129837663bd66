// The matrix of domain-dependent similarities of rows in any order, and what its gradient needs.
#include <algorithm>

#include "ops.h"
#include "panel.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

namespace {
constexpr int64_t kRowTiles = 8;        // most tiles of one task
constexpr int64_t kMostSums = 1 << 20;  // of columns at a time, in the gradient
}  // namespace

void similarity_matrix(const Tensor x, const Tensor y, const Tensor x_domains, const Tensor y_domains,
                       const Tensor temperature, const Tensor offset, Tensor s) {
  dispatch_compute(x, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Matrix<C> left = matrix<C>(x), right = matrix<C>(y);
    const Matrix<T> out = matrix<T>(s), tau = matrix<T>(temperature), b = matrix<T>(offset);
    const int32_t* dx = vector<int32_t>(x_domains);
    const int32_t* dy = vector<int32_t>(y_domains);
    const int64_t d = left.cols, domains = tau.rows, row_tiles = ceil_div(out.rows, kTile),
                  col_tiles = ceil_div(out.cols, kTile);
    const int64_t height = pieces_of_task(row_tiles * col_tiles, kRowTiles), chunks = ceil_div(row_tiles, height);
    struct Scratch {
      Buffer<C> packed;
      Buffer<T> dots, scale, shift;  // the last two: of each column, for each domain of the rows
    };
    const auto scratch = [&] {
      return Scratch{make_buffer<C>(kTile * d), make_buffer<T>(kTile * kTile), make_buffer<T>(domains * kTile),
                     make_buffer<T>(domains * kTile)};
    };
    parallel_tasks(col_tiles * chunks, scratch, [&](int64_t task, Scratch& t) {
      const int64_t j = task / chunks * kTile, cols = std::min(kTile, out.cols - j), n = round_up(cols, kBlock);
      pack_b_transposed(right[j], right.stride, n, d, t.packed.get());
      for (int64_t a = 0; a < domains; ++a) {
        for (int64_t k = 0; k < cols; ++k) {
          t.scale[a * kTile + k] = 1 / tau[a][dy[j + k]];
          t.shift[a * kTile + k] = b[a][dy[j + k]] / tau[a][dy[j + k]];
        }
      }
      const int64_t first = task % chunks * height * kTile, end = std::min(first + height * kTile, out.rows);
      for (int64_t i = first; i < end; i += kTile) {
        const int64_t count = std::min(kTile, end - i);
        gemm(round_up(count, kBlock), n, d, left[i], left.stride, t.packed.get(), n, t.dots.get(), n, false,
             kShortChain);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t a = dx[i + r] * kTile;
          tile_kernels<C>().affine_row(t.dots.get() + r * n, &t.scale[a], &t.shift[a], out[i + r] + j, cols);
        }
      }
    });
  });
}

void similarity_matrix_grad(const Tensor grad, const Tensor s, const Tensor x_domains, const Tensor y_domains,
                            const Tensor temperature, Tensor sums, Tensor g, Tensor g_transposed) {
  dispatch_compute(g, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Matrix<T> upstream = matrix<T>(grad), similarity = matrix<T>(s), tau = matrix<T>(temperature);
    const Panel<C> out(g), out_transposed(g_transposed);
    const int32_t* dx = vector<int32_t>(x_domains);
    const int32_t* dy = vector<int32_t>(y_domains);
    const int64_t domains = tau.rows;
    const int64_t tiles = ceil_div(upstream.cols, kTile);
    // Sums of each column, for each domain of the rows: of so many tiles at a time that they stay small.
    const int64_t at_a_time = std::max<int64_t>(1, kMostSums / (domains * kTile)), column_sums = domains * kTile;
    const auto sums_of = make_buffer<T>(2 * std::min(at_a_time, tiles) * column_sums);
    const auto& kernels = tile_kernels<C>();
    struct Scratch {
      Buffer<T> h, factor;  // factor: of each column, for each domain of the rows
    };
    const auto scratch = [&] { return Scratch{make_buffer<T>(kTile * kTile), make_buffer<T>(column_sums)}; };
    const auto run = [&](int64_t tile, T* sum_grad, T* sum_grad_s, Scratch& t) {
      const int64_t j = tile * kTile, cols = std::min(kTile, upstream.cols - j), n = round_up(cols, kBlock);
      std::fill_n(t.factor.get(), domains * kTile, T(0));
      std::fill_n(sum_grad, column_sums, T(0));
      std::fill_n(sum_grad_s, column_sums, T(0));
      for (int64_t a = 0; a < domains; ++a) {
        for (int64_t k = 0; k < cols; ++k) t.factor[a * kTile + k] = 1 / tau[a][dy[j + k]];
      }
      for (int64_t i = 0; i < out.rows(); i += kTile) {
        const int64_t count = std::min(kTile, upstream.rows - i), m = round_up(count, kBlock);
        std::fill_n(t.h.get(), m * n, T(0));
        for (int64_t r = 0; r < count; ++r) {
          const int64_t a = dx[i + r] * kTile;
          kernels.affine_grad_row(upstream[i + r] + j, similarity[i + r] + j, &t.factor[a], t.h.get() + r * n,
                                  sum_grad + a, sum_grad_s + a, cols);
        }
        kernels.store(t.h.get(), int(m), int(n), out.tile(i, j));
        kernels.store_transposed(t.h.get(), int(m), int(n), out_transposed.tile(j, i));
      }
    };
    double* total = vector<double>(sums);
    for (int64_t first = 0; first < tiles; first += at_a_time) {
      const int64_t count = std::min(at_a_time, tiles - first);
      const auto sums_of_tile = [&](int64_t k) { return sums_of.get() + 2 * k * column_sums; };
      parallel_tasks(count, scratch, [&](int64_t task, Scratch& t) {
        run(first + task, sums_of_tile(task), sums_of_tile(task) + column_sums, t);
      });
      for (int64_t task = 0; task < count; ++task) {  // in order, so that threads do not matter
        const int64_t j = (first + task) * kTile, cols = std::min(kTile, upstream.cols - j);
        for (int64_t a = 0; a < domains; ++a) {
          for (int64_t k = 0; k < cols; ++k) {
            double* pair = total + 2 * (a * domains + dy[j + k]);
            pair[0] += sums_of_tile(task)[a * kTile + k];
            pair[1] += sums_of_tile(task)[column_sums + a * kTile + k];
          }
        }
      }
    }
  });
}

}  // namespace uniclip::cpu
