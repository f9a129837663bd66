// Tiles of similarities between the rows of one rectangle: reduced to lse, or turned into the gradient H / τ.
#include <algorithm>
#include <limits>
#include <vector>

#include "ops.h"
#include "panel.h"
#include "parallel.h"
#include "rectangle.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

namespace {

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

// `lse` (natural) joined with all parts of each slot.
template <class C, class T = Accumulator<C>>
void merge_lse(T* lse, const Partials<T>& partials, const std::vector<Slots>& tiles) {
  parallel_rows(int64_t(tiles.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto parts = partials.at(0, tiles[t].start - tiles[0].start);
      tile_kernels<C>().merge_lse(lse + tiles[t].start, parts, int(partials.tiles), partials.stride, tiles[t].size());
    }
  });
}

// Likewise sums, and maxima (natural).
template <class T>
void merge_sums(T* total, T* top, const Partials<T>& partials, const std::vector<Slots>& tiles) {
  parallel_rows(int64_t(tiles.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t p = 0; p < partials.tiles; ++p) {
        const Statistics<T> part = partials.at(p, tiles[t].start - tiles[0].start);
        for (int64_t k = 0; k < tiles[t].size(); ++k) {
          const int64_t slot = tiles[t].start + k;
          total[slot] += part.sum[k];
          top[slot] = std::max(top[slot], part.max[k] * T(kLn2));
        }
      }
    }
  });
}

// Partial sums over positives, likewise. Those of tiles without positives are never written.
template <class T>
struct PartialSums {
  PartialSums(int64_t tiles, int64_t slots)
      : tiles(tiles),
        stride(tiles == 0 ? 0 : round_up(slots, kTile)),
        loss(make_buffer<T>(tiles * stride)),
        slope(make_buffer<T>(tiles * stride)),
        count(make_buffer<T>(tiles * stride)) {}
  PositiveSums<T> at(int64_t tile, int64_t slot) const {
    const int64_t k = tile * stride + slot;
    return {loss.get() + k, slope.get() + k, count.get() + k};
  }
  int64_t tiles, stride;
  Buffer<T> loss, slope, count;
};

// A number of each slot for the rows and the columns of a tile.
template <class T>
class OfTile {
 public:
  template <class F>
  OfTile(const Slots& i, const Slots& j, const F& row, const F& col) {
    for (int64_t k = 0; k < i.padded(); ++k) row_[k] = row(i.start + k);
    for (int64_t k = 0; k < j.padded(); ++k) col_[k] = col(j.start + k);
  }
  template <class F>
  OfTile(const Slots& i, const Slots& j, const F& both) : OfTile(i, j, both, both) {}
  operator Sides<T>() const { return {row_, col_}; }

 private:
  T row_[kTile], col_[kTile];
};

template <class T>
auto in_base_two(const Tensor& x) {
  return [x = vector<T>(x)](int64_t slot) { return x[slot] * T(kLog2E); };
}
// Exponents of which nothing is to remain where there is no positive.
template <class T>
auto softmax_base(const Tensor& base) {
  return [base = vector<T>(base)](int64_t slot) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    return base[slot] == -kInfinity ? kInfinity : base[slot] * T(kLog2E);
  };
}

}  // namespace

