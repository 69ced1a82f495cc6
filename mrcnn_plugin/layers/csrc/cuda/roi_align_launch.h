// What launches the CUDA kernels, for host code: no CUDA header, no ATen.
#pragma once

#include "../problem.h"

#include <cstdint>

struct CUstream_st;

namespace mrcnn_plugin::cuda {

using cuda_stream_t = CUstream_st*; // cudaStream_t

// Elements from one image (or RoI), channel, row and column to the next. Only images and RoIs are further apart than 32
// bits can say.
struct Steps {
  int64_t item;
  int channel;
  int row;
  int column;
};

// The maps of a pyramid, or their gradients. Those without `data` are not touched.
template <typename scalar_t>
struct Pyramid {
  struct Level {
    scalar_t* data;
    Steps steps;
    int height;
    int width;
    bool channels_last; // channels lie together
    bool vectors; // and may be read or written `vector_channels` at a time
  };

  Level levels[kMaxLevels];
  int count;
  int batch;
  int channels;
};

// T is double for double, else float.
template <typename T>
struct Boxes {
  const T* data; // [count, 5], rows (batch index, x1, y1, x2, y2)
  const int64_t* levels; // [count], or null: all on the first level
  int64_t count;
  T scales[kMaxLevels];
  Interpolation interpolation;
  T a;
  int64_t sampling_ratio;
  bool aligned;
};

// The pooled features [count, channels, height, width] or their gradient.
template <typename scalar_t>
struct Bins {
  scalar_t* data;
  Steps steps;
  int height;
  int width;
  bool vectors;
};

// Channels that a thread reads or writes as one number of at most 16 bytes.
template <typename T>
constexpr int vector_channels = sizeof(T) == 8 ? 2 : 4;

// Scratch memory, aligned to 32 bytes, that the launches need.
template <typename scalar_t, typename T>
int64_t workspace_bytes(const Pyramid<scalar_t>& maps, int bin_rows, int bin_columns, int64_t num_rois);

// A RoI whose batch index or level does not exist pools NaN.
template <typename scalar_t, typename T>
void launch_forward(
    const Pyramid<const scalar_t>& maps, const Boxes<T>& boxes, void* workspace, const Bins<scalar_t>& bins,
    cuda_stream_t stream);

// Writes all of each map, the same bits every time. A RoI whose batch index or level does not exist adds nothing.
template <typename scalar_t, typename T>
void launch_backward(
    const Bins<const scalar_t>& bins, const Boxes<T>& boxes, void* workspace, const Pyramid<scalar_t>& maps,
    cuda_stream_t stream);

} // namespace mrcnn_plugin::cuda
