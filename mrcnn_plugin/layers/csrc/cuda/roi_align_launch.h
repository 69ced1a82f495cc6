// What launches the CUDA kernels, for host code: no CUDA header, no ATen.
#pragma once

#include "../problem.h"

#include <cstdint>

struct CUstream_st;

namespace mrcnn_plugin::cuda {

using cuda_stream_t = CUstream_st*; // cudaStream_t

template <typename T>
struct Boxes {
  const T* data; // [count, 5], rows (batch index, x1, y1, x2, y2) with a valid batch index
  int64_t count;
  T spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
  T a;
};

// T is double for double, else float. `memory` is workspace_bytes of scratch, aligned to 16 bytes. Maps and gradients of
// them whose channel stride is 1 are taken for channels_last.
template <typename T>
int64_t workspace_bytes(const Problem& problem, int64_t num_rois);

template <typename scalar_t, typename T>
void launch_forward(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* map, const Strides& map_strides,
    scalar_t* output, const Strides& output_strides, cuda_stream_t stream);

// Adds to `map`, in an order that differs from run to run.
template <typename scalar_t, typename T>
void launch_backward_atomic(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* grad, const Strides& grad_strides,
    T* map, const Strides& map_strides, cuda_stream_t stream);

// Writes all of `map`, the same bits every time.
template <typename scalar_t, typename T>
void launch_backward_gather(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* grad, const Strides& grad_strides,
    scalar_t* map, const Strides& map_strides, cuda_stream_t stream);

} // namespace mrcnn_plugin::cuda
