// Runs CUDA kernels on the CPU for tests. It defines the names of compat.cuh in plain C++.
//
// The threads of a block are fibers of one host thread, and each runs until it reaches a barrier. It is an error if not
// all threads of a block reach the same barrier. It is also an error if a grid, a block or the shared memory is larger
// than a GPU allows. Shared memory starts as 0xAB bytes. AddressSanitizer finds accesses to the memory between its
// arrays.
//
// The emulation cannot show effects of weak memory order, timing, registers and streams. It does not find host and
// device pointers that are mixed up.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#define __global__
#define __device__

namespace simt {

// The order in which blocks run. A GPU may use any order.
enum class BlockOrder { kForward, kReversed, kHostThreads };

struct Counters {
  int64_t loads = 0;
  int64_t stores = 0;
  int64_t atomics = 0;
};

struct Settings {
  BlockOrder order = BlockOrder::kForward;
  Counters counters; // sums over all launches
  std::mutex mutex; // protects counters
};

inline Settings& settings() {
  static Settings instance;
  return instance;
}

struct Index {
  unsigned int x;
};

constexpr size_t kSharedBytes = 48 * 1024;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kRedZone = 64;

// Hides the emulation's own bookkeeping from ThreadSanitizer, which should see only the kernels.
struct Unwatched {
  Unwatched() {
    begin();
  }
  ~Unwatched() {
    end();
  }
  Unwatched(const Unwatched&) = delete;

  static void begin() {
#if defined(__SANITIZE_THREAD__)
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  static void end() {
#if defined(__SANITIZE_THREAD__)
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
};

// These tell ThreadSanitizer that everything before a release happens before everything after the matching acquire.
inline void release(void* where) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(where);
#endif
  (void)where;
}

inline void acquire(void* where) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(where);
#endif
  (void)where;
}

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool has_ended = false;
  int barrier = 0; // line of the barrier where it waits
  int barriers = 0; // number of barriers that it has passed
  size_t shared_used = 0; // bytes of its arrays and of the memory between them
  size_t shared_bytes = 0; // bytes of its arrays
  void* asan_stack = nullptr;
  void* tsan_fiber = nullptr;
};

// Runs blocks on this host thread. Its fibers run one after the other.
class Block {
 public:
  Block(unsigned int threads, const std::function<void()>& kernel) : kernel_(kernel), fibers_(threads) {
    shared_.reset(new (std::align_val_t(64)) char[kSharedBytes + 64 * kRedZone]);
    for (Fiber& fiber : fibers_) {
      fiber.stack.reset(new char[kStackBytes]);
#if defined(__SANITIZE_THREAD__)
      fiber.tsan_fiber = __tsan_create_fiber(0);
#endif
    }
#if defined(__SANITIZE_THREAD__)
    tsan_fiber_ = __tsan_get_current_fiber();
#endif
  }

  ~Block() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared_.get(), kSharedBytes + 64 * kRedZone);
#endif
#if defined(__SANITIZE_THREAD__)
    for (Fiber& fiber : fibers_) {
      __tsan_destroy_fiber(fiber.tsan_fiber);
    }
#endif
  }

  void run(Index block) {
    const Unwatched unwatched;
    block_index = block;
    char* shared = shared_.get();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared, kSharedBytes + 64 * kRedZone);
#endif
    std::memset(shared, 0xAB, kSharedBytes + 64 * kRedZone);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(shared, kSharedBytes + 64 * kRedZone);
