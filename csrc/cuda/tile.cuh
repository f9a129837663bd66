// What the kernels over tiles of similarities share: which tile a block has, its dot products, its domain pair and
// mask. A block of 8 warps has a tile of 128 x 128; a warp 64 x 32 of it, as 4 x 4 fragments of 16 x 8.
#pragma once

#include "log_sum.cuh"
#include "types.cuh"

namespace uniclip::cuda {

constexpr int kBlock = 128;  // side of a tile, and slots of a tile of the layout
constexpr int kTileThreads = 256, kTileWarps = kTileThreads / 32;
constexpr int kWarpRows = 2, kWarpCols = 4;  // warps over a tile
constexpr int kRowFragments = kBlock / kWarpRows / 16, kColFragments = kBlock / kWarpCols / 8;

// Blocks of two operands in flight. Depth is counted in bytes, which makes 16- and 32-bit elements alike.
constexpr int kStages = 3, kStageBytes = 64, kStepBytes = 32;
struct alignas(128) Stages {
  unsigned char x[kStages][kBlock * kStageBytes], y[kStages][kBlock * kStageBytes];
};

// The dot products that a thread has, as mma leaves them: [row fragment][column fragment][row half * 2 + column].
using Dots = float[kRowFragments][kColFragments][4];

// Where in the tile a thread's elements are.
struct Place {
  int lane, warp_row, warp_col;
  __device__ Place()
      : lane(threadIdx.x % 32), warp_row(threadIdx.x / 32 % kWarpRows), warp_col(threadIdx.x / 32 / kWarpRows) {}
  __device__ int row(int m, int half) const { return warp_row * (kBlock / kWarpRows) + m * 16 + half * 8 + lane / 4; }
  __device__ int col(int n, int q) const { return warp_col * (kBlock / kWarpCols) + n * 8 + lane % 4 * 2 + q; }
};

// Byte offset of 16-byte part `part` of row `row` in a stage. Parts of rows are swapped so that the 8 rows that one
// ldmatrix reads together lie in different banks.
__device__ __forceinline__ int in_stage(int row, int part) { return row * kStageBytes + (part ^ (row / 2 % 4)) * 16; }

// dots = x yᵀ for 128 rows of x and of y, d columns of each; d is a multiple of kStageBytes. All shared memory is free
// again afterwards.
template <class T>
__device__ __forceinline__ void dot_tile(Stages& stages, const typename T::Element* x, const typename T::Element* y,
                                         int d, Dots& dots) {
  // Of a stage, a thread copies 16 bytes of every kCopyRows-th row.
  constexpr int kParts = kStageBytes / 16, kCopyRows = kTileThreads / kParts;
  const int64_t row_bytes = static_cast<int64_t>(d) * sizeof(typename T::Element);
  const int steps = static_cast<int>(row_bytes / kStageBytes);
  const int copy_row = threadIdx.x / kParts, copy_part = threadIdx.x % kParts;
  const int copy_to = in_stage(copy_row, copy_part);
  const int64_t copy_from = copy_row * row_bytes + copy_part * 16;
  const unsigned char* x_from = reinterpret_cast<const unsigned char*>(x) + copy_from;
  const unsigned char* y_from = reinterpret_cast<const unsigned char*>(y) + copy_from;
  const auto load = [&](int stage) {
#pragma unroll
    for (int row = 0; row < kBlock; row += kCopyRows) {  // a multiple of the rows after which in_stage repeats
      ptx::cp_async_16(stages.x[stage] + copy_to + row * kStageBytes, x_from + row * row_bytes);
      ptx::cp_async_16(stages.y[stage] + copy_to + row * kStageBytes, y_from + row * row_bytes);
    }
    x_from += kStageBytes;
    y_from += kStageBytes;
  };

#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dots[m][n][e] = 0;
    }
  }
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load(step);
    ptx::cp_async_commit();
  }
  const Place place;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps)
      load((step + kStages - 1) % kStages);  // every warp has read that before the barrier
    ptx::cp_async_commit();
    const unsigned char* x_stage = stages.x[step % kStages];
    const unsigned char* y_stage = stages.y[step % kStages];
