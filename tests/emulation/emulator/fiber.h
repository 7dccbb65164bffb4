// Fibers: separate stacks that hand control to and fro. They know nothing of CUDA.
//
// A fiber runs `entry` for ever: it does one piece of work, switches back to its owner, and does
// the next piece when resumed. A parked fiber is thus ready for the next thread at no cost, which
// is what makes kernels without barriers run at millions of threads per second.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

// SIAM_EMULATOR_UCONTEXT chooses the portable switch where the fast one exists, to test it.
#if defined(__x86_64__) && !defined(SIAM_EMULATOR_UCONTEXT)
#define SIAM_EMULATOR_FAST_SWITCH 1
#else
#define SIAM_EMULATOR_FAST_SWITCH 0
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace siamcuda::emulator {

#if SIAM_EMULATOR_FAST_SWITCH
// ucontext saves the signal mask with a system call at each switch; this is seven times faster.
// noipa: the compiler must not conclude from the body that registers and memory are untouched.
__attribute__((naked, noipa)) inline void switch_stack(void** /*saved*/, void* /*next*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}
#endif

class Fiber {
 public:
  using Entry = void (*)();

  // `color` spreads the stack tops over the cache sets; page-aligned stacks would share one set.
  Fiber(Entry entry, std::size_t color) : entry_(entry), color_((color % 32) * 128) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = kStackBytes + page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    // An overflow must crash here rather than spoil a neighbouring stack.
    mprotect(base_, page, PROT_NONE);
    stack_ = static_cast<char*>(base_) + page;
    reset();
  }
  ~Fiber() { munmap(base_, mapped_); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets whatever the fiber was doing. Kernel threads own nothing, so nothing is leaked.
  void reset() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);
    fake_stack_ = nullptr;
#endif
#if SIAM_EMULATOR_FAST_SWITCH
    auto* top = reinterpret_cast<void**>(stack_ + kStackBytes - color_);
    *--top = nullptr;  // keeps the ABI's alignment at entry, and ends a debugger's backtrace
    *--top = reinterpret_cast<void*>(entry_);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
    stack_pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes - color_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry_, 0);
#endif
  }

  // Called by the owner: runs the fiber until it calls leave().
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* owner_fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&owner_fake_stack, stack_, kStackBytes);
#endif
#if SIAM_EMULATOR_FAST_SWITCH
    switch_stack(&owner_stack_pointer_, stack_pointer_);
#else
    swapcontext(&owner_context_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(owner_fake_stack, nullptr, nullptr);
#endif
  }

  // Called on the fiber: returns to the owner, and from here at the next enter().
  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, owner_stack_, owner_stack_bytes_);
#endif
#if SIAM_EMULATOR_FAST_SWITCH
    switch_stack(&stack_pointer_, owner_stack_pointer_);
#else
    swapcontext(&context_, &owner_context_);
#endif
    arrived();
  }

  // Called on the fiber first of all; AddressSanitizer learns here which stack it runs on.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &owner_stack_, &owner_stack_bytes_);
#endif
  }

 private:
  static constexpr std::size_t kStackBytes = 256 * 1024;

  Entry entry_;
  std::size_t color_;
  std::size_t mapped_ = 0;
  void* base_ = nullptr;
  char* stack_ = nullptr;
#if SIAM_EMULATOR_FAST_SWITCH
  void* stack_pointer_ = nullptr;
  void* owner_stack_pointer_ = nullptr;
#else
  ucontext_t context_;
  ucontext_t owner_context_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  const void* owner_stack_ = nullptr;
  std::size_t owner_stack_bytes_ = 0;
#endif
};

// Idle fibers, most recently used first: its stack is still in the cache.
class FiberPool {
 public:
  Fiber* take(Fiber::Entry entry) {
    if (idle_.empty()) {
      all_.push_back(std::make_unique<Fiber>(entry, all_.size()));
      return all_.back().get();
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }
  void give_back(Fiber* fiber) { idle_.push_back(fiber); }

 private:
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> idle_;
};

}  // namespace siamcuda::emulator
