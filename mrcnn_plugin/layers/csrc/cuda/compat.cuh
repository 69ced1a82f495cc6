// All of CUDA that the kernels use. The same source runs on the CPU for tests, where tests/emulation/simt.h defines
// these names (MRCNN_CUDA_EMULATION).
//
//   CUDA_SHARED(type, name, count)    a shared array, aligned to 16 bytes
//   CUDA_LAUNCH((kernel<T>), blocks, threads, stream, arguments...)    one-dimensional
//   CUDA_BOUNDS(threads, blocks)      threads of a block, and how many blocks a multiprocessor has to hold at least
//   CUDA_SINCE_86(value, before)      a value for sm_86 and later, and one for older architectures
//   CUDA_PARAMETER                    marks an argument of a kernel that is indexed where it lies
//   load_global, store_global
//   fused(a, b, c)                    a * b + c, rounded once on a GPU. The file is compiled without contraction, so
//   that
//                                     only what is written so is fused, and positions are those of the CPU to the last
//                                     bit.
//   warp_ballot(condition)            one bit per thread of the warp; all threads of the block together
//   count_bits(bits), lowest_bit(bits)
//   threadIdx.x, blockIdx.x, gridDim.x, __syncthreads()
#pragma once

#if defined(MRCNN_CUDA_EMULATION)

#include "simt.h"

#else

#include <cuda_runtime.h>

#define CUDA_SHARED(type, name, count) __shared__ alignas(16) type name[count]
#define CUDA_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define CUDA_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define CUDA_PARAMETER const __grid_constant__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860
#define CUDA_SINCE_86(value, before) before
#else
#define CUDA_SINCE_86(value, before) value
#endif

template <typename T>
__device__ __forceinline__ T load_global(const T* p) {
  return *p;
}

template <typename T>
__device__ __forceinline__ void store_global(T* p, T value) {
  *p = value;
}

template <typename T>
__device__ __forceinline__ T fused(T a, T b, T c) {
  return fma(a, b, c);
}

__device__ __forceinline__ unsigned int warp_ballot(bool condition) {
  return __ballot_sync(0xffffffffu, condition);
}

__device__ __forceinline__ int count_bits(unsigned int bits) {
  return __popc(bits);
}

__device__ __forceinline__ int lowest_bit(unsigned int bits) {
  return __ffs(bits) - 1;
}

#endif
