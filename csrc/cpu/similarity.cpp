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
    offset_ = matrix<T>(offset)[domain_i][domain_j];
  }

  const int64_t i0, i1, j0, j1;
  int32_t domain_i, domain_j;
  T tau;

  bool diagonal() const { return i0 == j0; }
  int64_t row_tiles() const { return ceil_div(i1 - i0, kTile); }
  int64_t col_tiles() const { return ceil_div(j1 - j0, kTile); }

  // Numbers ascend: do the ranges of the two sides meet, and is all one group?
  bool meet(int64_t it, int64_t jt) const { return meet(ids_, it, jt); }
  bool meet(const int32_t* ids, int64_t it, int64_t jt) const {
    const auto [i, last_i] = ends(i0, i1, it);
    const auto [j, last_j] = ends(j0, j1, jt);
    return std::max(ids[i], ids[j]) <= std::min(ids[last_i], ids[last_j]);
  }
  bool one_group(int64_t it, int64_t jt) const {
    const auto [i, last_i] = ends(i0, i1, it);
    const auto [j, last_j] = ends(j0, j1, jt);
    return ids_[i] == ids_[last_i] && ids_[i] == ids_[j] && ids_[i] == ids_[last_j];
  }
  // Where the parts of a tile's columns go.
  template <class Parts>
  auto columns(const Parts& by_row, const Parts& by_col, int64_t it, int64_t jt) const {
    return diagonal() ? by_row.at(it, jt * kTile) : by_col.at(it, jt * kTile);
  }
  const int32_t* row_ids(int64_t it) const { return ids_ + i0 + it * kTile; }
  const int32_t* col_ids(int64_t jt) const { return ids_ + j0 + jt * kTile; }

  struct Scratch {
    Buffer<C> packed;
    Buffer<T> dots, h;
  };

  // f(it, jt, tile, room for H) for all tiles that are `wanted`, with the dot products in the tile. They are those in
  // `kept`, if it is not empty: `computed` tells whether they are there already.
  template <class Wanted, class F>
  void for_each_tile(const Matrix<T>& kept, bool computed, const Wanted& wanted, const F& f) const {
    const int64_t height = pieces_of_task(row_tiles() * col_tiles(), kRowTiles);
    const int64_t d = rows_.cols;
    const auto scratch = [&] {
      return Scratch{make_buffer<C>(kTile * d), make_buffer<T>(kTile * kTile), make_buffer<T>(kTile * kTile)};
    };
    parallel_tasks(col_tiles() * ceil_div(row_tiles(), height), scratch, [&](int64_t task, Scratch& s) {
      const int64_t jt = col_tiles() - 1 - task % col_tiles();  // on the diagonal the longest columns first
      const int64_t first = task / col_tiles() * height;
      const int64_t end = std::min(first + height, diagonal() ? jt + 1 : row_tiles());
      const int64_t j = j0 + jt * kTile, cols = std::min(kTile, j1 - j), n = round_up(cols, kBlock);
      bool packed = computed;
      for (int64_t it = first; it < end; ++it) {
        if (!wanted(it, jt)) continue;
        for (int64_t k = 0; k < d && !packed; k += kDepth) {
          pack_b_transposed(rows_[j] + k, rows_.stride, n, std::min(kDepth, d - k), s.packed.get() + k * n);
        }
        packed = true;
        const int64_t i = i0 + it * kTile, count = std::min(kTile, i1 - i), m = round_up(count, kBlock);
        T* dots = kept.rows > 0 ? kept[it * kTile] + jt * kTile : s.dots.get();
        const int64_t stride = kept.rows > 0 ? kept.stride : n;
        for (int64_t k = 0; k < d && !computed; k += kDepth) {
          gemm(m, n, std::min(kDepth, d - k), rows_[i] + k, rows_.stride, s.packed.get() + k * n, n, dots, stride,
               k > 0, kShortChain);
        }
        Tile<T> tile{dots, stride, int(count), int(cols), int(m), int(n), scale_, offset_, nullptr, nullptr};
        if (meet(it, jt)) {
          tile.row_ids = row_ids(it);
          tile.col_ids = col_ids(jt);
        }
        f(it, jt, tile, s.h.get());
      }
    });
  }

 private:
  // First and last slot of a tile.
  static std::pair<int64_t, int64_t> ends(int64_t start, int64_t end, int64_t tile) {
    return {start + tile * kTile, std::min(start + (tile + 1) * kTile, end) - 1};
  }

  Matrix<C> rows_;
  const int32_t* ids_;
  T scale_, offset_;
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

