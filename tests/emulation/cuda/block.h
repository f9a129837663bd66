// A block of emulated threads: barriers, operations of whole warps, shared memory, and the scheduler.
//
// What a GPU would get wrong in silence is an error here: threads at different barriers, a warp operation that not all
// lanes reach, deadlocks, copies that nobody waits for. Shared memory starts as NaN.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"

namespace emulation {

using Where = std::source_location;

inline std::string text(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}
inline bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

struct Copy {  // a cp.async under way
  void* to;
  const void* from;
};

struct Block;

// Where the threads of a block or a warp wait for each other.
struct Meeting {
  unsigned arrived = 0;
  uint64_t phase = 0;
  Where where;
};

struct Warp {
  Meeting meeting;
  const void* in[32];
  void* out[32];
};

struct Thread {
  unsigned index = 0, lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  bool done = false;
  Where where;
  Context context;
  std::vector<std::vector<Copy>> copies{1};  // groups, the last one open
};

constexpr std::align_val_t kSharedAlignment{128};
struct SharedDelete {
  void operator()(unsigned char* memory) const { ::operator delete(memory, kSharedAlignment); }
};

struct Block {
  unsigned index = 0, count = 0;
  unsigned alive = 0;
  uint64_t progress = 0;
  Meeting meeting;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char, SharedDelete> shared;
  size_t shared_bytes = 0;
  std::function<void()> body;
  Context scheduler;
  std::string error;
  char tags[2];  // of the barrier, two in turn: a thread that wakes late must not see what others released after it
};

inline thread_local Thread* running = nullptr;
EMULATION_UNINSTRUMENTED inline Thread& self() { return *running; }
EMULATION_UNINSTRUMENTED inline void set_running(Thread* thread) { running = thread; }

inline void pause() {
  Thread& t = self();
  switch_context(t.context, t.block->scheduler);
}

// Ends the launch with an exception, thrown where it was made.
[[noreturn]] inline void fail(const std::string& message) {
  if (running == nullptr) throw std::runtime_error("emulation: " + message);
  {
    Bookkeeping hidden;
    Block& block = *self().block;
    block.error = "emulation: " + message + " (block " + std::to_string(block.index) + ", thread " +
                  std::to_string(self().index) + ")";
  }
  for (;;) pause();
}

// Waits until `expected` threads are at the same place, where the last one runs f().
template <class F>
void meet(Meeting& meeting, unsigned expected, const char* apart, Where where, const F& f) {
  Thread& t = self();
  t.where = where;
  if (meeting.arrived > 0 && !same(meeting.where, where)) {
    fail(std::string(apart) + ": " + text(meeting.where) + " and " + text(where));
  }
  meeting.where = where;
  const uint64_t phase = meeting.phase;
  if (++meeting.arrived == expected) {
    f();
    meeting.arrived = 0;
    ++meeting.phase;
    ++t.block->progress;
  } else {
    while (meeting.phase == phase) pause();
  }
}

inline void barrier(Where where) {
  Block& block = *self().block;
  void* tag;
  {
    Bookkeeping hidden;
    tag = &block.tags[block.meeting.phase % 2];
  }
  release(tag);
  {
    Bookkeeping hidden;
    meet(block.meeting, block.alive, "threads at different barriers", where, [] {});
  }
  acquire(tag);
}

// All lanes of a warp come with their arguments; the last one runs f(in, out) for all. It orders no memory.
template <class F>
void warp_operation(const void* in, void* out, const F& f, Where where) {
  Bookkeeping hidden;
  const Thread& t = self();
  Warp& warp = *t.warp;
  warp.in[t.lane] = in;
  warp.out[t.lane] = out;
  meet(warp.meeting, 32, "lanes at different operations", where, [&] { f(warp.in, warp.out); });
}

inline void leave(Thread& t, Block& block) {
  Bookkeeping hidden;
  for (const auto& group : t.copies) {
    if (!group.empty()) fail("cp.async that was never waited for");
  }
  const Meeting &of_block = block.meeting, &of_warp = t.warp->meeting;
  if (of_block.arrived > 0) fail("a thread returned while others wait at " + text(of_block.where));
  if (of_warp.arrived > 0) fail("a lane returned while others wait at " + text(of_warp.where));
  --block.alive;
  t.done = true;
  ++block.progress;
}

inline Block& entered_block() {
  Bookkeeping hidden;
  Block& block = *self().block;
  entered(block.scheduler);
  return block;
}

inline void thread_main() {
  Thread& t = self();
  Block& block = entered_block();
  acquire(&block);
  block.body();
  leave(t, block);
  release(&block);
  switch_context(t.context, block.scheduler, true);
}

// 0: threads and blocks forwards, 1: backwards, more: threads shuffled with that seed.
inline int thread_order = 0;

class Grid {
 public:
  Grid(unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> body)
      : blocks_(blocks),
        threads_(threads),
        shared_bytes_(shared_bytes),
        body_(std::move(body)),
        random_(thread_order) {}