void negatives_forward(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                       const Tensor offset, int64_t i0, int64_t i1, int64_t j0, int64_t j1, Tensor total, Tensor top,
                       Tensor kept) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const bool softmax = top.numel() == 0;
    const Rectangle<C> r(rows, ids, tiles, temperature, offset, i0, i1, j0, j1);
    // A slot gets one part from each tile beside it. On the diagonal, those above it come to it as columns.
    const Partials<T> by_row(r.col_tiles(), i1 - i0);
    const Partials<T> by_col(r.diagonal() ? 0 : r.row_tiles(), j1 - j0);
    const Matrix<T> dots = matrix<T>(kept);
    const auto wanted = [&](int64_t it, int64_t jt) {
      if (!r.one_group(it, jt)) return true;
      r.row_parts(by_row, it, jt).clear(int(r.rows[it].padded()));
      r.col_parts(by_row, by_col, it, jt).clear(int(r.cols[jt].padded()));
      return dots.rows > 0;
    };
    r.for_each_tile(dots, false, wanted, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* room) {
      if (r.one_group(it, jt)) return;
      T unused_max[kTile], unused_sum[kTile];
      auto col = r.col_parts(by_row, by_col, it, jt);
      if (r.diagonal(it, jt)) col = {unused_max, unused_sum};
      const auto row = r.row_parts(by_row, it, jt);
      const auto& kernels = tile_kernels<C>();
      softmax ? kernels.lse_tile(tile, nullptr, room, row, col) : kernels.softplus_tile(tile, room, row, col);
    });
    const auto merge = [&](const Partials<T>& parts, const std::vector<Slots>& tiles) {
      softmax ? merge_lse<C>(vector<T>(total), parts, tiles)
              : merge_sums(vector<T>(total), vector<T>(top), parts, tiles);
    };
    merge(by_row, r.rows);
    if (!r.diagonal()) merge(by_col, r.cols);
  });
}

void positives_forward(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                       const Tensor offset, const Tensor weight, const Tensor base, int64_t i0, int64_t i1, int64_t j0,
                       int64_t j1, const Tensor kept, Tensor lse, Tensor loss, Tensor slope, Tensor count) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const bool softmax = lse.numel() > 0;
    const Rectangle<C> r(rows, ids, tiles, temperature, offset, i0, i1, j0, j1);
    const Matrix<T> dots = matrix<T>(kept), w = matrix<T>(weight);
    const PartialSums<T> by_row(r.col_tiles(), i1 - i0);
    const PartialSums<T> by_col(r.diagonal() ? 0 : r.row_tiles(), j1 - j0);
    const Partials<T> lse_by_row(softmax ? by_row.tiles : 0, i1 - i0);
    const Partials<T> lse_by_col(softmax ? by_col.tiles : 0, j1 - j0);
    const auto wanted = [&](int64_t it, int64_t jt) { return r.meet(it, jt); };
    const auto wanted_or_cleared = [&](int64_t it, int64_t jt) {
      if (softmax && !r.meet(it, jt)) {
        r.row_parts(lse_by_row, it, jt).clear(int(r.rows[it].padded()));
        r.col_parts(lse_by_row, lse_by_col, it, jt).clear(int(r.cols[jt].padded()));
      }
      return r.meet(it, jt);
    };
    r.for_each_tile(dots, dots.rows > 0, wanted_or_cleared, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* room) {
      const OfTile<T> base_of(r.rows[it], r.cols[jt], in_base_two<T>(base));
      const bool diagonal = r.diagonal(it, jt);
      const Positives<T> positives{tile.row_ids, tile.col_ids, diagonal, softmax, base_of, {}, {}};
      const auto& kernels = tile_kernels<C>();
      kernels.positives_tile(tile, positives, r.row_parts(by_row, it, jt), r.col_parts(by_row, by_col, it, jt));
      if (!softmax) return;
      T unused_max[kTile], unused_sum[kTile];
      auto col = r.col_parts(lse_by_row, lse_by_col, it, jt);
      if (diagonal) col = {unused_max, unused_sum};
      kernels.lse_tile(tile, &positives, room, r.row_parts(lse_by_row, it, jt), col);
    });
    // Each slot's parts in one order, on the diagonal those of columns among them.
    const auto add = [&](const PartialSums<T>& sums, const std::vector<Slots>& slots, const std::vector<Slots>& beside,
                         const auto& wanted_part) {
      parallel_rows(int64_t(slots.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          for (int64_t p = 0; p < sums.tiles; ++p) {
            if (!wanted_part(t, p)) continue;
            const PositiveSums<T> part = sums.at(p, slots[t].start - slots[0].start);
            const T factor = w[slots[t].domain][beside[p].domain];
            for (int64_t k = 0; k < slots[t].size(); ++k) {
              const int64_t slot = slots[t].start + k;
              vector<T>(loss)[slot] += factor * part.loss[k];
              vector<T>(slope)[slot] += factor * part.slope[k];
              vector<int32_t>(count)[slot] += static_cast<int32_t>(part.count[k]);
            }
          }
        }
      });
    };
    add(by_row, r.rows, r.cols, wanted);
    if (!r.diagonal()) add(by_col, r.cols, r.rows, [&](int64_t jt, int64_t it) { return r.meet(it, jt); });
    if (softmax) {
      merge_lse<C>(vector<T>(lse), lse_by_row, r.rows);
      if (!r.diagonal()) merge_lse<C>(vector<T>(lse), lse_by_col, r.cols);
    }
  });
}

