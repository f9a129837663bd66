// The tiles of a rectangle of slots, each of one pair of domains, and their dot products.
#pragma once

#include <algorithm>
#include <vector>

#include "ops.h"
#include "panel.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

// Slots [start, end) of one domain, kTile of them at most.
struct Slots {
  int64_t start, end;
  int32_t domain;

  int64_t size() const { return end - start; }
  int64_t padded() const { return round_up(size(), kBlock); }
};

// The filled ones of slots [start, end), from the tiles of the layout: domain and filled slots of each kBlock.
inline std::vector<Slots> cut_by_domain(const Tensor& tiles, int64_t start, int64_t end) {
  const Matrix<int32_t> table = matrix<int32_t>(tiles);
  std::vector<Slots> cut;
  for (int64_t slot = start; slot < end; slot += kBlock) {
    const auto [domain, filled] = std::pair(table[slot / kBlock][0], table[slot / kBlock][1]);
    if (!cut.empty() && cut.back().domain == domain && slot + filled - cut.back().start <= kTile) {
      cut.back().end = slot + filled;
    } else {
      cut.push_back({slot, slot + filled, domain});
    }
  }
  return cut;
}

// The tiles of slots [i0, i1) x [j0, j1); with i0 == j0 only those on and above the diagonal.
template <class C>
class Rectangle {
 public:
  using T = Accumulator<C>;

  Rectangle(const Tensor& rows, const Tensor& ids, const Tensor& tiles, const Tensor& temperature, const Tensor& offset,
            int64_t i0, int64_t i1, int64_t j0, int64_t j1)
      : i0(i0),
        i1(i1),
        j0(j0),
        j1(j1),
        rows(cut_by_domain(tiles, i0, i1)),
        cols(cut_by_domain(tiles, j0, j1)),
        tau_(matrix<T>(temperature)),
        offset_(matrix<T>(offset)),
        z_(matrix<C>(rows)),
        ids_(vector<int32_t>(ids)) {}

  const int64_t i0, i1, j0, j1;
  const std::vector<Slots> rows, cols;  // of each tile

  int64_t row_tiles() const { return int64_t(rows.size()); }
  int64_t col_tiles() const { return int64_t(cols.size()); }
  bool diagonal() const { return i0 == j0; }
  bool diagonal(int64_t it, int64_t jt) const { return diagonal() && it == jt; }
  T tau(int64_t it, int64_t jt) const { return tau_[rows[it].domain][cols[jt].domain]; }

  // Numbers ascend: do the ranges of the two sides meet, and is all one group?
  bool meet(int64_t it, int64_t jt) const { return meet(ids_, it, jt); }
  bool meet(const int32_t* ids, int64_t it, int64_t jt) const {
    const Slots &i = rows[it], &j = cols[jt];
    return std::max(ids[i.start], ids[j.start]) <= std::min(ids[i.end - 1], ids[j.end - 1]);
  }
  bool one_group(int64_t it, int64_t jt) const {
    const Slots &i = rows[it], &j = cols[jt];
    return ids_[i.start] == ids_[i.end - 1] && ids_[i.start] == ids_[j.start] && ids_[i.start] == ids_[j.end - 1];
  }
  // Where the parts of a tile's rows and of its columns go.
  template <class Parts>
  auto row_parts(const Parts& by_row, int64_t it, int64_t jt) const {
    return by_row.at(jt, rows[it].start - i0);
  }
  template <class Parts>
  auto col_parts(const Parts& by_row, const Parts& by_col, int64_t it, int64_t jt) const {
    return (diagonal() ? by_row : by_col).at(it, cols[jt].start - j0);
  }

  struct Scratch {
    Buffer<C> packed;
    Buffer<T> dots, h;
  };

  // f(it, jt, tile, room for H) for all tiles that are `wanted`, with the dot products in the tile. They are those in
  // `kept`, if it is not empty: `computed` tells whether they are there already.
  template <class Wanted, class F>
  void for_each_tile(const Matrix<T>& kept, bool computed, const Wanted& wanted, const F& f) const {
    const int64_t height = pieces_of_task(row_tiles() * col_tiles(), kRowTiles);
    const int64_t d = z_.cols;
    const auto scratch = [&] {
      return Scratch{make_buffer<C>(kTile * d), make_buffer<T>(kTile * kTile), make_buffer<T>(kTile * kTile)};
    };
    parallel_tasks(col_tiles() * ceil_div(row_tiles(), height), scratch, [&](int64_t task, Scratch& s) {
      const int64_t jt = col_tiles() - 1 - task % col_tiles();  // on the diagonal the longest columns first
      const int64_t first = task / col_tiles() * height;
      const int64_t end = std::min(first + height, diagonal() ? jt + 1 : row_tiles());
      const Slots& j = cols[jt];
      const int64_t n = j.padded();
      bool packed = computed;
      for (int64_t it = first; it < end; ++it) {
        if (!wanted(it, jt)) continue;
        for (int64_t k = 0; k < d && !packed; k += kDepth) {
          pack_b_transposed(z_[j.start] + k, z_.stride, n, std::min(kDepth, d - k), s.packed.get() + k * n);
        }
        packed = true;
        const Slots& i = rows[it];
        const int64_t m = i.padded();
        T* dots = kept.rows > 0 ? kept[i.start - i0] + j.start - j0 : s.dots.get();
        const int64_t stride = kept.rows > 0 ? kept.stride : n;
        for (int64_t k = 0; k < d && !computed; k += kDepth) {
          gemm(m, n, std::min(kDepth, d - k), z_[i.start] + k, z_.stride, s.packed.get() + k * n, n, dots, stride,
               k > 0, kShortChain);
        }
        const T scale = T(kLog2E) / tau(it, jt), offset = offset_[i.domain][j.domain];
        const bool meets = meet(it, jt);
        const Tile<T> tile{dots,
                           stride,
                           int(i.size()),
                           int(j.size()),
                           int(m),
                           int(n),
                           scale,
                           offset,
                           meets ? ids_ + i.start : nullptr,
                           meets ? ids_ + j.start : nullptr};
        f(it, jt, tile, s.h.get());
      }
    });
  }

 private:
  static constexpr int64_t kDepth = 512;   // columns of D multiplied at a time
  static constexpr int64_t kRowTiles = 8;  // most tiles of one task, below one packed operand

  Matrix<T> tau_, offset_;
  Matrix<C> z_;
  const int32_t* ids_;
};

}  // namespace uniclip::cpu
