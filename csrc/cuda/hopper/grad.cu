// Backward on sm_90a: tiles of similarities, computed again, turned on chip into the gradient H / τ of their negatives.
#include "hopper.h"
#include "launch.cuh"

namespace uniclip::cuda::hopper {

// One exponential serves both terms of H where the log-sum-exps of a tile lie within this many powers of two:
// 2^(x - lse_i) c_i + 2^(x - lse_j) c_j = 2^(x - top) (w_i + w_j) with the weights w = 2^(top - lse) c.
constexpr float kSpread = 60;
constexpr float kMasked = -1e30f;  // an s that is finite, with 2^(s - lse) = 0

// Lane q of a quad has words[0 to 3]; afterwards it has words[q] of lanes 0 to 3.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int q) {
  const bool odd = q & 1, upper = q & 2;
  const uint32_t a = __shfl_xor_sync(kWholeWarp, odd ? words[0] : words[1], 1);
  const uint32_t b = __shfl_xor_sync(kWholeWarp, odd ? words[2] : words[3], 1);
  const uint32_t low[2] = {odd ? a : words[0], odd ? words[1] : a};
  const uint32_t high[2] = {odd ? b : words[2], odd ? words[3] : b};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(kWholeWarp, upper ? low[i] : high[i], 2);
    words[i] = upper ? other : low[i];
    words[i + 2] = upper ? high[i] : other;
  }
}

template <class E, bool kAllStay>
struct GradTask {
  static constexpr bool kPrepares = true;
  const Problem& problem;
  Shared<kAllStay>& memory;
  const float *lse, *coefficient;
  E* h;
  float* parts;

  __device__ __forceinline__ int64_t stride() const {
    return static_cast<int64_t>(problem.schedule.col_tiles) * kBlock;
  }
  __device__ __forceinline__ E* tile_of_h(int row, int col) const {
    return h + row * (stride() * kBlock) + static_cast<int64_t>(col) * kBlock;
  }
  __device__ __forceinline__ bool mirrors(int row, int col) const { return problem.diagonal() && row != col; }
  __device__ __forceinline__ void store_sums(int row, int col, float sum, float sum_with_s) const {
    const int64_t at = static_cast<int64_t>(row) * problem.schedule.col_tiles + col;
    parts[at] = sum;
    parts[at + static_cast<int64_t>(problem.schedule.row_tiles) * problem.schedule.col_tiles] = sum_with_s;
  }

  __device__ void begin_piece(int, int, int) const {}
  __device__ void empty_tile(int row, int col, int lane) const {
    for (int side = 0; side < (mirrors(row, col) ? 2 : 1); ++side) {
      E* out = side == 0 ? tile_of_h(row, col) : tile_of_h(col, row);
      for (int i = lane / 16; i < kBlock; i += 2) {
        ptx::store_streaming(out + i * stride() + lane % 16 * 8, 0, 0, 0, 0);
      }
    }
    if (lane == 0) store_sums(row, col, 0, 0);
  }

