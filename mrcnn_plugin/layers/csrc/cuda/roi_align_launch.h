// The functions that launch the CUDA kernels. This header for host code uses neither CUDA nor ATen.
#pragma once

#include "../problem.h"

#include <cstdint>

struct CUstream_st;

namespace mrcnn_plugin::cuda {

using cuda_stream_t = CUstream_st*; // cudaStream_t

// The distances in elements between neighbouring images (or RoIs), channels, rows and columns. Only those between
// images or RoIs may exceed 32 bits.
struct Steps {
  int64_t item;
  int channel;
  int row;
  int column;
};

// The maps of all levels, or their gradients. Levels without `data` are not accessed.
template <typename scalar_t>
struct Pyramid {
  struct Level {
    scalar_t* data;
    Steps steps;
    int height;
    int width;
    bool channels_last; // whether the channels of a pixel lie together
    bool vectors; // whether `vector_channels` of them can be read or written at a time
  };

  Level levels[kMaxLevels];
  int count;
  int batch;
  int channels;
};

// The RoIs and how to sample them. T is double for double features, and float for all others.
template <typename T>
struct Boxes {
  const T* data; // [count, 5], rows (batch index, x1, y1, x2, y2)
  const int64_t* levels; // [count], or null if all RoIs have level 0
  int64_t count;
  T scales[kMaxLevels];
  Interpolation interpolation;
  T a;
  int64_t sampling_ratio;
  bool aligned;
};

// The pooled features [RoIs, channels, height, width], or their gradient.
template <typename scalar_t>
struct Bins {
  scalar_t* data;
  Steps steps;
  int height;
  int width;
  bool vectors;
};

// The number of channels that one instruction reads or writes, with at most 16 bytes.
template <typename T>
constexpr int vector_channels = sizeof(T) == 8 ? 2 : 4;

// Returns the size of the scratch memory that the launches need, aligned to 32 bytes.
template <typename scalar_t, typename T>
int64_t workspace_bytes(const Pyramid<scalar_t>& maps, int bin_rows, int bin_columns, int64_t num_rois);

// Pools the RoIs. A RoI with an invalid batch index or level pools NaN.
template <typename scalar_t, typename T>
void launch_forward(
    const Pyramid<const scalar_t>& maps, const Boxes<T>& boxes, void* workspace, const Bins<scalar_t>& bins,
    cuda_stream_t stream);

// Writes every pixel of the gradients, with the same bits in every run. A RoI with an invalid batch index or level adds
// nothing.
template <typename scalar_t, typename T>
void launch_backward(
    const Bins<const scalar_t>& bins, const Boxes<T>& boxes, void* workspace, const Pyramid<scalar_t>& maps,
    cuda_stream_t stream);

} // namespace mrcnn_plugin::cuda
