// Positives: rows of one sample, which lie in those tiles that the spans of a tile name. Their dot products are those
// of any tile; what else there is in a tile is left out.
#include <climits>

#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kThreadRows = kRowFragments * 2;  // of a tile

// ln(1 + 2^x) and its derivative by x ln 2, both exact where they are small.
struct Softplus {
  float value, slope;
  __device__ explicit Softplus(float x) {
    const float e = ptx::exp2_approx(-fabsf(x));
    value = fmaxf(x, 0.f) * kLn2 + log1pf(e);
    slope = __fdividef(x > 0 ? 1.f : e, 1 + e);
  }
};

// f(e, col_tile) for the tiles of domain e in [first, end) that the spans of a tile name, as far as they are this
// block's: `slices` blocks take turns.
template <class F>
__device__ __forceinline__ void for_tiles(const Span* spans, int domains, int row_tile, int first, int end, int slices,
                                          const F& f) {
  int ahead = static_cast<int>(blockIdx.x) % slices;  // tiles that come before the block's next one
  for (int e = 0; e < domains; ++e) {
    const Span span = spans[static_cast<int64_t>(row_tile) * domains + e];
    const int begin = max(span.start, first), stop = min(span.end, end);
    int col_tile = begin + ahead;
    for (; col_tile < stop; col_tile += slices) f(e, col_tile);
    ahead = col_tile - max(begin, stop);
  }
}

// parts[0 to 2, part, slot] = Σ w softplus(lse - s), Σ w σ(lse - s) and the number of the slot's positives in a share
// of the tiles, and there in the columns of one of kWarpCols warps.
template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    positives_forward_kernel(const Similarities given, const Span* spans, const float* weight, const float* lse,
                             int slices, float* parts) {
  auto& stages = shared_memory<Stages>();
  const int row_tile = static_cast<int>(blockIdx.x) / slices, slice = static_cast<int>(blockIdx.x) % slices;
  const int64_t i = static_cast<int64_t>(row_tile) * kBlock;
  const int a = given.tiles[row_tile].domain;
  const Place place;
  const int quad = place.lane % 4;
  float sums[3][kThreadRows / 4] = {};  // of the rows of 4 lanes, which share them out
  for_tiles(spans, given.domains, row_tile, 0, INT_MAX, slices, [&](int e, int col_tile) {
    const int64_t j = static_cast<int64_t>(col_tile) * kBlock;
    const DomainPair pair(given, row_tile, col_tile);
    const float w = weight[a * given.domains + e];
    Dots x;
    dot_tile<T>(stages, given, row_tile, col_tile, x);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = place.row(r / 2, r % 2);
      const int id = given.ids[i + row];
      const int itself = row + (row_tile - col_tile) * kBlock;  // as a column
      const float base = lse[i + row] * kLog2E;
      float of_row[3] = {};
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const int col = place.col(n, q);
          if (id < 0 || given.ids[j + col] != id || col == itself) continue;
          const Softplus softplus(base - (x[r / 2][n][r % 2 * 2 + q] * pair.scale - pair.shift));
          of_row[0] += softplus.value;
          of_row[1] += softplus.slope;
          of_row[2] += 1;
        }
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        of_row[k] += __shfl_xor_sync(0xffffffffu, of_row[k], 1);
        of_row[k] += __shfl_xor_sync(0xffffffffu, of_row[k], 2);
        if (r % 4 == quad) sums[k][r / 4] += of_row[k] * (k < 2 ? w : 1);
      }
    }
  });
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    for (int r = quad; r < kThreadRows; r += 4) {
      const int64_t part = (k * slices + slice) * kWarpCols + place.warp_col;
      parts[part * given.slots + i + place.row(r / 2, r % 2)] = sums[k][r / 4];
    }
  }
}

// What the gradient needs of a slot.
struct Anchor {
  float lse, share;  // lse in base 2
  int id;
};

template <class E>
struct PositiveGradients {
  SharedTile<E> tile;
  Anchor row[kBlock], col[kBlock];
  TileSums sums;
};

template <class E>
union PositivesShared {
  Stages stages;
  PositiveGradients<E> gradients;
};

// The elements of a tile, or its transpose, that belong to positives; a row itself has 0 there, as in h.
template <bool kTransposed, class E>
__device__ __forceinline__ void store_positives(const PositiveGradients<E>& from, E* out, int64_t stride) {
  for (int at = threadIdx.x; at < kBlock * kBlock; at += kTileThreads) {
    const int r = at / kBlock, c = at % kBlock;
    const int row = kTransposed ? c : r, col = kTransposed ? r : c;
    const int id = from.row[row].id;
    if (id >= 0 && id == from.col[col].id) out[r * stride + c] = from.tile[row][col];
  }
}