#pragma unroll(T::kUnrolledSteps)
    for (int k = 0; k < kStageBytes / kStepBytes; ++k) {
      typename T::template Fragment<2> b[kColFragments];
#pragma unroll
      for (int n = 0; n < kColFragments; n += 2) {  // matrices: (n, left), (n, right), (n + 1, left), (n + 1, right)
        uint32_t words[4];
        const int row = place.warp_col * (kBlock / kWarpCols) + n * 8 + place.lane / 16 * 8 + place.lane % 8;
        ptx::ldmatrix_x4(words, y_stage + in_stage(row, k * 2 + place.lane / 8 % 2));
        b[n] = T::template fragment<2>(words);
        b[n + 1] = T::template fragment<2>(words + 2);
      }
#pragma unroll
      for (int m = 0; m < kRowFragments;
           ++m) {  // matrices: (upper, left), (lower, left), (upper, right), (lower, right)
        uint32_t words[4];
        const int row = place.warp_row * (kBlock / kWarpRows) + m * 16 + place.lane % 16;
        ptx::ldmatrix_x4(words, x_stage + in_stage(row, k * 2 + place.lane / 16));
        const auto a = T::template fragment<4>(words);
#pragma unroll
        for (int n = 0; n < kColFragments; ++n) T::multiply(dots[m][n], a, b[n]);
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
}

// A block's tile of a rectangle. Blocks that run together should share operands in L2: they go through kGroup rows of
// tiles together.
struct TileIndex {
  const Rectangle& in;
  int row, col;  // in the rectangle

  __device__ explicit TileIndex(const Rectangle& in) : in(in) {
    constexpr int kGroup = 16;
    const int block = static_cast<int>(blockIdx.x);
    const int first = block / (kGroup * in.col_tiles) * kGroup, height = min(kGroup, in.row_tiles - first);
    const int within = block % (kGroup * in.col_tiles);
    row = first + within % height;
    col = within / height;
  }
  __device__ int row_tile() const { return in.first_row_tile + row; }
  __device__ int col_tile() const { return in.first_col_tile + col; }
  __device__ bool below_diagonal() const { return row_tile() > col_tile(); }
  __device__ bool on_diagonal() const { return row_tile() == col_tile(); }
  __device__ bool mirrors() const { return in.first_row_tile == in.first_col_tile && row != col; }
};

// Dot products of two tiles of rows.
template <class T>
__device__ __forceinline__ void dot_tile(Stages& stages, const Similarities& of, int row_tile, int col_tile,
                                         Dots& dots) {
  const auto* rows = static_cast<const typename T::Element*>(of.rows);
  const int64_t tile = static_cast<int64_t>(kBlock) * of.d;
  dot_tile<T>(stages, rows + row_tile * tile, rows + col_tile * tile, of.d, dots);
}

// The domain pair of a tile: s log2 e = dot * scale - shift.
struct DomainPair {
  bool live;            // are there negatives?
  bool only_negatives;  // both sides are full and, since sample numbers ascend, no sample is in both
  float tau, scale, shift;

  __device__ DomainPair(const Similarities& of, int row_tile, int col_tile) {
    const LayoutTile a = of.tiles[row_tile], b = of.tiles[col_tile];
    const int pair = a.domain * of.domains + b.domain;
    const bool compared = a.domain >= 0 && b.domain >= 0 && (of.mask == nullptr || of.mask[pair] != 0);
    const bool one_sample = a.first == b.last && a.last == b.first;  // first <= last
    live = compared && !one_sample;
    only_negatives = a.filled == kBlock && b.filled == kBlock && (a.last < b.first || b.last < a.first);
    tau = compared ? of.temperature[pair] : 1;
    scale = kLog2E / tau;
    shift = compared ? of.offset[pair] * scale : 0;
  }
};

// x = s log2 e from dot products, and `masked` where two slots are no negatives of each other: those of one sample, and
// empty ones, with number -1. row_ids, col_ids: of the tile.
__device__ __forceinline__ void similarities(Dots& x, const DomainPair& pair, const int* row_ids, const int* col_ids,
                                             float masked) {
  const Place place;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[m][n][e] = x[m][n][e] * pair.scale - pair.shift;
    }
  }
  if (pair.only_negatives) return;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row_id = row_ids[place.row(m, e / 2)];
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
        const int col_id = col_ids[place.col(n, e % 2)];
        if (row_id == col_id || row_id < 0 || col_id < 0) x[m][n][e] = masked;
      }
    }
  }
}

constexpr int kPadding = 8;  // elements a row, which keep the rows that a warp writes in different banks
template <class E>
using SharedTile = E[kBlock][kBlock + kPadding];

// A tile, or its transpose, from registers to shared memory.
template <bool kTransposed, class E>
__device__ __forceinline__ void share_tile(const Dots& x, SharedTile<E>& tile) {
  const Place place;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = place.row(m, e / 2), col = place.col(n, e % 2);
        tile[kTransposed ? col : row][kTransposed ? row : col] = from_float<E>(x[m][n][e]);
      }
    }
  }
}

// Sum over the lanes of a warp, the same in each.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

// Σ H and Σ H s over a tile, with s in base 2.
struct TileSums {
  float of_warp[2][kTileWarps];

  __device__ void share(float sum, float sum_with_s) {
    sum = warp_sum(sum);
    sum_with_s = warp_sum(sum_with_s);
    if (threadIdx.x % 32 == 0) {
      of_warp[0][threadIdx.x / 32] = sum;
      of_warp[1][threadIdx.x / 32] = sum_with_s;
    }
  }
  // After a barrier. parts: (2, row_tiles, col_tiles); the tile is in row `row` and column `col` of the rectangle.
  __device__ void store(const Rectangle& in, int row, int col, float* parts) const {
    const int k = static_cast<int>(threadIdx.x);
    if (k >= 2) return;
    const bool on_diagonal = in.first_row_tile + row == in.first_col_tile + col;  // where every pair is there twice
    float total = 0;
    for (float sum : of_warp[k]) total += sum;
    parts[(static_cast<int64_t>(k) * in.row_tiles + row) * in.col_tiles + col] =
        total * ((on_diagonal ? 0.5f : 1.f) * (k == 0 ? 1.f : kLn2));
  }
};

}  // namespace uniclip::cuda
