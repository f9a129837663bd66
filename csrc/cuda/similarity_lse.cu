// Forward: tiles of similarities reduced, on chip, to the log-sum-exp over negatives of their rows and columns.
#include "log_sum.cuh"
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

struct LogSums {  // of each warp
  LogSum by_row[kWarpCols][kBlock], by_col[kWarpRows][kBlock];
};

union LseShared {
  Stages stages;
  LogSums sums;
};

// by_row[jt, slots of it] and by_col[it, slots of jt] = log2 Σ 2^(s log2 e) over the negatives in tile (it, jt). On the
// diagonal by_col is by_row: a slot gets parts from tiles right of the diagonal as a row, from those above as a column.
template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    similarity_lse_kernel(const typename T::Element* rows, int d, const int* ids, const LayoutTile* tiles,
                          const float* temperature, const float* offset, const unsigned char* mask, int domains,
                          float* by_row, float* by_col, int first_row_tile, int first_col_tile, int row_tiles,
                          int col_tiles) {
  auto& shared = shared_memory<LseShared>();
  const TileIndex tile(row_tiles, col_tiles);
  const bool diagonal = first_row_tile == first_col_tile;
  if (diagonal && tile.row > tile.col) return;
  const int row_tile = first_row_tile + tile.row, col_tile = first_col_tile + tile.col;
  const int thread = static_cast<int>(threadIdx.x);
  float* row_out = by_row + (static_cast<int64_t>(tile.col) * row_tiles + tile.row) * kBlock;
  float* col_out = by_col + (static_cast<int64_t>(tile.row) * col_tiles + tile.col) * kBlock;
  const bool store_cols = !diagonal || tile.row != tile.col;

  const DomainPair pair(tiles, row_tile, col_tile, temperature, offset, mask, domains);
  if (!pair.live) {
    if (thread < kBlock) {
      row_out[thread] = kNothing;
      if (store_cols) col_out[thread] = kNothing;
    }
    return;
  }

  const int64_t i = static_cast<int64_t>(row_tile) * kBlock, j = static_cast<int64_t>(col_tile) * kBlock;
  Dots x;
  dot_tile<T>(shared.stages, rows + i * d, rows + j * d, d, x);
  similarities(x, pair, ids + i, ids + j, kNothing);

  const Place place;
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
      const float base = LogSum::pivot(top);
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
        sum += ptx::exp2_approx(x[m][n][half * 2] - base) + ptx::exp2_approx(x[m][n][half * 2 + 1] - base);
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
      float top = kNothing, sum = 0;
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) top = fmaxf(top, fmaxf(x[m][n][q], x[m][n][2 + q]));
#pragma unroll
      for (int other = 4; other < 32; other *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
      const float base = LogSum::pivot(top);
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        sum += ptx::exp2_approx(x[m][n][q] - base) + ptx::exp2_approx(x[m][n][2 + q] - base);
      }
#pragma unroll
      for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
      if (place.lane < 4) shared.sums.by_col[place.warp_row][place.col(n, q)] = {top, sum};
    }
  }
  __syncthreads();
  if (thread < kBlock) {
    LogSum total = shared.sums.by_row[0][thread];
    for (int warp = 1; warp < kWarpCols; ++warp) total = total + shared.sums.by_row[warp][thread];
    row_out[thread] = total.log2();
  } else if (store_cols) {
    const int col = thread - kBlock;
    col_out[col] = (shared.sums.by_col[0][col] + shared.sums.by_col[1][col]).log2();
  }
}

constexpr int kMergeSlots = 32, kMergeWays = 8;

struct MergeShared {
  LogSum of[kMergeWays][kMergeSlots];
};

// Joins the running natural lse of each slot with parts[:, slot], `count` of them in base 2.
__global__ void __launch_bounds__(kMergeSlots* kMergeWays)
    merge_lse_kernel(float* lse, const float* parts, int64_t slots, int count) {
  auto& shared = shared_memory<MergeShared>();
  const int lane = threadIdx.x % kMergeSlots, way = threadIdx.x / kMergeSlots;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kMergeSlots + lane;
  LogSum total = LogSum::nothing();
  for (int part = way; part < count; part += kMergeWays) total = total + LogSum::of(parts[part * slots + slot]);
  shared.of[way][lane] = total;
  __syncthreads();
  if (way == 0) {
    total = LogSum::of(lse[slot] * kLog2E);
    for (int other = 0; other < kMergeWays; ++other) total = total + shared.of[other][lane];
    lse[slot] = total.log2() * kLn2;
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_similarity_lse(Operand operand, const void* rows, int d, const int* ids, const int* tiles,
                                const float* temperature, const float* offset, const unsigned char* mask, int domains,
                                float* by_row, float* by_col, int first_row_tile, int first_col_tile, int row_tiles,
                                int col_tiles, void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using T = decltype(type);
    return launch(similarity_lse_kernel<T>, static_cast<int64_t>(row_tiles) * col_tiles, kTileThreads,
                  sizeof(LseShared), static_cast<cudaStream_t>(stream), static_cast<const typename T::Element*>(rows),
                  d, ids, reinterpret_cast<const LayoutTile*>(tiles), temperature, offset, mask, domains, by_row,
                  by_col, first_row_tile, first_col_tile, row_tiles, col_tiles);
  });
}

int uniclip_cuda_merge_lse(float* lse, const float* parts, int64_t slots, int count, void* stream) {
  return launch(merge_lse_kernel, slots / kMergeSlots, kMergeSlots * kMergeWays, sizeof(MergeShared),
                static_cast<cudaStream_t>(stream), lse, parts, slots, count);
}
