// Backward: tiles of similarities, computed again, turned on chip into the gradient H / τ of their negatives.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kPadding = 8;  // elements a row, which keep the rows that a warp writes in different banks

// What the gradient needs of a slot.
struct Slot {
  float lse, coefficient;  // lse in base 2; infinite without negatives, so that 2^(s - lse) is 0
};

constexpr float kMasked = -1e30f;  // an s that is finite, with 2^(s - lse) = 0

template <class E>
struct Gradients {
  alignas(16) E tile[kBlock][kBlock + kPadding];
  Slot row[kBlock], col[kBlock];
  float sums[2][kTileThreads / 32];
};

// With 16-bit elements no more than the stages, of which two fit on a multiprocessor of 100 KB.
template <class E>
union GradShared {
  Stages stages;
  Gradients<E> gradients;
};

// A tile in shared memory to `out`, 16 bytes at a time.
template <class E>
__device__ __forceinline__ void store_tile(const E (&tile)[kBlock][kBlock + kPadding], E* out, int64_t stride) {
  constexpr int kPart = 16 / sizeof(E), kParts = kBlock / kPart;
  for (int part = threadIdx.x; part < kBlock * kParts; part += kTileThreads) {
    const int row = part / kParts, col = part % kParts * kPart;
    *reinterpret_cast<int4*>(out + row * stride + col) = *reinterpret_cast<const int4*>(&tile[row][col]);
  }
}

template <class E>
__device__ __forceinline__ void store_zeros(E* out, int64_t stride) {
  constexpr int kPart = 16 / sizeof(E), kParts = kBlock / kPart;
  for (int part = threadIdx.x; part < kBlock * kParts; part += kTileThreads) {
    *reinterpret_cast<int4*>(out + part / kParts * stride + part % kParts * kPart) = int4{0, 0, 0, 0};
  }
}

// h = H / τ of the rectangle, zero where no negative is; on the diagonal both triangles of it. parts[0 and 1, it, jt] =
// Σ H and Σ H s over the unordered pairs of tile (it, jt).
template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    similarity_grad_kernel(const typename T::Element* rows, int d, const int* ids, const LayoutTile* tiles,
                           const float* temperature, const float* offset, const unsigned char* mask, int domains,
                           const float* lse, const float* coefficient, typename T::Element* h, float* parts,
                           int first_row_tile, int first_col_tile, int row_tiles, int col_tiles) {
  using E = typename T::Element;
  auto& memory = shared_memory<GradShared<E>>();
  auto& shared = memory.gradients;
  const TileIndex tile(row_tiles, col_tiles);
  const bool diagonal = first_row_tile == first_col_tile;
  if (diagonal && tile.row > tile.col) return;
  const int row_tile = first_row_tile + tile.row, col_tile = first_col_tile + tile.col;
  const int thread = static_cast<int>(threadIdx.x);
  const bool mirror = diagonal && tile.row != tile.col;
  const int64_t stride = static_cast<int64_t>(col_tiles) * kBlock;
  E* here = h + tile.row * (stride * kBlock) + tile.col * kBlock;
  E* mirrored = h + tile.col * (stride * kBlock) + tile.row * kBlock;
  float* part = parts + static_cast<int64_t>(tile.row) * col_tiles + tile.col;
  float* second_part = part + static_cast<int64_t>(row_tiles) * col_tiles;

  const DomainPair pair(tiles, row_tile, col_tile, temperature, offset, mask, domains);
  if (!pair.live) {
    store_zeros(here, stride);
    if (mirror) store_zeros(mirrored, stride);
    if (thread == 0) *part = *second_part = 0;
    return;
  }

  const int64_t i = static_cast<int64_t>(row_tile) * kBlock, j = static_cast<int64_t>(col_tile) * kBlock;
  Dots x;
  dot_tile<T>(memory.stages, rows + i * d, rows + j * d, d, x);
  {
    const int64_t slot = thread < kBlock ? i + thread : j + thread - kBlock;
    const float base2 = lse[slot] == kNothing ? INFINITY : lse[slot] * kLog2E;
    (thread < kBlock ? shared.row : shared.col)[thread % kBlock] = {base2, coefficient[slot]};
  }
  __syncthreads();
  similarities(x, pair, ids + i, ids + j, kMasked);

  const Place place;
  const float inverse_tau = 1 / pair.tau;
  float sum = 0, sum_with_s = 0;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Slot row = shared.row[place.row(m, half)];
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const Slot col = shared.col[place.col(n, q)];
          float& value = x[m][n][half * 2 + q];
          float grad = ptx::exp2_approx(value - row.lse) * row.coefficient;
          grad += ptx::exp2_approx(value - col.lse) * col.coefficient;
          sum += grad;
          sum_with_s += grad * value;
          value = grad * inverse_tau;
        }
      }
    }
  }

  sum = warp_sum(sum);
  sum_with_s = warp_sum(sum_with_s);
  if (place.lane == 0) {
    shared.sums[0][thread / 32] = sum;
    shared.sums[1][thread / 32] = sum_with_s;
  }
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) shared.tile[place.row(m, e / 2)][place.col(n, e % 2)] = from_float<E>(x[m][n][e]);
    }
  }
  __syncthreads();
  store_tile(shared.tile, here, stride);
  if (thread == 0) {
    const float once = diagonal && !mirror ? 0.5f : 1.f;  // a tile on the diagonal holds every pair twice
    float total = 0, total_with_s = 0;
    for (int warp = 0; warp < kTileThreads / 32; ++warp) {
      total += shared.sums[0][warp];
      total_with_s += shared.sums[1][warp];
    }
    *part = total * once;
    *second_part = total_with_s * (once * kLn2);
  }
  if (mirror) {
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) shared.tile[place.col(n, e % 2)][place.row(m, e / 2)] = from_float<E>(x[m][n][e]);
      }
    }
    __syncthreads();
    store_tile(shared.tile, mirrored, stride);
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_similarity_grad(Operand operand, const void* rows, int d, const int* ids, const int* tiles,
                                 const float* temperature, const float* offset, const unsigned char* mask, int domains,
                                 const float* lse, const float* coefficient, void* h, float* parts, int first_row_tile,
                                 int first_col_tile, int row_tiles, int col_tiles, void* stream) {
  return with_operand(operand, [&](auto type) -> int {
    using T = decltype(type);
    using E = typename T::Element;
    return launch(similarity_grad_kernel<T>, static_cast<int64_t>(row_tiles) * col_tiles, kTileThreads,
                  sizeof(GradShared<E>), static_cast<cudaStream_t>(stream), static_cast<const E*>(rows), d, ids,
                  reinterpret_cast<const LayoutTile*>(tiles), temperature, offset, mask, domains, lse, coefficient,
                  static_cast<E*>(h), parts, first_row_tile, first_col_tile, row_tiles, col_tiles);
  });
}