#endif
    for (Fiber& fiber : fibers_) {
      fiber.has_ended = false;
      fiber.barrier = fiber.barriers = 0;
      fiber.shared_used = fiber.shared_bytes = 0;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    release(&start_);
    size_t running = fibers_.size();
    while (running > 0) {
      size_t ended = 0;
      for (size_t i = 0; i < fibers_.size(); ++i) {
        if (fibers_[i].has_ended) {
          continue;
        }
        resume(i);
        if (error_) {
          std::rethrow_exception(error_);
        }
        ended += fibers_[i].has_ended;
      }
      running -= ended;
      check_barrier();
    }
    acquire(&end_);
  }

  void barrier(int line) {
    const Unwatched unwatched;
    wait(line, phases_);
  }

  // Returns a number whose bit i is the condition of the i-th thread of the caller's warp. Only the memory accesses of
  // a warp are ordered, but all threads of the block have to call it.
  unsigned int ballot(bool condition, int line) {
    const Unwatched unwatched;
    const size_t warp = current_ / kWarp;
    votes_[current_] = condition;
    wait(line, warp_phases_[warp]);
    unsigned int bits = 0;
    for (size_t i = warp * kWarp; i < std::min((warp + 1) * kWarp, fibers_.size()); ++i) {
      bits |= static_cast<unsigned int>(votes_[i]) << (i % kWarp);
    }
    wait(line, warp_phases_[warp]);
    return bits;
  }

  // Returns the next shared array of the calling thread. All threads request the same arrays in the same order.
  void* shared(size_t bytes) {
    const Unwatched unwatched;
    Fiber& fiber = fibers_[current_];
    char* array = shared_.get() + fiber.shared_used;
    fiber.shared_used += (bytes + 15) / 16 * 16 + kRedZone;
    fiber.shared_bytes += bytes;
    if (fiber.shared_bytes > kSharedBytes) {
      throw std::runtime_error("more than 48 KiB of shared memory");
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(array, bytes);
#endif
    return array;
  }

  unsigned int thread() const {
    const Unwatched unwatched;
    return static_cast<unsigned int>(current_);
  }

  static Block*& current() {
    thread_local Block* block = nullptr;
    return block;
  }

  void count(int64_t Counters::* what) {
    const Unwatched unwatched;
    ++(counters.*what);
  }

  Index block_index{0};
  Index grid{0};
  Counters counters;

 private:
  static constexpr size_t kWarp = 32;

  // Two phases alternate, so that a thread that still waits does not see what others do after this barrier.
  void wait(int line, char (&phases)[2]) {
    Fiber& fiber = fibers_[current_];
    fiber.barrier = line;
    char* phase = &phases[fiber.barriers++ % 2];
    release(phase);
    leave(fiber, false);
    acquire(phase);
  }

  static void enter() {
    Unwatched::begin();
    Block* block = current();
    Fiber& fiber = block->fibers_[block->current_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block->host_stack_, &block->host_stack_size_);
#endif
    acquire(&block->start_);
    Unwatched::end();
    try {
      block->kernel_();
    } catch (...) {
      block->error_ = std::current_exception();
    }
    Unwatched::begin();
    fiber.has_ended = true;
    fiber.barrier = 0;
    release(&block->end_);
    Unwatched::end(); // ThreadSanitizer reports a fiber that ends while it is ignored
    block->leave(fiber, true);
  }

  void resume(size_t i) {
    current_ = i;
    Fiber& fiber = fibers_[i];
#if defined(__SANITIZE_ADDRESS__)
    void* host_stack = nullptr;
    __sanitizer_start_switch_fiber(&host_stack, fiber.stack.get(), kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(fiber.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&host_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(host_stack, nullptr, nullptr);
#endif
  }

#if defined(__SANITIZE_THREAD__)
  __attribute__((no_sanitize_thread))
#endif
  void leave(Fiber& fiber, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.asan_stack, host_stack_, host_stack_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&fiber.context, &host_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.asan_stack, &host_stack_, &host_stack_size_);
#endif
    (void)for_good;
  }

  // Throws unless all threads wait at the same barrier, or all have ended.
  void check_barrier() const {
    for (const Fiber& fiber : fibers_) {
      if (fiber.barrier != fibers_[0].barrier) {
        std::ostringstream message;
        message << "a barrier that not all threads of block " << block_index.x << " reach: thread 0 "
                << where(fibers_[0]) << ", thread " << &fiber - fibers_.data() << ' ' << where(fiber);
        throw std::runtime_error(message.str());
      }
    }
  }

  static std::string where(const Fiber& fiber) {
    return fiber.has_ended ? "has ended" : "waits at line " + std::to_string(fiber.barrier);
  }

  struct Deleter {
    void operator()(char* p) const {
      ::operator delete[](p, std::align_val_t(64));
    }
  };

  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<char[], Deleter> shared_;
  size_t current_ = 0;
  ucontext_t host_;
  const void* host_stack_ = nullptr;
  size_t host_stack_size_ = 0;
  void* tsan_fiber_ = nullptr;
  char start_ = 0, phases_[2] = {}, warp_phases_[32][2] = {}, end_ = 0; // addresses for release and acquire
  bool votes_[1024] = {};
  std::exception_ptr error_;
};

inline void launch(int64_t blocks, int64_t threads, const std::function<void()>& kernel) {
  if (threads < 1 || threads > 1024 || blocks < 1 || blocks >= int64_t(1) << 31) {
    throw std::runtime_error(
        "cannot launch " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads");
  }
  const BlockOrder order = settings().order;
  std::atomic<int64_t> next(0);
  std::exception_ptr error;
  const auto work = [&] {
    const Unwatched unwatched;
    Block block(static_cast<unsigned int>(threads), kernel);
    block.grid = {static_cast<unsigned int>(blocks)};
    Block::current() = &block;
    try {
      for (int64_t i = next++; i < blocks; i = next++) {
        block.run({static_cast<unsigned int>(order == BlockOrder::kReversed ? blocks - 1 - i : i)});
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(settings().mutex);
      error = std::current_exception();
    }
    Block::current() = nullptr;
    const std::lock_guard<std::mutex> lock(settings().mutex);
    settings().counters.loads += block.counters.loads;
    settings().counters.stores += block.counters.stores;
    settings().counters.atomics += block.counters.atomics;
  };
  if (order == BlockOrder::kHostThreads) {
    std::vector<std::thread> host_threads;
    for (int i = 0; i < 3; ++i) {
      host_threads.emplace_back(work);
    }
    for (std::thread& thread : host_threads) {
      thread.join();
    }
  } else {
    work();
  }
  if (error) {
    std::rethrow_exception(error);
  }
}

} // namespace simt

#define threadIdx (simt::Index{simt::Block::current()->thread()})
#define blockIdx (simt::Block::current()->block_index)
#define gridDim (simt::Block::current()->grid)
#define __syncthreads() simt::Block::current()->barrier(__LINE__)

#define CUDA_SHARED(type, name, count) \
  type* name = static_cast<type*>(simt::Block::current()->shared(sizeof(type) * (count)))
#define CUDA_BOUNDS(threads, blocks)
#define CUDA_SINCE(arch, value, before) (value)
#define CUDA_PARAMETER const
#define warp_ballot(condition) simt::Block::current()->ballot(condition, __LINE__)
// The emulation has no streams, so it ignores the argument.
#define CUDA_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), simt::launch(blocks, threads, [&] { kernel(__VA_ARGS__); }))

template <typename T>
inline T fused(T a, T b, T c) {
  return a * b + c;
}

inline int count_bits(unsigned int bits) {
  return __builtin_popcount(bits);
}

inline int lowest_bit(unsigned int bits) {
  return __builtin_ctz(bits);
}

// A GPU ends the program at such an access, which the CPU allows.
template <typename T>
inline void check_alignment(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) {
    throw std::runtime_error("an access to global memory that is not aligned to " + std::to_string(alignof(T)));
  }
}

template <typename T>
inline T load_global(const T* p) {
  check_alignment(p);
  simt::Block::current()->count(&simt::Counters::loads);
  return *p;
}

template <typename T>
inline void store_global(T* p, T value) {
  check_alignment(p);
  simt::Block::current()->count(&simt::Counters::stores);
  *p = value;
}

template <typename T>
inline void atomic_add_global(T* p, T value) {
  simt::Block::current()->count(&simt::Counters::atomics);
  T expected, sum;
  __atomic_load(p, &expected, __ATOMIC_RELAXED);
  do {
    sum = expected + value;
  } while (!__atomic_compare_exchange(p, &expected, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}
