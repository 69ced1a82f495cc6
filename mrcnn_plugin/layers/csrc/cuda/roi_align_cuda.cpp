// The operators on CUDA.
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

at::Tensor roi_align_on_device(
    const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const c10::DeviceGuard guard(input.device()); // of any type: the operator refuses what is not all on one device
  return roi_align(
      input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a);
}

at::Tensor roi_align_backward_on_device(
    const at::Tensor& grad, const at::Tensor& rois, double spatial_scale, int64_t batch, int64_t height, int64_t width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const c10::DeviceGuard guard(grad.device());
  return roi_align_backward(
      grad, rois, spatial_scale, batch, height, width, sampling_ratio, aligned, interpolation, a);
}

} // namespace

TORCH_LIBRARY_IMPL(mrcnn_plugin, CUDA, m) {
  m.impl("roi_align", TORCH_FN(roi_align_on_device));
  m.impl("roi_align_backward", TORCH_FN(roi_align_backward_on_device));
}

} // namespace mrcnn_plugin::cuda