  // The weights of a tile's rows and columns, if one exponential does.
  __device__ void prepare(uint32_t t, const Tile& tile) const {
    const int lane = threadIdx.x % 32;
    const uint32_t w = t & 1;
    ptx::wait(ptx::shared_address(&memory.prepared_read[w]), (t / 2 & 1) ^ 1);
    float4 lses[2], coefficients[2];
    float top = -INFINITY, bottom = INFINITY;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int64_t slot = (side == 0 ? problem.first_row(tile.row) : problem.first_col(tile.col)) + lane * 4;
      coefficients[side] = *reinterpret_cast<const float4*>(coefficient + slot);
      lses[side] = *reinterpret_cast<const float4*>(lse + slot);
      for (float* x : {&lses[side].x, &lses[side].y, &lses[side].z, &lses[side].w}) {
        *x *= kLog2E;
        top = fmaxf(top, *x);
        bottom = fminf(bottom, *x);
      }
    }
#pragma unroll
    for (int other = 16; other > 0; other /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, other));
      bottom = fminf(bottom, __shfl_xor_sync(kWholeWarp, bottom, other));
    }
    const float inverse_tau = 1 / tile.tau;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float4 l = lses[side], c = coefficients[side];
      *reinterpret_cast<float4*>(&memory.work[w][side][lane * 4]) = make_float4(
          ptx::exp2_approx(top - l.x) * (c.x * inverse_tau), ptx::exp2_approx(top - l.y) * (c.y * inverse_tau),
          ptx::exp2_approx(top - l.z) * (c.z * inverse_tau), ptx::exp2_approx(top - l.w) * (c.w * inverse_tau));
    }
    if (lane == 0) {
      memory.top[w] = top;
      memory.one_exponential[w] = tile.is(Tile::kOnlyNegatives) && top - bottom < kSpread;
    }
    __syncwarp();
    if (lane == 0) ptx::arrive(ptx::shared_address(&memory.prepared[w]));
  }

  __device__ __forceinline__ void epilogue(uint32_t t, const Tile& tile, Products& c) const {
    const Lane me;
    const uint32_t w = t & 1;
    const bool mirror = mirrors(tile.row, tile.col);
    E* here = tile_of_h(tile.row, tile.col) + me.row(0) * stride() + me.quad * 8;
    E* mirrored = tile_of_h(tile.col, tile.row) + me.quad_row * stride() + me.warp * 16 + Lane::row_of_group(me.quad);
    // Blocks of 8 columns 4 n to 4 n + 3 of the thread's rows, as pairs of elements.
    const auto store = [&](int n, uint32_t (&words)[4][4]) {
      if (mirror) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          uint32_t turned[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) turned[r] = ptx::transpose_8x8(words[r][b]);
          transpose_quad(turned, me.quad);
          ptx::store_streaming(mirrored + (n * 4 + b) * 8 * stride(), turned[0], turned[1], turned[2], turned[3]);
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        transpose_quad(words[r], me.quad);
        ptx::store_streaming(here + Lane::row_of_group(r) * stride() + n * 32, words[r][0], words[r][1], words[r][2],
                             words[r][3]);
      }
    };

    ptx::wait(ptx::shared_address(&memory.prepared[w]), t / 2 & 1);
    const float top = memory.top[w];
    float sum[2] = {}, sum_with_x[2] = {};
    if (memory.one_exponential[w] != 0) {
      const float shift = tile.shift + top;
      float row_weights[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) row_weights[r] = memory.work[w][0][me.row(r)];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t words[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int b = n * 4 + i;
          const float2 col_weights = *reinterpret_cast<const float2*>(&memory.work[w][1][me.col(b)]);
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            float grad[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float x = fmaf(element(c, r, b, e), tile.scale, -shift);
              grad[e] = ptx::exp2_approx(x) * (row_weights[r] + (e == 0 ? col_weights.x : col_weights.y));
              sum[e] += grad[e];
              sum_with_x[e] = fmaf(grad[e], x, sum_with_x[e]);
            }
            words[r][i] = ptx::pack<E>(grad[0], grad[1]);
          }
        }
        store(n, words);
      }
      sum_with_x[0] += (sum[0] + sum[1]) * top;  // x was relative to it
    } else {
      two_exponentials(me, tile, c, sum, sum_with_x, store);
    }

    const float total = warp_sum(sum[0] + sum[1]), total_with_x = warp_sum(sum_with_x[0] + sum_with_x[1]);
    if (me.lane == 0) {
      memory.sums[w][me.warp][0] = total;
      memory.sums[w][me.warp][1] = total_with_x;
    }
    ptx::sync_warpgroup(1 + static_cast<int>(w));
    if (me.thread == 0) {
      const auto& sums = memory.sums[w];
      // Of H / τ; a tile on the diagonal holds every pair twice.
      const float once = (problem.diagonal() && !mirror ? 0.5f : 1.f) * tile.tau;
      store_sums(tile.row, tile.col, ((sums[0][0] + sums[1][0]) + (sums[2][0] + sums[3][0])) * once,
                 ((sums[0][1] + sums[1][1]) + (sums[2][1] + sums[3][1])) * (once * kLn2));
    }
    __syncwarp();
    if (me.lane == 0) ptx::arrive(ptx::shared_address(&memory.prepared_read[w]));
  }

 private:
  // Any tile: with a mask, and lse of any spread, -inf for a row without negatives, whose elements are all masked.
  template <class Store>
  __device__ __forceinline__ void two_exponentials(const Lane& me, const Tile& tile, Products& c, float (&sum)[2],
                                                   float (&sum_with_x)[2], const Store& store) const {
    const int64_t i = problem.first_row(tile.row), j = problem.first_col(tile.col);
    const float inverse_tau = 1 / tile.tau;
    const auto base2 = [&](int64_t slot) {
      const float l = lse[slot];
      return l == kNothing ? 0.f : l * kLog2E;
    };
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      int row_ids[4];
      float row_lses[4], row_coefficients[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int64_t row = i + me.row(r);
        row_ids[r] = problem.given.ids[row];
        row_lses[r] = base2(row);
        row_coefficients[r] = coefficient[row] * inverse_tau;
      }
      uint32_t words[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float grad[4][2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t col = j + me.col(n * 4 + k) + e;
          const int col_id = problem.given.ids[col];
          const float col_lse = base2(col), col_coefficient = coefficient[col] * inverse_tau;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            float x = fmaf(element(c, r, n * 4 + k, e), tile.scale, -tile.shift);
            if (row_ids[r] == col_id || row_ids[r] < 0 || col_id < 0) x = kMasked;
            grad[r][e] = ptx::exp2_approx(x - row_lses[r]) * row_coefficients[r];
            grad[r][e] += ptx::exp2_approx(x - col_lse) * col_coefficient;
            sum[e] += grad[r][e];
            sum_with_x[e] = fmaf(grad[r][e], x, sum_with_x[e]);
          }
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) words[r][k] = ptx::pack<E>(grad[r][0], grad[r][1]);
      }
      store(n, words);
    }
  }
};

// h = H / τ of the rectangle, zero where no negative is; on the diagonal both triangles of it. parts[0 and 1, it, jt] =
// Σ H and Σ H s over the unordered pairs of tile (it, jt).
template <class E, bool kAllStay>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_grad_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Problem problem,
                       const float* lse, const float* coefficient, E* h, float* parts) {
  auto& memory = shared_memory<Shared<kAllStay>>();
  using Task = GradTask<E, kAllStay>;
  run_pipeline<Task, E>(map, problem, memory, Task{problem, memory, lse, coefficient, h, parts});
}

}  // namespace uniclip::cuda::hopper

using namespace uniclip::cuda;
using namespace uniclip::cuda::hopper;

int uniclip_cuda_hopper_grad(Similarities given, Rectangle rectangle, const float* lse, const float* coefficient,
                             void* h, float* parts, int blocks, void* stream) {
  const Problem problem = problem_of(given, rectangle, blocks);
  return with_kind(given, [&](auto element, auto all_stay, const CUtensorMap& map) -> int {
    using E = decltype(element);
    constexpr bool kAllStay = decltype(all_stay)::value;
    return launch(hopper_grad_kernel<E, kAllStay>, blocks, kThreads, sizeof(Shared<kAllStay>),
                  static_cast<cudaStream_t>(stream), map, problem, lse, coefficient, static_cast<E*>(h), parts);
  });
}