// `lse` (natural) joined with all parts of each slot.
template <class C, class T = Accumulator<C>>
void merge_lse(T* lse, const Partials<T>& partials, int64_t slots) {
  parallel_rows(slots, 256, [&](int64_t begin, int64_t end) {
    tile_kernels<C>().merge_lse(lse + begin, partials.at(0, begin), int(partials.tiles), partials.stride, end - begin);
  });
}

// Likewise sums, and maxima (natural).
template <class T>
void merge_sums(T* total, T* top, const Partials<T>& partials, int64_t slots) {
  parallel_rows(slots, 256, [&](int64_t begin, int64_t end) {
    for (int64_t p = 0; p < partials.tiles; ++p) {
      const Statistics<T> part = partials.at(p, 0);
      for (int64_t k = begin; k < end; ++k) {
        total[k] += part.sum[k];
        top[k] = std::max(top[k], part.max[k] * T(kLn2));
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
  OfTile(int64_t i, int64_t j, const Tile<T>& tile, const F& row, const F& col) {
    for (int64_t k = 0; k < tile.padded_rows; ++k) row_[k] = row(i + k);
    for (int64_t k = 0; k < tile.padded_cols; ++k) col_[k] = col(j + k);
  }
  template <class F>
  OfTile(int64_t i, int64_t j, const Tile<T>& tile, const F& both) : OfTile(i, j, tile, both, both) {}
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
      for (const auto& part : {by_row.at(jt, it * kTile), r.columns(by_row, by_col, it, jt)}) part.clear(kTile);
      return dots.rows > 0;
    };
    r.for_each_tile(dots, false, wanted, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* room) {
      if (r.one_group(it, jt)) return;
      T unused_max[kTile], unused_sum[kTile];
      auto col = r.columns(by_row, by_col, it, jt);
      if (r.diagonal() && it == jt) col = {unused_max, unused_sum};
      const auto row = by_row.at(jt, it * kTile);
      const auto& kernels = tile_kernels<C>();
      softmax ? kernels.lse_tile(tile, nullptr, room, row, col) : kernels.softplus_tile(tile, room, row, col);
    });
    const auto merge = [&](const Partials<T>& parts, int64_t first, int64_t slots) {
      T* running = vector<T>(total) + first;
      softmax ? merge_lse<C>(running, parts, slots) : merge_sums(running, vector<T>(top) + first, parts, slots);
    };
    merge(by_row, i0, i1 - i0);
    if (!r.diagonal()) merge(by_col, j0, j1 - j0);
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
        lse_by_row.at(jt, it * kTile).clear(kTile);
        r.columns(lse_by_row, lse_by_col, it, jt).clear(kTile);
      }
      return r.meet(it, jt);
    };
    r.for_each_tile(dots, dots.rows > 0, wanted_or_cleared, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* room) {
      const OfTile<T> base_of(i0 + it * kTile, j0 + jt * kTile, tile, in_base_two<T>(base));
      const bool diagonal = r.diagonal() && it == jt;
      const Positives<T> positives{r.row_ids(it), r.col_ids(jt), diagonal, softmax, base_of, {}, {}};
      const auto& kernels = tile_kernels<C>();
      kernels.positives_tile(tile, positives, by_row.at(jt, it * kTile), r.columns(by_row, by_col, it, jt));
      if (!softmax) return;
      T unused_max[kTile], unused_sum[kTile];
      auto col = r.columns(lse_by_row, lse_by_col, it, jt);
      if (diagonal) col = {unused_max, unused_sum};
      kernels.lse_tile(tile, &positives, room, lse_by_row.at(jt, it * kTile), col);
    });
    // Each slot's parts in one order, on the diagonal those of columns among them.
    const auto add = [&](const PartialSums<T>& parts, int64_t first, int64_t slots, T factor, const auto& wanted_part) {
      parallel_rows(ceil_div(slots, kTile), 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t n = std::min(kTile, slots - t * kTile), slot = first + t * kTile;
          for (int64_t p = 0; p < parts.tiles; ++p) {
            if (!wanted_part(t, p)) continue;
            const PositiveSums<T> part = parts.at(p, t * kTile);
            for (int64_t k = 0; k < n; ++k) {
              vector<T>(loss)[slot + k] += factor * part.loss[k];
              vector<T>(slope)[slot + k] += factor * part.slope[k];
              vector<int32_t>(count)[slot + k] += static_cast<int32_t>(part.count[k]);
            }
          }
        }
      });
    };
    add(by_row, i0, i1 - i0, w[r.domain_i][r.domain_j], wanted);
    if (!r.diagonal()) {
      add(by_col, j0, j1 - j0, w[r.domain_j][r.domain_i], [&](int64_t jt, int64_t it) { return r.meet(it, jt); });
    }
    if (softmax) {
      merge_lse<C>(vector<T>(lse) + i0, lse_by_row, i1 - i0);
      if (!r.diagonal()) merge_lse<C>(vector<T>(lse) + j0, lse_by_col, j1 - j0);
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
    const T *coefficients = vector<T>(coefficient), *slopes = vector<T>(slope), *shares = vector<T>(share);
    const int32_t* same_ids = vector<int32_t>(same);
    const Matrix<T> dots = matrix<T>(kept), w = matrix<T>(weight);
    const auto weighted = [shares](T factor) { return [=](int64_t slot) { return factor * shares[slot]; }; };
    const auto forth = weighted(w[r.domain_i][r.domain_j]), back = weighted(w[r.domain_j][r.domain_i]);
    std::vector<double> parts(4 * r.row_tiles() * r.col_tiles(), 0.0);
    const auto all = [](int64_t, int64_t) { return true; };
    r.for_each_tile(dots, dots.rows > 0, all, [&](int64_t it, int64_t jt, const Tile<T>& tile, T* tile_h) {
      const int64_t i = it * kTile, j = jt * kTile;
      const bool diagonal = r.diagonal() && it == jt;
      const OfTile<T> lse_of(i0 + i, j0 + j, tile, in_base_two<T>(lse));
      const Negatives<T> negatives{softmax_negatives, lse_of, {coefficients + i0 + i, coefficients + j0 + j}};
      double* part = &parts[4 * (it * r.col_tiles() + jt)];
      if (r.meet(same_ids, it, jt)) {
        const OfTile<T> base_of = softmax_positives ? OfTile<T>(i0 + i, j0 + j, tile, softmax_base<T>(base))
                                                    : OfTile<T>(i0 + i, j0 + j, tile, in_base_two<T>(base));
        const OfTile<T> share_of(i0 + i, j0 + j, tile, forth, back);
        const Positives<T> positives{same_ids + i0 + i, same_ids + j0 + j, diagonal,
                                     softmax_positives, base_of,           {slopes + i0 + i, slopes + j0 + j},
                                     share_of};
        kernels.grad_tile(tile, negatives, &positives, T(1) / r.tau, tile_h, out.tile(i, j), part);
      } else {
        kernels.grad_tile(tile, negatives, nullptr, T(1) / r.tau, tile_h, out.tile(i, j), part);
      }
      if (diagonal) {  // holds every pair twice
        for (int k = 0; k < 4; ++k) part[k] /= 2;
        return;
      }
      const auto& to = r.diagonal() ? out : out_transposed;
      kernels.store_transposed(tile_h, tile.padded_rows, tile.padded_cols, to.tile(j, i));
    });
    // Σ H and Σ H s of negatives at [0, d_i, d_j], of positives at [1, d_i, d_j].
    const int64_t k = temperature.size(1), place = 2 * (r.domain_i * k + r.domain_j);
    for (size_t p = 0; p < parts.size(); p += 4) {
      for (int64_t set = 0; set < 2; ++set) {
        double* total = vector<double>(sums) + set * 2 * k * k + place;
        total[0] += parts[p + 2 * set];
        total[1] += parts[p + 2 * set + 1] * kLn2;
      }
    }
  });
}

}  // namespace uniclip::cpu
