// Backward: tiles of similarities, computed again, turned on chip into the gradient H / τ of their negatives.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

// What the gradient needs of a slot.
struct Slot {
  float lse, coefficient;  // lse in base 2; infinite without negatives, so that 2^(s - lse) is 0
};

constexpr float kMasked = -1e30f;  // an s that is finite, with 2^(s - lse) = 0

template <class E>
struct Gradients {
  alignas(16) SharedTile<E> tile;
  Slot row[kBlock], col[kBlock];
  TileSums sums;
};

// With 16-bit elements no more than the stages, of which two fit on a multiprocessor of 100 KB.
template <class E>
union GradShared {
  Stages stages;
  Gradients<E> gradients;
};

// A tile in shared memory, zeros if that is null, to `out`, 16 bytes at a time.
template <class E>
__device__ __forceinline__ void store_tile(const SharedTile<E>* tile, E* out, int64_t stride) {
  constexpr int kPart = 16 / sizeof(E), kParts = kBlock / kPart;
  for (int part = threadIdx.x; part < kBlock * kParts; part += kTileThreads) {
    const int row = part / kParts, col = part % kParts * kPart;
    const int4 bytes = tile == nullptr ? int4{0, 0, 0, 0} : *reinterpret_cast<const int4*>(&(*tile)[row][col]);
    *reinterpret_cast<int4*>(out + row * stride + col) = bytes;
  }
}

// h = H / τ of the rectangle, zero where no negative is; on the diagonal both triangles of it. parts[0 and 1, it, jt] =
// Σ H and Σ H s over the unordered pairs of tile (it, jt), stored where there are negatives. The sigmoid has no use for
// lse.
template <class T, bool kSigmoid>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    similarity_grad_kernel(const Similarities given, const Rectangle rectangle, const float* lse,
                           const float* coefficient, typename T::Element* h, float* parts) {
  using E = typename T::Element;
  auto& memory = shared_memory<GradShared<E>>();
  auto& shared = memory.gradients;
  const TileIndex tile(rectangle);
  if (tile.below_diagonal()) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stride = static_cast<int64_t>(rectangle.col_tiles) * kBlock;
  const auto at = [&](int row, int col) { return h + row * (stride * kBlock) + col * kBlock; };

  const DomainPair pair(given, tile.row_tile(), tile.col_tile());
  if (!pair.live) {
    store_tile<E>(nullptr, at(tile.row, tile.col), stride);
    if (tile.mirrors()) store_tile<E>(nullptr, at(tile.col, tile.row), stride);
    return;
  }

  Dots x;
  dot_tile<T>(memory.stages, given, tile.row_tile(), tile.col_tile(), x);
  const int64_t i = static_cast<int64_t>(tile.row_tile()) * kBlock, j = static_cast<int64_t>(tile.col_tile()) * kBlock;
  {
    const int64_t slot = thread < kBlock ? i + thread : j + thread - kBlock;
    const float base2 = lse[slot] == kNothing ? INFINITY : lse[slot] * kLog2E;
    (thread < kBlock ? shared.row : shared.col)[thread % kBlock] = {base2, coefficient[slot]};
  }
  __syncthreads();
  similarities(x, pair, given.ids + i, given.ids + j, kMasked);

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
          float grad;
          if constexpr (kSigmoid) {
            grad = Softplus(value).slope * (row.coefficient + col.coefficient);
          } else {
            grad = ptx::exp2_approx(value - row.lse) * row.coefficient;
            grad += ptx::exp2_approx(value - col.lse) * col.coefficient;
          }
          sum += grad;
          sum_with_s += grad * value;
          value = grad * inverse_tau;
        }
      }
    }
  }

  shared.sums.share(sum, sum_with_s);
  share_tile<false>(x, shared.tile);
  __syncthreads();
  store_tile<E>(&shared.tile, at(tile.row, tile.col), stride);
  shared.sums.store(rectangle, tile.row, tile.col, parts);
  if (tile.mirrors()) {
    __syncthreads();
    share_tile<true>(x, shared.tile);
    __syncthreads();
    store_tile<E>(&shared.tile, at(tile.col, tile.row), stride);
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_similarity_grad(Similarities given, Rectangle rectangle, bool sigmoid, const float* lse,
                                 const float* coefficient, void* h, float* parts, void* stream) {
  return with_operand(given.operand, sigmoid, [&](auto type, auto flag) -> int {
    using T = decltype(type);
    using E = typename T::Element;
    return launch(similarity_grad_kernel<T, flag()>, static_cast<int64_t>(rectangle.row_tiles) * rectangle.col_tiles,
                  kTileThreads, sizeof(GradShared<E>), static_cast<cudaStream_t>(stream), given, rectangle, lse,
                  coefficient, static_cast<E*>(h), parts);
  });
}
