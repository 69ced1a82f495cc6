// Everything from CUDA that the kernels use. For tests, their source also runs on the CPU (MRCNN_CUDA_EMULATION). There
// tests/emulation/simt.h defines these names.
//
//   CUDA_SHARED(type, name, count)    a shared array, aligned to 16 bytes
//   CUDA_LAUNCH((kernel<T>), blocks, threads, stream, arguments...)    launches a one-dimensional grid
//   CUDA_BOUNDS(threads, blocks)      most threads of a block, and fewest blocks that a multiprocessor has to hold
//   CUDA_SINCE(arch, value, before)   a value for an architecture such as 860 and later, and one for older ones
//   CUDA_PARAMETER                    marks an argument of a kernel that is read in place, without a copy
//   load_global(p), store_global(p, value)    access global memory
//   fused(a, b, c)                    a * b + c, rounded once on a GPU. The compiler fuses nothing else, so that
//                                     positions have the same bits as on the CPU.
//   warp_ballot(condition)            one bit per thread of the warp; all threads of the block have to call it
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
#if defined(__CUDA_ARCH__)
#define CUDA_SINCE(arch, value, before) (__CUDA_ARCH__ >= (arch) ? (value) : (before))
#else
#define CUDA_SINCE(arch, value, before) (value)
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