// h = H / τ where positives are; on the diagonal in both triangles. parts[0 and 1, it, jt] = Σ H and Σ H s over the
// unordered pairs of tile (it, jt), for those tiles alone that the spans name.
template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    positives_grad_kernel(const Similarities given, const Rectangle rectangle, const Span* spans, const float* weight,
                          const float* lse, const float* share, int slices, typename T::Element* h, float* parts) {
  using E = typename T::Element;
  auto& memory = shared_memory<PositivesShared<E>>();
  auto& shared = memory.gradients;
  const int thread = static_cast<int>(threadIdx.x);
  const int tile_row = static_cast<int>(blockIdx.x) / slices, row_tile = rectangle.first_row_tile + tile_row;
  const bool diagonal = rectangle.first_row_tile == rectangle.first_col_tile;
  const int64_t i = static_cast<int64_t>(row_tile) * kBlock;
  const int64_t stride = static_cast<int64_t>(rectangle.col_tiles) * kBlock;
  const auto at = [&](int row, int col) { return h + row * (stride * kBlock) + col * kBlock; };
  const int a = given.tiles[row_tile].domain;
  const int first = diagonal ? row_tile : rectangle.first_col_tile;
  const int end = rectangle.first_col_tile + rectangle.col_tiles;
  for_tiles(spans, given.domains, row_tile, first, end, slices, [&](int e, int col_tile) {
    const int64_t j = static_cast<int64_t>(col_tile) * kBlock;
    const DomainPair pair(given, row_tile, col_tile);
    Dots x;
    dot_tile<T>(memory.stages, given, row_tile, col_tile, x);
    {
      const bool is_row = thread < kBlock;
      const int64_t slot = is_row ? i + thread : j + thread - kBlock;
      const float w = weight[is_row ? a * given.domains + e : e * given.domains + a];
      (is_row ? shared.row : shared.col)[thread % kBlock] = {lse[slot] * kLog2E, w * share[slot], given.ids[slot]};
    }
    __syncthreads();

    const Place place;
    const float inverse_tau = 1 / pair.tau;
    float sum = 0, sum_with_s = 0;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = place.row(r / 2, r % 2), itself = row + (row_tile - col_tile) * kBlock;
      const Anchor p = shared.row[row];
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int col = place.col(n, k);
          const Anchor q = shared.col[col];
          float& value = x[r / 2][n][r % 2 * 2 + k];
          const float s = value * pair.scale - pair.shift;
          value = 0;
          if (p.id < 0 || p.id != q.id || col == itself) continue;
          const float grad = -(Softplus(p.lse - s).slope * p.share + Softplus(q.lse - s).slope * q.share);
          sum += grad;
          sum_with_s += grad * s;
          value = grad * inverse_tau;
        }
      }
    }
    shared.sums.share(sum, sum_with_s);
    const int tile_col = col_tile - rectangle.first_col_tile;
    share_tile<false>(x, shared.tile);
    __syncthreads();
    store_positives<false>(shared, at(tile_row, tile_col), stride);
    if (diagonal && row_tile != col_tile) store_positives<true>(shared, at(tile_col, tile_row), stride);
    shared.sums.store(rectangle, tile_row, tile_col, parts);
    __syncthreads();
  });
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_positives_forward(Similarities given, const Span* spans, const float* weight, const float* lse,
                                   int slices, float* parts, void* stream) {
  return with_operand(given.operand, [&](auto type) -> int {
    return launch(positives_forward_kernel<decltype(type)>, given.slots / kBlock * slices, kTileThreads, sizeof(Stages),
                  static_cast<cudaStream_t>(stream), given, spans, weight, lse, slices, parts);
  });
}

int uniclip_cuda_positives_grad(Similarities given, Rectangle rectangle, const Span* spans, const float* weight,
                                const float* lse, const float* share, int slices, void* h, float* parts, void* stream) {
  return with_operand(given.operand, [&](auto type) -> int {
    using T = decltype(type);
    using E = typename T::Element;
    return launch(positives_grad_kernel<T>, static_cast<int64_t>(rectangle.row_tiles) * slices, kTileThreads,
                  sizeof(PositivesShared<E>), static_cast<cudaStream_t>(stream), given, rectangle, spans, weight, lse,
                  share, slices, static_cast<E*>(h), parts);
  });
}
