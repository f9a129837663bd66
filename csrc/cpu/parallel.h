// Work shared out among PyTorch's threads, and scratch memory aligned for vectors.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "gemm.h"

namespace uniclip {

// f(task) for every task, each thread taking the next one that is left. Which thread runs a task must not matter for
// its result: then the outcome is the same bits for any number of threads. `scratch` makes each thread's own buffers.
template <class MakeScratch, class F>
void parallel_tasks(int64_t tasks, const MakeScratch& make_scratch, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      auto scratch = make_scratch();
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) f(task, scratch);
    }
    gemm_release();
  });
}

// How many of `pieces` one task should take, at most `most`: several tasks for each thread even out their ends.
inline int64_t pieces_of_task(int64_t pieces, int64_t most) {
  return std::clamp<int64_t>(pieces / (4 * torch::stable::get_num_threads()), 1, most);
}

// f(begin, end) over ranges of rows that are too cheap to be handed out one by one.
template <class F>
void parallel_rows(int64_t rows, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, rows, grain, f);
}

constexpr std::align_val_t kAlignment{64};

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, kAlignment); }
};
template <class T>
using Buffer = std::unique_ptr<T[], FreeAligned>;

template <class T>
Buffer<T> make_buffer(int64_t n) {
  return Buffer<T>(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), kAlignment)));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace uniclip
