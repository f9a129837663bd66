// Forward on sm_90a: tiles of similarities reduced, on chip, to the log-sum-exp over negatives of their rows and
// columns.
#include "hopper.h"
#include "launch.cuh"

namespace uniclip::cuda::hopper {

// One exponential serves a row and a column where both can be taken relative to a pivot that the tile has in common.
// Unit rows have |x| <= scale beside the offset, and 2^(x - pivot) with pivot = scale - kRange stays below 2^kRange.
// Partial sums that come out outside these bounds may have lost terms, or overflow later, and the tile is done again,
// exactly.
constexpr float kRange = 100, kSmallest = 1e-28f, kLargest = 1e34f;

// Lanes at distance kDistance exchange halves of what they have for 2 kDistance columns: each is left with kDistance.
template <int kDistance, class Join>
__device__ __forceinline__ void halve(float (&columns)[32], bool upper, const Join& join) {
#pragma unroll
  for (int i = 0; i < kDistance; ++i) {
    const float given = upper ? columns[i] : columns[i + kDistance];
    const float kept = upper ? columns[i + kDistance] : columns[i];
    columns[i] = join(kept, __shfl_xor_sync(kWholeWarp, given, kDistance));
  }
}

template <bool kAllStay>
struct LseTask {
  static constexpr bool kPrepares = false;
  const Problem& problem;
  Shared<kAllStay>& memory;
  float *row_parts, *by_col;
  float totals[4] = {}, base = 0;  // of the thread's rows: Σ 2^(x - base) of the tiles since they were last stored

  __device__ __forceinline__ float* row_part(int row, int piece, int warpgroup) const {
    const int64_t rows = static_cast<int64_t>(problem.schedule.row_tiles) * kBlock;
    return row_parts + (piece * 2 + warpgroup) * rows + static_cast<int64_t>(row) * kBlock;
  }
  __device__ __forceinline__ float* col_part(int row, int col) const {
    return by_col + (static_cast<int64_t>(row) * problem.schedule.col_tiles + col) * kBlock;
  }

  __device__ void begin_piece(int row, int piece, int lane) const {
    for (int warpgroup = 0; warpgroup < 2; ++warpgroup) {
      float* part = row_part(row, piece, warpgroup);
      for (int i = lane; i < kBlock; i += 32) part[i] = kNothing;
    }
  }
  __device__ void empty_tile(int row, int col, int lane) const {
    for (int i = lane; i < kBlock; i += 32) col_part(row, col)[i] = kNothing;
  }
  __device__ void prepare(uint32_t, const Tile&) const {}

