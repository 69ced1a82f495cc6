// Counts what the memory accesses of emulated warps cost on a GPU. The compiler calls the functions of
// ThreadSanitizer's runtime for each access, and this file takes the place of that runtime.
//
// The accesses of a warp between two barriers form requests: the n-th access at one place in the machine code by each
// thread. A request to global memory takes a sector for each 32 bytes that it touches. A request to shared memory takes
// a wavefront for each different word in the busiest of its 32 banks. (A GPU may take more for vectors.)
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace {

constexpr int kWarp = 32;

struct Array {
  uintptr_t begin, end;
  std::string name;
  bool is_shared;
};

struct Access {
  uint32_t place; // in the machine code
  uint32_t turn; // how often this thread was there before, since the last barrier
  uint32_t array;
  uint8_t lane;
  char kind; // r, w, or a for an atomic addition
  uint8_t bytes;
  uintptr_t address;
};

struct Fiber {
  int index; // of the thread in its block, or -1 for the host
  int ignored = 0;
  std::vector<uint32_t> turns; // by place
};

struct Cost {
  int64_t requests = 0;
  int64_t units = 0; // sectors or wavefronts
  int64_t least = 0; // as many as the words would take if they were neighbours
};

Fiber host{-1};
Fiber* now = &host;
int fibers = 0, last = -1;
std::vector<Array> arrays;
std::unordered_map<uintptr_t, uint32_t> places;
std::array<std::vector<Access>, 32> warps;
std::vector<Fiber*> waiting; // fibers with turns to clear
std::string kernel;
std::map<std::tuple<std::string, bool, std::string, char, int>, Cost> costs;

// Returns the different units of `bytes` bytes that the accesses touch, in order.
std::vector<uintptr_t> different(const Access* begin, const Access* end, uintptr_t bytes) {
  std::vector<uintptr_t> units;
  for (const Access* access = begin; access != end; ++access) {
    for (uintptr_t unit = access->address / bytes; unit <= (access->address + access->bytes - 1) / bytes; ++unit) {
      units.push_back(unit);
    }
  }
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  return units;
}

int64_t sectors(const Access* begin, const Access* end) {
  return static_cast<int64_t>(different(begin, end, 32).size());
}

int64_t wavefronts(const Access* begin, const Access* end) {
  std::array<int64_t, 32> words{};
  for (const uintptr_t word : different(begin, end, 4)) {
    ++words[word % 32];
  }
  return *std::max_element(words.begin(), words.end());
}

// Counts the requests since the last barrier.
void flush() {
  for (std::vector<Access>& accesses : warps) {
    const auto key = [](const Access& a) { return std::tie(a.place, a.turn, a.array); };
    std::sort(accesses.begin(), accesses.end(), [&](const Access& a, const Access& b) { return key(a) < key(b); });
    for (size_t i = 0, j; i < accesses.size(); i = j) {
      for (j = i; j < accesses.size() && key(accesses[j]) == key(accesses[i]);) {
        ++j;
      }
      const Access *begin = &accesses[i], *end = begin + (j - i);
      const Access& first = accesses[i];
      const Array& array = arrays[first.array];
      Cost& cost = costs[{kernel, array.is_shared, array.name, first.kind, first.bytes}];
      ++cost.requests;
      cost.units += (array.is_shared ? wavefronts : sectors)(begin, end);
      const int64_t words = static_cast<int64_t>(different(begin, end, 4).size());
      cost.least += array.is_shared ? (words + 31) / 32 : (words + 7) / 8;
    }
    accesses.clear();
  }
  for (Fiber* fiber : waiting) {
    std::fill(fiber->turns.begin(), fiber->turns.end(), 0);
  }
  waiting.clear();
  last = -1;
}

void record(uintptr_t address, int64_t bytes, char kind, void* place) {
  if (now->index < 0 || now->ignored > 0) {
    return;
  }
  for (size_t i = arrays.size(); i-- > 0;) {
    if (address >= arrays[i].begin && address < arrays[i].end) {
      const uint32_t id =
          places.emplace(reinterpret_cast<uintptr_t>(place), static_cast<uint32_t>(places.size())).first->second;
      if (id >= now->turns.size()) {
        now->turns.resize(id + 1);
      }
      if (waiting.empty() || waiting.back() != now) {
        waiting.push_back(now);
      }
      warps[now->index / kWarp].push_back(
          {id, now->turns[id]++, static_cast<uint32_t>(i), static_cast<uint8_t>(now->index % kWarp), kind,
           static_cast<uint8_t>(bytes), address});
      return;
    }
  }
}

} // namespace

extern "C" {

void costs_begin_kernel(const char* name) {
  flush();
  kernel = name;
  fibers = 0;
  arrays.erase(
      std::remove_if(arrays.begin(), arrays.end(), [](const Array& array) { return array.is_shared; }), arrays.end());
}

void costs_name(const void* begin, int64_t bytes, const char* name, bool is_shared) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(begin);
  for (const Array& array : arrays) {
    if (array.begin == from) {
      return;
    }
  }
  arrays.push_back({from, from + static_cast<uintptr_t>(bytes), name, is_shared});
}

void costs_add(const void* address, int64_t bytes) {
  record(reinterpret_cast<uintptr_t>(address), bytes, 'a', __builtin_return_address(0));
}

void costs_print() {
  flush();
  for (const auto& [key, cost] : costs) {
    const auto& [name, is_shared, array, kind, bytes] = key;
    std::printf(
        "%s\t%s\t%s\t%c\t%d\t%ld\t%ld\t%ld\n", name.c_str(), is_shared ? "shared" : "global", array.c_str(), kind,
        bytes, (long)cost.requests, (long)cost.units, (long)cost.least);
  }
}

#define ACCESS(name, bytes, kind)                                                           \
  void __tsan_##name##bytes(void* address) {                                                \
    record(reinterpret_cast<uintptr_t>(address), bytes, kind, __builtin_return_address(0)); \
  }
#define ACCESSES(bytes)              \
  ACCESS(read, bytes, 'r')           \
  ACCESS(write, bytes, 'w')          \
  ACCESS(unaligned_read, bytes, 'r') \
  ACCESS(unaligned_write, bytes, 'w')
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* address, int64_t bytes) {
  record(reinterpret_cast<uintptr_t>(address), bytes, 'r', __builtin_return_address(0));
}
void __tsan_write_range(void* address, int64_t bytes) {
  record(reinterpret_cast<uintptr_t>(address), bytes, 'w', __builtin_return_address(0));
}

void AnnotateIgnoreReadsBegin(const char*, int) {
  ++now->ignored;
}
void AnnotateIgnoreReadsEnd(const char*, int) {
  --now->ignored;
}
void AnnotateIgnoreWritesBegin(const char*, int) {}
void AnnotateIgnoreWritesEnd(const char*, int) {}
void* __tsan_get_current_fiber() {
  return now;
}
void* __tsan_create_fiber(unsigned) {
  return new Fiber{fibers++};
}
void __tsan_destroy_fiber(void* fiber) {
  flush();
  delete static_cast<Fiber*>(fiber);
}
void __tsan_switch_to_fiber(void* fiber, unsigned) {
  now = static_cast<Fiber*>(fiber);
  if (now->index >= 0) {
    if (now->index <= last) { // The first thread goes on after a barrier, or begins the next block.
      flush();
    }
    last = now->index;
  }
}
int64_t __tsan_atomic64_fetch_add(volatile int64_t* number, int64_t value, int) {
  return __atomic_fetch_add(number, value, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_acquire(void*) {}
void __tsan_release(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

} // extern "C"
