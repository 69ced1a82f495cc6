// Kernels with one bug each. tests/test_emulation.py checks that the emulation and the sanitizers find them.
//
//   planted_bugs NAME [ORDER]    runs a kernel, with blocks in a given order, and prints its output
#include "simt.h"

#include <cstdio>
#include <map>
#include <string>

namespace {

constexpr int kThreads = 4;

__global__ void correct(int* out) {
  CUDA_SHARED(int, shared, kThreads);
  shared[threadIdx.x] = threadIdx.x + 1;
  __syncthreads();
  store_global(out + threadIdx.x, shared[(threadIdx.x + 1) % kThreads]);
  __syncthreads();
  atomic_add_global(out + kThreads, 1);
}

__global__ void missing_barrier(int* out) {
  CUDA_SHARED(int, shared, kThreads);
  shared[threadIdx.x] = threadIdx.x + 1;
  store_global(out + threadIdx.x, shared[(threadIdx.x + 1) % kThreads]);
}

__global__ void addition_that_is_not_atomic(int* out) {
  store_global(out, load_global(out) + 1);
}

__global__ void beyond_global_memory(int* out) {
  store_global(out + 64 + threadIdx.x, 1);
}

struct alignas(16) Vector {
  int numbers[4];
};

__global__ void misaligned_vector(int* out) {
  store_global(out, load_global(reinterpret_cast<const Vector*>(out + 1)).numbers[0]);
}

__global__ void beyond_a_shared_array(int* out) {
  CUDA_SHARED(int, first, kThreads);
  CUDA_SHARED(int, second, kThreads);
  first[threadIdx.x + 1] = 1;
  second[threadIdx.x] = 1;
  __syncthreads();
  store_global(out, first[0] + second[0]);
}

__global__ void shared_memory_that_nobody_wrote(int* out) {
  CUDA_SHARED(int, shared, kThreads);
  store_global(out, shared[0]);
}

__global__ void barrier_that_some_threads_skip(int* out) {
  if (threadIdx.x != 2) {
    __syncthreads();
  }
  store_global(out, 1);
}

__global__ void barriers_of_two_branches(int* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  store_global(out, 1);
}

__global__ void too_much_shared_memory(int* out) {
  CUDA_SHARED(int, shared, 13 * 1024);
  shared[0] = 1;
  store_global(out, shared[0]);
}

__global__ void number_beyond_an_integer(int* out) {
  const float large = 3e9f + load_global(out);
  store_global(out, static_cast<int>(large));
}

__global__ void last_block_wins(int* out) {
  store_global(out, static_cast<int>(blockIdx.x));
}

} // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (argc > 2) {
    simt::settings().order = static_cast<simt::BlockOrder>(std::atoi(argv[2]));
  }
  const std::map<std::string, void (*)(int*)> kernels{
      {"correct", correct},
      {"missing_barrier", missing_barrier},
      {"addition_that_is_not_atomic", addition_that_is_not_atomic},
      {"beyond_global_memory", beyond_global_memory},
      {"misaligned_vector", misaligned_vector},
      {"beyond_a_shared_array", beyond_a_shared_array},
      {"shared_memory_that_nobody_wrote", shared_memory_that_nobody_wrote},
      {"barrier_that_some_threads_skip", barrier_that_some_threads_skip},
      {"barriers_of_two_branches", barriers_of_two_branches},
      {"too_much_shared_memory", too_much_shared_memory},
      {"number_beyond_an_integer", number_beyond_an_integer},
      {"last_block_wins", last_block_wins},
      {"too_many_threads", correct},
      {"too_many_blocks", correct},
      {"no_blocks", correct},
  };
  const int64_t blocks = name == "too_many_blocks" ? int64_t(1) << 31 : (name == "no_blocks" ? 0 : 3);
  const int64_t threads = name == "too_many_threads" ? 1025 : kThreads;
  int* out = new int[64]();
  try {
    CUDA_LAUNCH(kernels.at(name), blocks, threads, nullptr, out);
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 3;
  }
  const simt::Counters& counters = simt::settings().counters;
  std::printf("%d %d %d %d, %d\n", out[0], out[1], out[2], out[3], out[kThreads]);
  std::printf(
      "%ld loads, %ld stores, %ld atomics\n", (long)counters.loads, (long)counters.stores, (long)counters.atomics);
  delete[] out;
  return 0;
}