  __device__ __forceinline__ void epilogue(uint32_t t, const Tile& tile, Products& c) {
    const Lane me;
    const int barrier = 1 + static_cast<int>(t & 1);
    float* row_out = row_part(tile.row, tile.piece, static_cast<int>(t & 1));
    bool done = false;
    if (tile.is(Tile::kOnlyNegatives)) {
      const float pivot = fmaxf(tile.scale - kRange, 0.f);
      float columns[32], rows[4] = {};
#pragma unroll
      for (int b = 0; b < 16; ++b) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float terms[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            terms[r] = ptx::exp2_approx(fmaf(element(c, r, b, e), tile.scale, -pivot));
            rows[r] += terms[r];
          }
          columns[b * 2 + e] = (terms[0] + terms[1]) + (terms[2] + terms[3]);
        }
      }
      sum_over_lanes(columns, [](float a, float b) { return a + b; });
      bool inside = true;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        inside = inside && rows[i] > kSmallest && rows[i] < kLargest;
        inside = inside && columns[i] > kSmallest && columns[i] < kLargest;
      }
      wait_for_work(t);
      share(me, columns);
      done = !ptx::any_in_warpgroup(barrier, !inside);
      if (done) {
        if (base != pivot - tile.shift) store_rows(me, row_out);
        base = pivot - tile.shift;
#pragma unroll
        for (int r = 0; r < 4; ++r) totals[r] += rows[r];
        col_part(tile.row, tile.col)[me.thread] = log2f(column_total(me)) + base;
      }
    } else {
      wait_for_work(t);
    }
    if (!done) exact(me, barrier, tile, c, row_out);
    __syncwarp();
    if (me.lane == 0) ptx::arrive(ptx::shared_address(&memory.work_free));
    if (tile.is(Tile::kLast)) store_rows(me, row_out);
  }

 private:
  // Until the tile before this one, of the other warpgroup, needs the memory no more.
  __device__ __forceinline__ void wait_for_work(uint32_t t) const {
    if (t > 0) ptx::wait(ptx::shared_address(&memory.work_free), t - 1 & 1);
  }

  // columns[0 to 3] over the lanes that have the same columns, for those of the lane: see share().
  template <class Join>
  __device__ __forceinline__ void sum_over_lanes(float (&columns)[32], const Join& join) const {
    const int lane = threadIdx.x % 32;
    halve<16>(columns, lane & 16, join);
    halve<8>(columns, lane & 8, join);
    halve<4>(columns, lane & 4, join);
  }
  __device__ __forceinline__ float* shared_columns(int warp) const { return &memory.work[0][0][0] + warp * kBlock; }
  __device__ __forceinline__ void share(const Lane& me, const float (&columns)[32]) const {
    const int b = (me.lane >> 4 & 1) * 8 + (me.lane >> 3 & 1) * 4 + (me.lane >> 2 & 1) * 2;
    float2* to = reinterpret_cast<float2*>(shared_columns(me.warp) + me.col(b));
    to[0] = make_float2(columns[0], columns[1]);
    to[4] = make_float2(columns[2], columns[3]);
  }
  __device__ __forceinline__ float column_total(const Lane& me) const {
    return (shared_columns(0)[me.thread] + shared_columns(1)[me.thread]) +
           (shared_columns(2)[me.thread] + shared_columns(3)[me.thread]);
  }

  // Adds the totals to those stored before, of which the lanes of a quad have a quarter each.
  __device__ __forceinline__ void store_rows(const Lane& me, float* out) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      add_row(me, out + me.row(r), {base, totals[r]});
      totals[r] = 0;
    }
  }
  // Of a quad, whose lanes have the same max.
  __device__ __forceinline__ void add_row(const Lane& me, float* out, LogSum sum) const {
    sum.sum += __shfl_xor_sync(kWholeWarp, sum.sum, 1);
    sum.sum += __shfl_xor_sync(kWholeWarp, sum.sum, 2);
    if (me.quad == 0) *out = (LogSum::of(*out) + LogSum::of(sum.log2())).log2();
  }

  // Each row and column relative to its own largest term, and only over negatives.
  __device__ __forceinline__ void exact(const Lane& me, int barrier, const Tile& tile, Products& c, float* row_out) {
    const int* row_ids = problem.given.ids + problem.first_row(tile.row);
    const int* col_ids = problem.given.ids + problem.first_col(tile.col);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row_id = row_ids[me.row(r)];
      float top = kNothing;
#pragma unroll
      for (int b = 0; b < 16; ++b) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int col_id = col_ids[me.col(b) + e];
          float& x = element(c, r, b, e);
          x = fmaf(x, tile.scale, -tile.shift);
          if (row_id == col_id || row_id < 0 || col_id < 0) x = kNothing;
          top = fmaxf(top, x);
        }
      }
      top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
      float sum = 0;
#pragma unroll
      for (int b = 0; b < 16; ++b) {
#pragma unroll
        for (int e = 0; e < 2; ++e) sum += ptx::exp2_approx(element(c, r, b, e) - LogSum::pivot(top));
      }
      add_row(me, row_out + me.row(r), {top, sum});
    }
    if (problem.diagonal() && tile.row == tile.col) return;

    float columns[32];
#pragma unroll
    for (int b = 0; b < 16; ++b) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        columns[b * 2 + e] =
            fmaxf(fmaxf(element(c, 0, b, e), element(c, 1, b, e)), fmaxf(element(c, 2, b, e), element(c, 3, b, e)));
      }
    }
    sum_over_lanes(columns, [](float a, float b) { return fmaxf(a, b); });
    share(me, columns);
    ptx::sync_warpgroup(barrier);
    const float top = fmaxf(fmaxf(shared_columns(0)[me.thread], shared_columns(1)[me.thread]),
                            fmaxf(shared_columns(2)[me.thread], shared_columns(3)[me.thread]));
    ptx::sync_warpgroup(barrier);
    shared_columns(0)[me.thread] = LogSum::pivot(top);
    ptx::sync_warpgroup(barrier);
