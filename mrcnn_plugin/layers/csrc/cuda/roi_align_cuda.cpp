// Registers the operators for CUDA.
#include "roi_align_operators.h"

#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace mrcnn_plugin::cuda {

cuda_stream_t current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

void check_launch() {
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

namespace {

// This is a guard for devices of any type, because only the operator itself checks that all tensors are on one device.
at::Tensor roi_align_on_device(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a) {
  const c10::DeviceGuard guard(rois.device());
  return roi_align(
      input, rois, levels, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a);
}

std::vector<at::Tensor> roi_align_backward_on_device(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const c10::DeviceGuard guard(grad.device());
  return roi_align_backward(
      grad, rois, levels, spatial_scales, batch, heights, widths, needed, sampling_ratio, aligned, interpolation, a);
}

} // namespace

TORCH_LIBRARY_IMPL(mrcnn_plugin, CUDA, m) {
  m.impl("roi_align", TORCH_FN(roi_align_on_device));
  m.impl("roi_align_backward", TORCH_FN(roi_align_backward_on_device));
}

} // namespace mrcnn_plugin::cuda
