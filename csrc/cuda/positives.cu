// Positives: rows of one sample, which lie in those tiles that the spans of a tile name. Their dot products are those
// of any tile; what else there is in a tile is left out.
#include <climits>

#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kThreadRows = kRowFragments * 2;  // of a tile

// Which of a thread's elements of a tile are positives: rows of one sample, but for a row and itself. Kept as bits, so
// that no sample number takes a register when it comes to the elements.
class PositiveBits {
  uint64_t bits = 0;
  static __device__ constexpr int at(int r, int n, int q) { return (r * kColFragments + n) * 2 + q; }

 public:
  __device__ PositiveBits(const int* row_ids, const int* col_ids, bool on_diagonal) {
    static_assert(kThreadRows * kColFragments * 2 == 64);
    const Place place;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = place.row(r / 2, r % 2), id = row_ids[row];
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const int col = place.col(n, q);
          const bool itself = on_diagonal && row == col;
          if (id >= 0 && col_ids[col] == id && !itself) bits |= uint64_t{1} << at(r, n, q);
        }
      }
    }
  }
  __device__ bool operator()(int r, int n, int q) const { return bits >> at(r, n, q) & 1; }
};

// f(e, col_tile) for the tiles of domain e in [first, end) that the spans of a tile name, as far as they are this
// block's: `slices` blocks take turns.
template <class F>
__device__ __forceinline__ void for_tiles(const Span* spans, int domains, int row_tile, int first, int end, int slices,
                                          const F& f) {
  int e = -1, stop = 0, col_tile = static_cast<int>(blockIdx.x) % slices;
  for (;; col_tile += slices) {
    while (col_tile >= stop) {
      if (++e == domains) return;
      const Span span = spans[static_cast<int64_t>(row_tile) * domains + e];
      const int begin = max(span.start, first);
      col_tile += begin - stop;  // the turn goes on
      stop = max(begin, min(span.end, end));
    }
    f(e, col_tile);
  }
}

// parts[:, part, slot] = Σ w softplus(base - s), Σ w σ(base - s) and the number of the slot's positives, for the
// softmax log Σ e^s, Σ w, their number and Σ w s, in a share of the tiles, and there in the columns of one of kWarpCols
// warps.
template <class T, bool kSoftmax>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    positives_forward_kernel(const Similarities given, const Span* spans, const float* weight, const float* base,
                             int64_t own_slots, int slices, float* parts) {
  constexpr int kSums = kSoftmax ? 4 : 3;
  auto& stages = shared_memory<Stages>();
  const int row_tile = static_cast<int>(blockIdx.x) / slices, slice = static_cast<int>(blockIdx.x) % slices;
  const int i = row_tile * kBlock;
  const Place place;
  const int quad = place.lane % 4;
  float sums[kSums][kThreadRows / 4] = {};  // of the rows of 4 lanes, which share them out
  LogSum logs[kThreadRows / 4];             // of the same rows, in the place of the first sum
  for (LogSum& log : logs) log = LogSum::nothing();
  for_tiles(spans, given.domains, row_tile, 0, INT_MAX, slices, [&](int e, int col_tile) {
    const int j = col_tile * kBlock;
    const DomainPair pair(given, row_tile, col_tile);
    const float w = weight[given.tiles[row_tile].domain * given.domains + e];
    Dots x;
    dot_tile<T>(stages, given, row_tile, col_tile, x);
    const PositiveBits positive(given.ids + i, given.ids + j, row_tile == col_tile);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float of_base = kSoftmax ? 0 : base[i + place.row(r / 2, r % 2)] * kLog2E;
      float of_row[kSums] = {}, top = kNothing;
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          if (!positive(r, n, q)) continue;
          float& s = x[r / 2][n][r % 2 * 2 + q];
          s = s * pair.scale - pair.shift;
          of_row[2] += 1;
          if constexpr (kSoftmax) {
            of_row[3] += s;
            top = fmaxf(top, s);
          } else {
            const Softplus softplus(of_base - s);
            of_row[0] += softplus.value;
            of_row[1] += softplus.slope;
          }
        }
      }
      if constexpr (kSoftmax) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
#pragma unroll
        for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const float s = x[r / 2][n][r % 2 * 2 + q];
            if (positive(r, n, q)) of_row[0] += LogSum::term(s, LogSum::pivot(top));
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        if (kSoftmax && k == 1) continue;
        of_row[k] += __shfl_xor_sync(0xffffffffu, of_row[k], 1);
        of_row[k] += __shfl_xor_sync(0xffffffffu, of_row[k], 2);
        if (r % 4 == quad) sums[k][r / 4] += of_row[k] * (k == 2 ? 1 : w);
      }
      if (kSoftmax && r % 4 == quad) {
        logs[r / 4] = logs[r / 4] + LogSum{top, of_row[0]};
        sums[1][r / 4] += of_row[2] * w;
      }
    }
  });
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    for (int r = quad; r < kThreadRows; r += 4) {
      const int64_t part = (k * slices + slice) * kWarpCols + place.warp_col;
      const float sum = kSoftmax && k == 0 ? logs[r / 4].log2() : sums[k][r / 4];
      parts[part * own_slots + i + place.row(r / 2, r % 2)] = sum * (k % 3 == 0 ? kLn2 : 1);
    }
  }
}