void similarity_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                     const Tensor offset, const Tensor same, const Tensor weight, bool softmax_negatives,
                     bool softmax_positives, const Tensor lse, const Tensor coefficient, const Tensor base,
                     const Tensor slope, const Tensor share, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                     const Tensor kept, Tensor sums, Tensor h, Tensor h_transposed) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Rectangle<C> r(rows, ids, tiles, temperature, offset, i0, i1, j0, j1);
    const auto& kernels = tile_kernels<C>();
    const Panel<C> out(h), out_transposed(h_transposed);
    const bool both_sides = h_transposed.numel() > 0;
    const T *coefficients = vector<T>(coefficient), *slopes = vector<T>(slope), *shares = vector<T>(share);
    const int32_t* same_ids = vector<int32_t>(same);
    const Matrix<T> dots = matrix<T>(kept), w = matrix<T>(weight);
    const auto weighted = [shares](T factor) { return [=](int64_t slot) { return factor * shares[slot]; }; };
    std::vector<double> parts(4 * r.row_tiles() * r.col_tiles(), 0.0);
    const auto all = [](int64_t, int64_t) { return true; };
    r.for_each_tile(dots, dots.rows > 0, all, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* tile_h) {
      const Slots &i = r.rows[it], &j = r.cols[jt];
      const bool diagonal = r.diagonal(it, jt);
      const OfTile<T> lse_of(i, j, in_base_two<T>(lse));
      const Negatives<T> negatives{softmax_negatives, lse_of, {coefficients + i.start, coefficients + j.start}};
      const auto grad_tile = [&](const Positives<T>* positives) {
        kernels.grad_tile(tile, negatives, positives, T(1) / r.tau(it, jt), tile_h,
                          out.tile(i.start - i0, j.start - j0), &parts[4 * (it * r.col_tiles() + jt)]);
      };
      if (r.meet(same_ids, it, jt)) {
        const OfTile<T> base_of =
            softmax_positives ? OfTile<T>(i, j, softmax_base<T>(base)) : OfTile<T>(i, j, in_base_two<T>(base));
        const OfTile<T> share_of(i, j, weighted(w[i.domain][j.domain]), weighted(w[j.domain][i.domain]));
        const Positives<T> positives{same_ids + i.start,
                                     same_ids + j.start,
                                     diagonal,
                                     softmax_positives,
                                     base_of,
                                     {slopes + i.start, slopes + j.start},
                                     share_of};
        grad_tile(&positives);
      } else {
        grad_tile(nullptr);
      }
      if (diagonal || !(r.diagonal() || both_sides)) return;
      const auto& to = r.diagonal() ? out : out_transposed;
      kernels.store_transposed(tile_h, tile.padded_rows, tile.padded_cols, to.tile(j.start - j0, i.start - i0));
    });
    // Σ H and Σ H s of negatives at [0, d_i, d_j], of positives at [1, d_i, d_j].
    const int64_t k = temperature.size(1);
    for (int64_t it = 0; it < r.row_tiles(); ++it) {
      for (int64_t jt = 0; jt < r.col_tiles(); ++jt) {
        const double* part = &parts[4 * (it * r.col_tiles() + jt)];
        const double share = r.diagonal(it, jt) ? 0.5 : 1;  // a tile on the diagonal holds every pair twice
        double* total = vector<double>(sums) + 2 * (r.rows[it].domain * k + r.cols[jt].domain);
        for (int64_t set = 0; set < 2; ++set) {
          total[set * 2 * k * k] += share * part[2 * set];
          total[set * 2 * k * k + 1] += share * part[2 * set + 1] * kLn2;
        }
      }
    }
  });
}

}  // namespace uniclip::cpu
