// What the operators check before any device computes.
#include "roi_align.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace mrcnn_plugin {

namespace {

constexpr int64_t kMaxSamplingRatio = 1024; // as in layers/roi_align.py, which says why

// `features` is the tensor named `name` whose dtype and device the boxes must fit.
void check(
    const at::Tensor& features, const char* name, const at::Tensor& rois, const Problem& problem,
    int64_t sampling_ratio) {
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && rois.size(1) == 5,
      "roi_align: boxes must have shape (K, 5): batch index, x1, y1, x2, y2; got ", rois.sizes());
  const at::ScalarType expected = features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(
      rois.scalar_type() == expected, "roi_align: boxes of dtype ", expected, " go with ", name, " of dtype ",
      features.scalar_type(), ", got ", rois.scalar_type());
  TORCH_CHECK_VALUE(
      features.device() == rois.device(), "roi_align: ", name, " is on ", features.device(), " but boxes are on ",
      rois.device());
  TORCH_CHECK_VALUE(
      problem.batch >= 0 && problem.height > 0 && problem.width > 0,
      "roi_align: input must have a height and width of at least 1, got (", problem.batch, ", ", problem.channels,
      ", ", problem.height, ", ", problem.width, ")");
  TORCH_CHECK_VALUE(
      problem.pooled_height > 0 && problem.pooled_width > 0, "roi_align: output_size must be positive, got (",
      problem.pooled_height, ", ", problem.pooled_width, ")");
  TORCH_CHECK_VALUE(
      sampling_ratio >= 0 && sampling_ratio <= kMaxSamplingRatio,
      "roi_align: sampling_ratio must be 0 (adaptive) or from 1 to ", kMaxSamplingRatio, ", got ", sampling_ratio);
}

Interpolation parse(std::string_view interpolation) {
  if (interpolation == "bilinear") {
    return Interpolation::kBilinear;
  }
  TORCH_CHECK_VALUE(
      interpolation == "bicubic", "roi_align: interpolation must be \"bilinear\" or \"bicubic\", got \"",
      interpolation, "\"");
  return Interpolation::kBicubic;
}

} // namespace

Problem check_forward(
    const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, std::string_view interpolation) {
  TORCH_CHECK_VALUE(input.dim() == 4, "roi_align: input must have shape (N, C, H, W), got ", input.sizes());
  const Problem problem{
      input.size(0), input.size(1), input.size(2), input.size(3), pooled_height, pooled_width, parse(interpolation)};
  check(input, "input", rois, problem, sampling_ratio);
  return problem;
}

Problem check_backward(
    const at::Tensor& grad, const at::Tensor& rois, int64_t batch, int64_t height, int64_t width,
    int64_t sampling_ratio, std::string_view interpolation) {
  TORCH_CHECK_VALUE(grad.dim() == 4, "roi_align: grad must have shape (K, C, P_h, P_w), got ", grad.sizes());
  const Problem problem{
      batch, grad.size(1), height, width, grad.size(2), grad.size(3), parse(interpolation)};
  check(grad, "grad", rois, problem, sampling_ratio);
  TORCH_CHECK_VALUE(
      grad.size(0) == rois.size(0), "roi_align: grad has ", grad.size(0), " RoIs but boxes have ", rois.size(0));
  return problem;
}

void check_batch_index(double index, int64_t k, int64_t batch) {
  TORCH_CHECK_INDEX(
      index >= 0 && index < static_cast<double>(batch) && index == std::floor(index), "roi_align: boxes[", k,
      ", 0] is the batch index ", index, ", but input has batch size ", batch, ", so it must be a whole number in [0, ",
      batch, ")");
}

} // namespace mrcnn_plugin