  void run() {
    // For ThreadSanitizer blocks are unordered with each other: their memory is kept to the end of the grid.
#if defined(__SANITIZE_THREAD__)
    std::vector<std::unique_ptr<Block>> kept;
    std::vector<std::unique_ptr<Stacks>> kept_stacks;
    for (unsigned i = 0; i < blocks_; ++i) {
      kept.push_back(make_block());
      kept_stacks.push_back(std::make_unique<Stacks>(threads_));
      run_block(*kept.back(), i, *kept_stacks.back());
    }
    for (const auto& block : kept) acquire(block.get());
#else
    const Stacks stacks(threads_);
    const auto block = make_block();
    for (unsigned i = 0; i < blocks_; ++i) run_block(*block, i, stacks);
#endif
  }

 private:
  std::unique_ptr<Block> make_block() const {
    auto block = std::make_unique<Block>();
    block->count = threads_;
    block->threads = std::vector<Thread>(threads_);
    block->warps = std::vector<Warp>(threads_ / 32);
    block->shared_bytes = shared_bytes_;
    block->body = body_;
    return block;
  }

  void run_block(Block& block, unsigned position, const Stacks& stacks) {
    block.index = thread_order == 1 ? blocks_ - 1 - position : position;
    block.alive = threads_;
    block.shared.reset(static_cast<unsigned char*>(::operator new(shared_bytes_, kSharedAlignment)));
    std::memset(block.shared.get(), 0xFF, shared_bytes_);
    block.scheduler.is_running();
    stacks.forget_redzones();
    std::vector<Thread*> order;
    for (unsigned i = 0; i < threads_; ++i) {
      Thread& t = block.threads[i];
      t.index = i;
      t.lane = i % 32;
      t.warp = &block.warps[i / 32];
      t.block = &block;
      t.done = false;
      t.context.start_on(stacks[i], thread_main, i);
      order.push_back(&t);
    }
    if (thread_order == 1) std::reverse(order.begin(), order.end());
    release(&block);
    while (block.alive > 0) {
      if (thread_order > 1) std::shuffle(order.begin(), order.end(), random_);
      const uint64_t before = block.progress;
      for (Thread* t : order) {
        if (t->done) continue;
        set_running(t);
        switch_context(block.scheduler, t->context);
        set_running(nullptr);
        if (!block.error.empty()) throw std::runtime_error(block.error);
      }
      if (block.alive > 0 && block.progress == before) throw std::runtime_error(deadlock(block));
    }
  }

  static std::string deadlock(const Block& block) {
    std::map<std::string, int> waiting;
    for (const Thread& t : block.threads) {
      if (!t.done) ++waiting[text(t.where)];
    }
    std::string message = "emulation: deadlock in block " + std::to_string(block.index);
    for (const auto& [where, count] : waiting) message += "; " + std::to_string(count) + " threads wait at " + where;
    return message;
  }

  unsigned blocks_, threads_;
  size_t shared_bytes_;
  std::function<void()> body_;
  std::mt19937 random_;
};

}  // namespace emulation
