// All of CUDA that the kernels use. The same source runs on the CPU for tests, where tests/emulation/simt.h defines these
// names (MRCNN_CUDA_EMULATION).
//
//   CUDA_SHARED(type, name, count)    a shared array
//   load_global, store_global, atomic_add_global
//   CUDA_LAUNCH((kernel<T>), blocks, threads, stream, arguments...)    one-dimensional
//   threadIdx.x, blockIdx.x, gridDim.x, __syncthreads()
#pragma once

#if defined(MRCNN_CUDA_EMULATION)

#include "simt.h"

#else

#include <cuda_runtime.h>

#define CUDA_SHARED(type, name, count) __shared__ type name[count]
#define CUDA_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)

template <typename T>
__device__ __forceinline__ T load_global(const T* p) {
  return *p;
}

template <typename T>
__device__ __forceinline__ void store_global(T* p, T value) {
  *p = value;
}

template <typename T>
__device__ __forceinline__ void atomic_add_global(T* p, T value) {
  atomicAdd(p, value);
}

#endif
