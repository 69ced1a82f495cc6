// The checks that the operators of every device make first.
#include "roi_align.h"

#include <c10/util/Exception.h>

namespace mrcnn_plugin {

namespace {

constexpr int64_t kMaxSamplingRatio = 1024; // as in layers/roi_align.py, which says why

Interpolation parse(std::string_view interpolation) {
  if (interpolation == "bilinear") {
    return Interpolation::kBilinear;
  }
  TORCH_CHECK_VALUE(
      interpolation == "bicubic", "roi_align: interpolation must be \"bilinear\" or \"bicubic\", got \"", interpolation,
      "\"");
  return Interpolation::kBicubic;
}

// Checks the number of maps, and that the argument `name` has as many values.
void check_num_levels(int64_t count, const char* name, int64_t num_levels) {
  TORCH_CHECK_VALUE(
      num_levels >= 1 && num_levels <= kMaxLevels, "roi_align: there must be from 1 to ", kMaxLevels, " maps, got ",
      num_levels);
  TORCH_CHECK_VALUE(
      count == num_levels, "roi_align: ", name, " must hold one value for each of the ", num_levels, " maps, got ",
      count);
}

// Checks everything that both operators have in common. `features` is the argument `name`, and boxes must have a
// matching dtype and the same device.
void check(
    const at::Tensor& features, const char* name, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const Call& call) {
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && rois.size(1) == 5,
      "roi_align: boxes must have shape (K, 5): batch index, x1, y1, x2, y2; got ", rois.sizes());
  const at::ScalarType expected = features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(
      rois.scalar_type() == expected, "roi_align: boxes must have dtype ", expected, " if ", name, " has dtype ",
      features.scalar_type(), ", got ", rois.scalar_type());
  TORCH_CHECK_VALUE(
      features.device() == rois.device(), "roi_align: ", name, " is on ", features.device(), " but boxes are on ",
      rois.device());
  if (levels) {
    TORCH_CHECK_TYPE(
        levels->scalar_type() == at::kLong, "roi_align: levels must be int64, got ", levels->scalar_type());
    TORCH_CHECK_VALUE(
        levels->dim() == 1 && levels->size(0) == rois.size(0),
        "roi_align: levels must have shape (K,) for the K = ", rois.size(0), " boxes, got ", levels->sizes());
    TORCH_CHECK_VALUE(
        levels->device() == rois.device(), "roi_align: boxes are on ", rois.device(), " but levels are on ",
        levels->device());
  }
  for (int64_t l = 0; l < call.num_levels; ++l) {
    const Level& level = call.levels[l];
    TORCH_CHECK_VALUE(
        call.batch >= 0 && level.height > 0 && level.width > 0, "roi_align: input[", l,
        "] must have a height and width of at least 1, got (", call.batch, ", ", call.channels, ", ", level.height,
        ", ", level.width, ")");
  }
  TORCH_CHECK_VALUE(
      call.pooled_height > 0 && call.pooled_width > 0, "roi_align: output_size must be positive, got (",
      call.pooled_height, ", ", call.pooled_width, ")");
  const int64_t ratio = call.options.sampling_ratio;
  TORCH_CHECK_VALUE(
      ratio >= 0 && ratio <= kMaxSamplingRatio, "roi_align: sampling_ratio must be 0 (adaptive) or from 1 to ",
      kMaxSamplingRatio, ", got ", ratio);
}

} // namespace

Call check_forward(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a) {
  const int64_t num_levels = static_cast<int64_t>(input.size());
  check_num_levels(static_cast<int64_t>(spatial_scales.size()), "spatial_scales", num_levels);
  Call call{};
  call.options = {parse(interpolation), a, sampling_ratio, aligned};
  call.pooled_height = pooled_height;
  call.pooled_width = pooled_width;
  call.num_levels = num_levels;
  for (int64_t l = 0; l < num_levels; ++l) {
    const at::Tensor& map = input[l];
    TORCH_CHECK_VALUE(map.dim() == 4, "roi_align: input[", l, "] must have shape (N, C, H, W), got ", map.sizes());
    const at::Tensor& first = input[0];
    TORCH_CHECK_TYPE(
        map.scalar_type() == first.scalar_type(), "roi_align: all maps must have the dtype of input[0], ",
        first.scalar_type(), ", but input[", l, "] has ", map.scalar_type());
    TORCH_CHECK_VALUE(
        map.size(0) == first.size(0) && map.size(1) == first.size(1),
        "roi_align: all maps must have the batch size and channels of input[0], ", first.sizes(), ", but input[", l,
        "] has shape ", map.sizes());
    TORCH_CHECK_VALUE(
        map.device() == first.device(), "roi_align: all maps must be on the device of input[0], ", first.device(),
        ", but input[", l, "] is on ", map.device());
    call.levels[l] = {map.size(2), map.size(3), spatial_scales[l], true};
  }
  call.batch = input[0].size(0);
  call.channels = input[0].size(1);
  check(input[0], "input", rois, levels, call);
  call.num_rois = rois.size(0);
  return call;
}

Call check_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  TORCH_CHECK_VALUE(grad.dim() == 4, "roi_align: grad must have shape (K, C, P_h, P_w), got ", grad.sizes());
  const int64_t num_levels = static_cast<int64_t>(spatial_scales.size());
  check_num_levels(static_cast<int64_t>(heights.size()), "heights", num_levels);
  check_num_levels(static_cast<int64_t>(widths.size()), "widths", num_levels);
  check_num_levels(static_cast<int64_t>(needed.size()), "needed", num_levels);
  Call call{};
  call.options = {parse(interpolation), a, sampling_ratio, aligned};
  call.batch = batch;
  call.channels = grad.size(1);
  call.pooled_height = grad.size(2);
  call.pooled_width = grad.size(3);
  call.num_levels = num_levels;
  for (int64_t l = 0; l < num_levels; ++l) {
    call.levels[l] = {heights[l], widths[l], spatial_scales[l], needed.get(l)};
  }
  check(grad, "grad", rois, levels, call);
  TORCH_CHECK_VALUE(
      grad.size(0) == rois.size(0), "roi_align: grad has ", grad.size(0), " RoIs but boxes have ", rois.size(0));
  call.num_rois = rois.size(0);
  return call;
}

} // namespace mrcnn_plugin