#pragma unroll
    for (int b = 0; b < 16; ++b) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float pivot = shared_columns(0)[me.col(b) + e];
        float sum = 0;
#pragma unroll
        for (int r = 0; r < 4; ++r) sum += ptx::exp2_approx(element(c, r, b, e) - pivot);
        columns[b * 2 + e] = sum;
      }
    }
    sum_over_lanes(columns, [](float a, float b) { return a + b; });
    ptx::sync_warpgroup(barrier);
    share(me, columns);
    ptx::sync_warpgroup(barrier);
    col_part(tile.row, tile.col)[me.thread] = LogSum{top, column_total(me)}.log2();
  }
};

// row_parts: base-2 logarithms of the sums of rows, two a piece; by_col[it, slots of jt]: of the columns of a tile. On
// the diagonal columns have parts of the tiles above it alone.
template <class E, bool kAllStay>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_lse_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Problem problem,
                      float* row_parts, float* by_col) {
  auto& memory = shared_memory<Shared<kAllStay>>();
  run_pipeline<LseTask<kAllStay>, E>(map, problem, memory, LseTask<kAllStay>{problem, memory, row_parts, by_col});
}

// Joins the running natural lse of each row and column of the rectangle with its parts. A block has 32 slots.
__global__ void __launch_bounds__(kMergeSlots* kMergeWays)
    hopper_merge_kernel(float* lse, const float* row_parts, const float* by_col, Rectangle rectangle,
                        Schedule schedule) {
  auto& shared = shared_memory<MergeShared>();
  const int lane = threadIdx.x % kMergeSlots, way = threadIdx.x / kMergeSlots;
  const int64_t rows = static_cast<int64_t>(schedule.row_tiles) * kBlock;
  const int64_t cols = static_cast<int64_t>(schedule.col_tiles) * kBlock;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kMergeSlots + lane;  // rows come first, then columns
  const bool is_row = slot < rows;
  LogSum total = LogSum::nothing();
  const auto add = [&](const float* parts, int64_t stride, int count) {
    for (int part = way; part < count; part += kMergeWays) total = total + LogSum::of(parts[part * stride]);
  };
  if (is_row) {
    const int row = static_cast<int>(slot / kBlock);
    add(row_parts + slot, rows, 2 * schedule.pieces(row));
    if (schedule.triangle) add(by_col + slot, cols, row);
  } else {
    add(by_col + slot - rows, cols, schedule.row_tiles);
  }
  const int64_t first = static_cast<int64_t>(is_row ? rectangle.first_row_tile : rectangle.first_col_tile) * kBlock;
  shared.add(lane, way, total, lse[first + (is_row ? slot : slot - rows)]);
}

}  // namespace uniclip::cuda::hopper

using namespace uniclip::cuda;
using namespace uniclip::cuda::hopper;

int uniclip_cuda_hopper_lse(Similarities given, Rectangle rectangle, float* lse, float* row_parts, float* by_col,
                            int blocks, void* stream) {
  const Problem problem = problem_of(given, rectangle, blocks);
  const auto to = static_cast<cudaStream_t>(stream);
  const int error = with_kind(given, [&](auto element, auto all_stay, const CUtensorMap& map) -> int {
    using E = decltype(element);
    constexpr bool kAllStay = decltype(all_stay)::value;
    return launch(hopper_lse_kernel<E, kAllStay>, blocks, kThreads, sizeof(Shared<kAllStay>), to, map, problem,
                  row_parts, by_col);
  });
  if (error != cudaSuccess) return error;
  const int64_t sides = rectangle.row_tiles + (problem.diagonal() ? 0 : rectangle.col_tiles);
  return launch(hopper_merge_kernel, sides * kBlock / kMergeSlots, kMergeSlots * kMergeWays, sizeof(MergeShared), to,
                lse, row_parts, by_col, rectangle, problem.schedule);
}
