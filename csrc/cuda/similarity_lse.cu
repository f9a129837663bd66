// Forward: tiles of similarities reduced, on chip, to the log-sum-exp over negatives of their rows and columns, or to
// their sum of softplus.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

template <class Sum>
struct WarpSums {
  Sum by_row[kWarpCols][kBlock], by_col[kWarpRows][kBlock];
};

template <class Sum>
union SumsShared {
  Stages stages;
  WarpSums<Sum> sums;
};

template <bool kSigmoid>
using NegativesSum = std::conditional_t<kSigmoid, SoftplusSum, LogSum>;

// by_row[jt, slots of it] and by_col[it, slots of jt] = log2 Σ 2^(s log2 e) over the negatives in tile (it, jt); for
// the sigmoid Σ softplus(s) and, behind all of these, the largest s. On the diagonal by_col is by_row: a slot gets
// parts from tiles right of the diagonal as a row, from those above as a column.
template <class T, bool kSigmoid>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    similarity_lse_kernel(const Similarities given, const Rectangle rectangle, float* by_row, float* by_col) {
  using Sum = NegativesSum<kSigmoid>;
  auto& shared = shared_memory<SumsShared<Sum>>();
  const TileIndex tile(rectangle);
  if (tile.below_diagonal()) return;
  const int thread = static_cast<int>(threadIdx.x);
  float* row_out = by_row + (static_cast<int64_t>(tile.col) * rectangle.row_tiles + tile.row) * kBlock;
  float* col_out = by_col + (static_cast<int64_t>(tile.row) * rectangle.col_tiles + tile.col) * kBlock;
  const int64_t to_top = static_cast<int64_t>(rectangle.row_tiles) * rectangle.col_tiles * kBlock;
  const bool store_cols = !tile.on_diagonal();

  const DomainPair pair(given, tile.row_tile(), tile.col_tile());
  if (!pair.live) {
    if (thread < kBlock) {
      Sum::nothing().store(row_out + thread, to_top);
      if (store_cols) Sum::nothing().store(col_out + thread, to_top);
    }
    return;
  }

  const int64_t i = static_cast<int64_t>(tile.row_tile()) * kBlock, j = static_cast<int64_t>(tile.col_tile()) * kBlock;
  Dots x;
  dot_tile<T>(shared.stages, given, tile.row_tile(), tile.col_tile(), x);
  similarities(x, pair, given.ids + i, given.ids + j, kNothing);

  const Place place;
  const auto top_of_col = [&](int n, int q) {
    float top = kNothing;
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) top = fmaxf(top, fmaxf(x[m][n][q], x[m][n][2 + q]));
#pragma unroll
    for (int other = 4; other < 32; other *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
    return top;
  };
  // Softplus, which rows and columns share, takes the place of s as soon as no largest one is sought.
  [[maybe_unused]] float col_tops[kColFragments][2];
  if constexpr (kSigmoid) {
#pragma unroll
    for (int n = 0; n < kColFragments; ++n) {
      for (int q = 0; q < 2; ++q) col_tops[n][q] = top_of_col(n, q);
    }
  }
  // Rows: over this thread's columns, over the 4 lanes that share a row, and below over the warps.
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = kNothing, sum = 0;
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) top = fmaxf(top, fmaxf(x[m][n][half * 2], x[m][n][half * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = Sum::pivot(top);
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
        float &left = x[m][n][half * 2], &right = x[m][n][half * 2 + 1];
        const float terms[] = {Sum::term(left, base), Sum::term(right, base)};
        sum += terms[0] + terms[1];
        if constexpr (kSigmoid) left = terms[0], right = terms[1];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (place.lane % 4 == 0) shared.sums.by_row[place.warp_col][place.row(m, half)] = {top, sum};
    }
  }
  // Columns: over this thread's rows, over the 8 lanes that share a column, and below over the warps.
#pragma unroll
  for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float top = kSigmoid ? col_tops[n][q] : top_of_col(n, q), base = Sum::pivot(top);
      const auto term = [&](float s) { return kSigmoid ? s : Sum::term(s, base); };
      float sum = 0;
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) sum += term(x[m][n][q]) + term(x[m][n][2 + q]);
#pragma unroll
      for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
      if (place.lane < 4) shared.sums.by_col[place.warp_row][place.col(n, q)] = {top, sum};
    }
  }
  __syncthreads();
  if (thread < kBlock) {
    Sum total = shared.sums.by_row[0][thread];
    for (int warp = 1; warp < kWarpCols; ++warp) total = total + shared.sums.by_row[warp][thread];
    total.store(row_out + thread, to_top);
  } else if (store_cols) {
    const int col = thread - kBlock;
    (shared.sums.by_col[0][col] + shared.sums.by_col[1][col]).store(col_out + col, to_top);
  }
}

// Joins the running natural lse of each slot with parts[:, slot], `count` of them in base 2.
__global__ void __launch_bounds__(kMergeSlots* kMergeWays)
    merge_lse_kernel(float* lse, const float* parts, int64_t slots, int count) {
  auto& shared = shared_memory<MergeShared>();
  const int lane = threadIdx.x % kMergeSlots, way = threadIdx.x / kMergeSlots;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kMergeSlots + lane;
  LogSum total = LogSum::nothing();
  for (int part = way; part < count; part += kMergeWays) total = total + LogSum::of(parts[part * slots + slot]);
  shared.add(lane, way, total, lse[slot]);
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_similarity_lse(Similarities given, Rectangle rectangle, bool sigmoid, float* by_row, float* by_col,
                                void* stream) {
  return with_operand(given.operand, sigmoid, [&](auto type, auto flag) -> int {
    return launch(similarity_lse_kernel<decltype(type), flag()>,
                  static_cast<int64_t>(rectangle.row_tiles) * rectangle.col_tiles, kTileThreads,
                  sizeof(SumsShared<NegativesSum<flag()>>), static_cast<cudaStream_t>(stream), given, rectangle, by_row,
                  by_col);
  });
}

int uniclip_cuda_merge_lse(float* lse, const float* parts, int64_t slots, int count, void* stream) {
  return launch(merge_lse_kernel, slots / kMergeSlots, kMergeSlots * kMergeWays, sizeof(MergeShared),
                static_cast<cudaStream_t>(stream), lse, parts, slots, count);
}
