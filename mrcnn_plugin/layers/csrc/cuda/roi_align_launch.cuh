// Launches of the kernels on raw pointers. Included by roi_align_launch.cu for CUDA, and by the tests' emulation.
#pragma once

#include "roi_align_kernels.cuh"
#include "roi_align_launch.h"

namespace mrcnn_plugin::cuda {

// Kernels loop over what does not fit the grid. Tests make that happen.
#if !defined(MRCNN_MOST_BLOCKS)
#define MRCNN_MOST_BLOCKS ((int64_t(1) << 31) - 1)
#endif

namespace {

unsigned int blocks_for(int64_t units) {
  return static_cast<unsigned int>(smaller(units, MRCNN_MOST_BLOCKS));
}

template <typename T>
Workspace<T> workspace_in(const Problem& problem, int64_t num_rois, void* memory) {
  Workspace<T> workspace;
  workspace.rois = static_cast<Roi*>(memory);
  workspace.bins = reinterpret_cast<BinWeights*>(workspace.rois + num_rois);
  workspace.weights = reinterpret_cast<T*>(
      workspace.bins + num_rois * (problem.pooled_height + problem.pooled_width));
  return workspace;
}

template <typename T>
Workspace<T> compute_weights(const Problem& problem, const Boxes<T>& boxes, void* memory, cuda_stream_t stream) {
  const Workspace<T> workspace = workspace_in<T>(problem, boxes.count, memory);
  if (boxes.count > 0) {
    CUDA_LAUNCH((weights_kernel<T>), blocks_for(boxes.count), kWeightThreads, stream, problem, boxes, workspace);
  }
  return workspace;
}

} // namespace

template <typename T>
int64_t workspace_bytes(const Problem& problem, int64_t num_rois) {
  const int64_t bins = problem.pooled_height + problem.pooled_width;
  return num_rois *
      static_cast<int64_t>(sizeof(Roi) + bins * sizeof(BinWeights) + weights_per_roi(problem) * sizeof(T));
}

template <typename scalar_t, typename T>
void launch_forward(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* map, const Strides& map_strides,
    scalar_t* output, const Strides& output_strides, cuda_stream_t stream) {
  if (boxes.count == 0 || problem.channels == 0) {
    return;
  }
  const Workspace<T> workspace = compute_weights(problem, boxes, memory, stream);
  if (map_strides.channel == 1) {
    const int64_t units = boxes.count * divide_up(problem.channels, Tile<true>::channels);
    CUDA_LAUNCH(
        (forward_kernel<scalar_t, T, true>), blocks_for(units), kThreads, stream, problem, boxes.count, workspace, map,
        map_strides, output, output_strides);
  } else {
    const int64_t units = boxes.count * divide_up(problem.channels, Tile<false>::channels);
    CUDA_LAUNCH(
        (forward_kernel<scalar_t, T, false>), blocks_for(units), kThreads, stream, problem, boxes.count, workspace, map,
        map_strides, output, output_strides);
  }
}

template <typename scalar_t, typename T>
void launch_backward_atomic(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* grad, const Strides& grad_strides,
    T* map, const Strides& map_strides, cuda_stream_t stream) {
  if (boxes.count == 0 || problem.channels == 0) {
    return;
  }
  const Workspace<T> workspace = compute_weights(problem, boxes, memory, stream);
  if (map_strides.channel == 1) {
    const int64_t units = boxes.count * divide_up(problem.channels, Tile<true>::channels);
    CUDA_LAUNCH(
        (backward_atomic_kernel<scalar_t, T, true>), blocks_for(units), kThreads, stream, problem, boxes.count,
        workspace, grad, grad_strides, map, map_strides);
  } else {
    const int64_t units = boxes.count * divide_up(problem.channels, Tile<false>::channels);
    CUDA_LAUNCH(
        (backward_atomic_kernel<scalar_t, T, false>), blocks_for(units), kThreads, stream, problem, boxes.count,
        workspace, grad, grad_strides, map, map_strides);
  }
}

template <typename scalar_t, typename T>
void launch_backward_gather(
    const Problem& problem, const Boxes<T>& boxes, void* memory, const scalar_t* grad, const Strides& grad_strides,
    scalar_t* map, const Strides& map_strides, cuda_stream_t stream) {
  const Workspace<T> workspace = compute_weights(problem, boxes, memory, stream);
  const auto units = [&](int columns, int channels) {
    return problem.batch * divide_up(problem.height, kGatherRows) * divide_up(problem.width, columns) *
        divide_up(problem.channels, channels);
  };
  const int64_t units_last = units(Tile<true>::columns, Tile<true>::channels);
  if (units_last == 0) {
    return;
  }
  if (map_strides.channel == 1) {
    CUDA_LAUNCH(
        (backward_gather_kernel<scalar_t, T, true>), blocks_for(units_last), kThreads, stream, problem, boxes.count,
        workspace, grad, grad_strides, map, map_strides);
  } else {
    CUDA_LAUNCH(
        (backward_gather_kernel<scalar_t, T, false>), blocks_for(units(Tile<false>::columns, Tile<false>::channels)),
        kThreads, stream, problem, boxes.count, workspace, grad, grad_strides, map, map_strides);
  }
}

#define MRCNN_INSTANTIATE(scalar_t, T)                                                                              \
  template void launch_forward<scalar_t, T>(                                                                        \
      const Problem&, const Boxes<T>&, void*, const scalar_t*, const Strides&, scalar_t*, const Strides&,           \
      cuda_stream_t);                                                                                               \
  template void launch_backward_atomic<scalar_t, T>(                                                                \
      const Problem&, const Boxes<T>&, void*, const scalar_t*, const Strides&, T*, const Strides&, cuda_stream_t);  \
  template void launch_backward_gather<scalar_t, T>(                                                                \
      const Problem&, const Boxes<T>&, void*, const scalar_t*, const Strides&, scalar_t*, const Strides&,           \
      cuda_stream_t);
MRCNN_INSTANTIATE(float, float)
MRCNN_INSTANTIATE(double, double)
MRCNN_INSTANTIATE(c10::Half, float)
MRCNN_INSTANTIATE(c10::BFloat16, float)
#undef MRCNN_INSTANTIATE
template int64_t workspace_bytes<float>(const Problem&, int64_t);
template int64_t workspace_bytes<double>(const Problem&, int64_t);

} // namespace mrcnn_plugin::cuda
