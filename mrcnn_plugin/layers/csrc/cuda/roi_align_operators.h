// The operators on CUDA, apart from what needs CUDA's own headers: with those it is roi_align_cuda.cpp, and the tests'
// emulation on the CPU without them.
#pragma once

#include "../roi_align.h"
#include "roi_align_launch.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <array>

namespace mrcnn_plugin::cuda {

cuda_stream_t current_stream();
void check_launch();

namespace {

Strides strides_of(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// Copies the batch indices to the host, which waits for the device: a wrong one would read any memory.
void check_batch_indices(const at::Tensor& rois, int64_t batch) {
  const at::Tensor indices = rois.select(1, 0).to(at::kCPU, at::kDouble).contiguous();
  const double* index = indices.const_data_ptr<double>();
  for (int64_t k = 0; k < indices.numel(); ++k) {
    check_batch_index(index[k], k, batch);
  }
}

at::Tensor allocate_workspace(const Problem& problem, const at::Tensor& rois) {
  const int64_t bytes = rois.scalar_type() == at::kDouble ? workspace_bytes<double>(problem, rois.size(0))
                                                          : workspace_bytes<float>(problem, rois.size(0));
  return at::empty({bytes}, rois.options().dtype(at::kByte));
}

template <typename T>
Boxes<T> boxes_of(
    const at::Tensor& contiguous_rois, double spatial_scale, int64_t sampling_ratio, bool aligned, double a) {
  return {
      contiguous_rois.const_data_ptr<T>(), contiguous_rois.size(0), static_cast<T>(spatial_scale), sampling_ratio,
      aligned, static_cast<T>(a)};
}

} // namespace

at::Tensor roi_align(
    const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_forward(input, rois, pooled_height, pooled_width, sampling_ratio, interpolation);
  check_batch_indices(rois, problem.batch);
  const at::Tensor boxes = rois.contiguous();
  const at::Tensor workspace = allocate_workspace(problem, boxes);
  const at::Tensor output = at::empty(
      {rois.size(0), problem.channels, pooled_height, pooled_width}, input.options(), input.suggest_memory_format());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "roi_align", [&] {
    launch_forward<scalar_t>(
        problem, boxes_of<at::opmath_type<scalar_t>>(boxes, spatial_scale, sampling_ratio, aligned, a),
        workspace.mutable_data_ptr(), input.const_data_ptr<scalar_t>(), strides_of(input),
        output.mutable_data_ptr<scalar_t>(), strides_of(output), current_stream());
  });
  check_launch();
  return output;
}

at::Tensor roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, double spatial_scale, int64_t batch, int64_t height, int64_t width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_backward(grad, rois, batch, height, width, sampling_ratio, interpolation);
  check_batch_indices(rois, problem.batch);
  const at::Tensor boxes = rois.contiguous();
  const at::Tensor workspace = allocate_workspace(problem, boxes);
  const std::array<int64_t, 4> sizes{batch, problem.channels, height, width};
  const at::MemoryFormat format = grad.suggest_memory_format();
  at::Tensor grad_input;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Boxes<acc_t> call = boxes_of<acc_t>(boxes, spatial_scale, sampling_ratio, aligned, a);
    if (at::globalContext().deterministicAlgorithms()) {
      grad_input = at::empty(sizes, grad.options(), format);
      launch_backward_gather<scalar_t>(
          problem, call, workspace.mutable_data_ptr(), grad.const_data_ptr<scalar_t>(), strides_of(grad),
          grad_input.mutable_data_ptr<scalar_t>(), strides_of(grad_input), current_stream());
    } else {
      // Sums of half-precision gradients are kept in float32 until the last one is in.
      grad_input =
          at::empty(sizes, grad.options().dtype(c10::CppTypeToScalarType<acc_t>::value), format).zero_();
      launch_backward_atomic<scalar_t>(
          problem, call, workspace.mutable_data_ptr(), grad.const_data_ptr<scalar_t>(), strides_of(grad),
          grad_input.mutable_data_ptr<acc_t>(), strides_of(grad_input), current_stream());
      grad_input = grad_input.to(grad.scalar_type());
    }
  });
  check_launch();
  return grad_input;
}

} // namespace mrcnn_plugin::cuda
