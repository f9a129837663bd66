// Rows sorted by (domain, sample): what is left to do around two sorts, in two kernels, and the check of values in one.
#include "ops.h"
#include "tile.cuh"

namespace uniclip::cuda {

constexpr int kLayoutThreads = 256;

// First index in [low, high) whose value is not below `wanted` (kUpper: is above it), or high; the values ascend.
template <bool kUpper, class T>
__device__ __forceinline__ int search(const T* values, int low, int high, T wanted) {
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (kUpper ? values[middle] <= wanted : values[middle] < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Of ids in ascending order and the rows they come from: domain[t], `domains` for padding, and where t's sample begins
// and ends.
__global__ void __launch_bounds__(kLayoutThreads)
    number_samples_kernel(const int64_t* by_sample, const int64_t* row, const int64_t* domain_ids, int64_t stride,
                          int count, int domains, short* domain, int* first, int* end) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kLayoutThreads + threadIdx.x;
  if (t >= count) return;
  const int64_t sample = by_sample[t];
  first[t] = search<false>(by_sample, 0, count, sample);
  end[t] = search<true>(by_sample, 0, count, sample);
  int64_t a = domain_ids == nullptr ? 0 : domain_ids[row[t] * stride];
  a = min(max(a, int64_t{0}), int64_t{domains - 1});  // others have been complained of
  domain[t] = static_cast<short>(sample < 0 ? domains : a);
}

// A tile of the layout a block, a slot a thread. `domain` ascends, with `position` the place of each in the order of
// samples, in which row, first and end are. starts: first slot of each domain, or null where it follows from their
// rows.
__global__ void __launch_bounds__(kBlock)
    layout_kernel(const short* domain, const int64_t* position, const int64_t* row, const int* first, const int* end,
                  const int64_t* starts, const unsigned char* mask, int count, int domains, int64_t* order,
                  int64_t* slot, int* ids, LayoutTile* tiles, Span* spans) {
  // Of each domain: its first sorted row, `domains + 1` of them, and its first slot.
  int* bound = &shared_memory<int>();
  int* start = bound + domains + 1;
  const int lane = static_cast<int>(threadIdx.x);
  for (int e = lane; e <= domains; e += kBlock) {
    bound[e] = search<false>(domain, 0, count, static_cast<short>(e));
  }
  __syncthreads();
  if (lane == 0) {
    int next = 0;
    for (int e = 0; e < domains; ++e) {
      start[e] = starts == nullptr ? next : static_cast<int>(starts[e]);
      next += (bound[e + 1] - bound[e] + kBlock - 1) / kBlock * kBlock;
    }
  }
  __syncthreads();

  const int tile_slot = static_cast<int>(blockIdx.x) * kBlock, here = tile_slot + lane;
  int a = -1, held = 0, tile_row = 0;  // domain, filled slots and first sorted row of the tile
  for (int e = 0; e < domains; ++e) {
    const int place = tile_slot - start[e], filled = bound[e + 1] - bound[e];
    if (place >= 0 && place < filled) {
      a = e;
      held = min(filled - place, kBlock);
      tile_row = bound[e] + place;
    }
  }
  const bool there = lane < held;
  const int64_t t = there ? position[tile_row + lane] : 0;
  const int64_t source = there ? row[t] : -1;
  order[here] = source;
  ids[here] = there ? first[t] : -1;
  if (there) slot[source] = here;
  const int padding = bound[domains] + here;  // behind all domains, and no more of them than slots
  if (padding < count) slot[row[position[padding]]] = -1;
  LayoutTile tile{a, held, -1, -1};
  int64_t sample_end = 0;  // of the last sample
  if (held > 0) {
    const int64_t last = position[tile_row + held - 1];
    tile.first = first[position[tile_row]];
    tile.last = first[last];
    sample_end = end[last];
  }
  if (lane == 0) tiles[blockIdx.x] = tile;

  for (int e = lane; e < domains; e += kBlock) {
    Span span{0, 0};
    if (held > 0 && (mask == nullptr || mask[a * domains + e] != 0)) {
      const int gap = start[e] - bound[e];
      const int from = search<false>(position, bound[e], bound[e + 1], static_cast<int64_t>(tile.first));
      const int to = search<false>(position, from, bound[e + 1], sample_end);
      if (from < to) span = {(from + gap) / kBlock, (to + gap + kBlock - 1) / kBlock};
    }
    spans[static_cast<int64_t>(blockIdx.x) * domains + e] = span;
  }
}

struct CheckShared {
  int wrong[kLayoutThreads / 32];
};

// valid[block]: its entries of the (domains, domains) tables are what _checks.py wants, and its `count` domain ids are
// in [0, limit) where there is a sample.
__global__ void __launch_bounds__(kLayoutThreads)
    check_values_kernel(const float* temperature, const float* offset, const float* weight, const unsigned char* mask,
                        int domains, const int64_t* sample_ids, int64_t sample_stride, const int64_t* domain_ids,
                        int64_t domain_stride, int64_t count, int64_t limit, bool* valid) {
  auto& shared = shared_memory<CheckShared>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kLayoutThreads + thread;
  bool good = true;
  if (at < static_cast<int64_t>(domains) * domains) {
    const float tau = temperature[at];
    good = tau > 0 && tau < INFINITY && fabsf(offset[at]) < INFINITY && fabsf(weight[at]) < INFINITY;
    if (mask != nullptr) good = good && mask[at] == mask[at % domains * domains + at / domains];
  }
  if (at < count && sample_ids[at * sample_stride] >= 0) {
    const int64_t domain = domain_ids[at * domain_stride];
    good = good && domain >= 0 && domain < limit;
  }
  const int wrong = warp_sum(good ? 0 : 1);
  if (thread % 32 == 0) shared.wrong[thread / 32] = wrong;
  __syncthreads();
  if (thread == 0) {
    int total = 0;
    for (int warp = 0; warp < kLayoutThreads / 32; ++warp) total += shared.wrong[warp];
    valid[blockIdx.x] = total == 0;
  }
}

}  // namespace uniclip::cuda

using namespace uniclip::cuda;

int uniclip_cuda_number_samples(const int64_t* by_sample, const int64_t* row, const int64_t* domain_ids, int64_t stride,
                                int count, int domains, short* domain, int* first, int* end, void* stream) {
  return launch(number_samples_kernel, (static_cast<int64_t>(count) + kLayoutThreads - 1) / kLayoutThreads,
                kLayoutThreads, 0, static_cast<cudaStream_t>(stream), by_sample, row, domain_ids, stride, count,
                domains, domain, first, end);
}

int uniclip_cuda_layout(const short* domain, const int64_t* position, const int64_t* row, const int* first,
                        const int* end, const int64_t* starts, const unsigned char* mask, int count, int domains,
                        int64_t slots, int64_t* order, int64_t* slot, int* ids, LayoutTile* tiles, Span* spans,
                        void* stream) {
  const size_t shared_bytes = (2 * static_cast<size_t>(domains) + 1) * sizeof(int);
  return launch(layout_kernel, slots / kBlock, kBlock, shared_bytes, static_cast<cudaStream_t>(stream), domain,
                position, row, first, end, starts, mask, count, domains, order, slot, ids, tiles, spans);
}

int uniclip_cuda_check_values(const float* temperature, const float* offset, const float* weight,
                              const unsigned char* mask, int domains, const int64_t* sample_ids, int64_t sample_stride,
                              const int64_t* domain_ids, int64_t domain_stride, int64_t count, int64_t limit,
                              bool* valid, int64_t blocks, void* stream) {
  return launch(check_values_kernel, blocks, kLayoutThreads, sizeof(CheckShared), static_cast<cudaStream_t>(stream),
                temperature, offset, weight, mask, domains, sample_ids, sample_stride, domain_ids, domain_stride, count,
                limit, valid);
}
