// Threads of the emulation: fibers, each with a stack, that switch only where they wait. Sanitizers are told of every
// switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <vector>

#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly"
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define EMULATION_UNINSTRUMENTED __attribute__((no_sanitize("thread"), noinline))
#else
#define EMULATION_UNINSTRUMENTED
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers and the stack pointer, then goes on with those of the other stack.
extern "C" void emulation_switch_stack(void** save, void* to);
asm(R"(.text
.weak emulation_switch_stack
.type emulation_switch_stack,@function
emulation_switch_stack:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
.size emulation_switch_stack,.-emulation_switch_stack
)");

namespace emulation {

inline void acquire([[maybe_unused]] void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(object);
#endif
}
inline void release([[maybe_unused]] void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(object);
#endif
}

// Hides the emulation's own bookkeeping from ThreadSanitizer, so that only barriers order memory, as on a GPU.
struct Bookkeeping {
#if defined(__SANITIZE_THREAD__)
  Bookkeeping() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Bookkeeping() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Bookkeeping() {}
#endif
};

constexpr size_t kStackBytes = 256 << 10;

// Memory for the stacks of one block; pages that nobody touches cost nothing.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * kStackBytes) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
  }
  Stacks(const Stacks&) = delete;
  ~Stacks() { munmap(base_, bytes_); }
  char* operator[](size_t i) const { return base_ + i * kStackBytes; }
  void forget_redzones() const {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base_, bytes_);
#endif
  }

 private:
  char* base_;
  size_t bytes_;
};

// Where execution stopped, to go on from there.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
  void* tsan = nullptr;

  // `index` of the thread in its block: ThreadSanitizer's fibers are costly, and used again by later blocks.
  void start_on(char* memory, void (*function)(), [[maybe_unused]] unsigned index) {
    stack = memory;
    stack_bytes = kStackBytes;
    fake_stack = nullptr;
    void** top = reinterpret_cast<void**>(memory + kStackBytes) - 1;
    *--top = reinterpret_cast<void*>(function);
    stack_pointer = top - 6;  // what emulation_switch_stack pops
#if defined(__SANITIZE_THREAD__)
    static std::vector<void*> fibers;
    while (fibers.size() <= index) fibers.push_back(__tsan_create_fiber(0));
    tsan = fibers[index];
#endif
  }
  void is_running() {
#if defined(__SANITIZE_THREAD__)
    tsan = __tsan_get_current_fiber();
#endif
  }
};

// From the running context to another; `last` if the running one will never go on.
EMULATION_UNINSTRUMENTED inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: a switch orders nothing
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  emulation_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing that a function started on a stack does.
inline void entered([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);
#endif
}

}  // namespace emulation