// What the gradient needs of a slot.
struct Anchor {
  float base, share;  // base in base 2; for the softmax infinite without positives, so that 2^(s - base) is 0
  float slope;        // unused by the sigmoid
};

template <class E>
struct PositiveGradients {
  SharedTile<E> tile;
  Anchor row[kBlock], col[kBlock];
  int row_ids[kBlock], col_ids[kBlock];
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
  const int c = static_cast<int>(threadIdx.x) % kBlock;
  for (int r = static_cast<int>(threadIdx.x) / kBlock; r < kBlock; r += kTileThreads / kBlock) {
    const int row = kTransposed ? c : r, col = kTransposed ? r : c;
    const int id = from.row_ids[row];
    if (id >= 0 && id == from.col_ids[col]) out[r * stride + c] = from.tile[row][col];
  }
}

// h = H / τ where positives are; on the diagonal in both triangles. parts[0 and 1, it, jt] = Σ H and Σ H s over the
// unordered pairs of tile (it, jt), for those tiles alone that the spans name. slope: for the softmax.
template <class T, bool kSoftmax>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    positives_grad_kernel(const Similarities given, const Rectangle rectangle, const Span* spans, const float* weight,
                          const float* base, const float* share, const float* slope, int slices, typename T::Element* h,
                          float* parts) {
  using E = typename T::Element;
  auto& memory = shared_memory<PositivesShared<E>>();
  auto& shared = memory.gradients;
  const int thread = static_cast<int>(threadIdx.x);
  const int tile_row = static_cast<int>(blockIdx.x) / slices, row_tile = rectangle.first_row_tile + tile_row;
  const bool diagonal = rectangle.first_row_tile == rectangle.first_col_tile;
  const int i = row_tile * kBlock;
  const int64_t stride = static_cast<int64_t>(rectangle.col_tiles) * kBlock;
  const auto at = [&](int row, int col) { return h + row * (stride * kBlock) + col * kBlock; };
  const int first = diagonal ? row_tile : rectangle.first_col_tile;
  const int end = rectangle.first_col_tile + rectangle.col_tiles;
  for_tiles(spans, given.domains, row_tile, first, end, slices, [&](int e, int col_tile) {
    const int j = col_tile * kBlock;
    const DomainPair pair(given, row_tile, col_tile);
    Dots x;
    dot_tile<T>(memory.stages, given, row_tile, col_tile, x);
    {
      const bool is_row = thread < kBlock;
      const int a = given.tiles[row_tile].domain;
      const int slot = is_row ? i + thread : j + thread - kBlock;
      const float w = weight[is_row ? a * given.domains + e : e * given.domains + a];
      const float base2 = kSoftmax && base[slot] == kNothing ? INFINITY : base[slot] * kLog2E;
      (is_row ? shared.row : shared.col)[thread % kBlock] = {base2, w * share[slot], kSoftmax ? slope[slot] : 0};
      (is_row ? shared.row_ids : shared.col_ids)[thread % kBlock] = given.ids[slot];
    }
    __syncthreads();

    const Place place;
    const PositiveBits positive(shared.row_ids, shared.col_ids, row_tile == col_tile);
    const float inverse_tau = 1 / pair.tau;
    float sum = 0, sum_with_s = 0;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const Anchor p = shared.row[place.row(r / 2, r % 2)];
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const Anchor q = shared.col[place.col(n, k)];
          float& value = x[r / 2][n][r % 2 * 2 + k];
          const float s = value * pair.scale - pair.shift;
          value = 0;
          if (!positive(r, n, k)) continue;
          float grad;
          if constexpr (kSoftmax) {
            grad = ptx::exp2_approx(s - p.base) * p.slope - p.share;
            grad += ptx::exp2_approx(s - q.base) * q.slope - q.share;
          } else {
            grad = -(Softplus(p.base - s).slope * p.share + Softplus(q.base - s).slope * q.share);
          }
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

int uniclip_cuda_positives_forward(Similarities given, const Span* spans, const float* weight, bool softmax,
                                   const float* base, int64_t own_slots, int slices, float* parts, void* stream) {
  return with_operand(given.operand, softmax, [&](auto type, auto flag) -> int {
    return launch(positives_forward_kernel<decltype(type), flag()>, own_slots / kBlock * slices, kTileThreads,
                  sizeof(Stages), static_cast<cudaStream_t>(stream), given, spans, weight, base, own_slots, slices,
                  parts);
  });
}

int uniclip_cuda_positives_grad(Similarities given, Rectangle rectangle, const Span* spans, const float* weight,
                                bool softmax, const float* base, const float* share, const float* slope, int slices,
                                void* h, float* parts, void* stream) {
  return with_operand(given.operand, softmax, [&](auto type, auto flag) -> int {
    using T = decltype(type);
    using E = typename T::Element;
    return launch(positives_grad_kernel<T, flag()>, static_cast<int64_t>(rectangle.row_tiles) * slices, kTileThreads,
                  sizeof(PositivesShared<E>), static_cast<cudaStream_t>(stream), given, rectangle, spans, weight, base,
                  share, slope, slices, static_cast<E*>(h), parts);
  });
}
