// The operators on CUDA, without the parts that need CUDA's headers. roi_align_cuda.cpp adds these parts, and the
// emulation of the tests replaces them.
#pragma once

#include "../roi_align.h"
#include "roi_align_launch.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

namespace mrcnn_plugin::cuda {

cuda_stream_t current_stream();
void check_launch();

namespace {

Steps steps_of(const at::Tensor& tensor) {
  return {
      tensor.stride(0), static_cast<int>(tensor.stride(1)), static_cast<int>(tensor.stride(2)),
      static_cast<int>(tensor.stride(3))};
}

// Copies the tensor if its strides are too large for Steps. This is rare.
at::Tensor with_short_steps(const at::Tensor& tensor) {
  const int64_t longest = std::max({tensor.stride(1), tensor.stride(2), tensor.stride(3)});
  return longest < (int64_t(1) << 28) ? tensor : tensor.contiguous();
}

bool is_channels_last(const at::Tensor& tensor) {
  return tensor.stride(1) == 1 && tensor.size(1) > 1 && tensor.size(2) * tensor.size(3) > 1;
}

// Returns whether vector_channels channels of a pixel can be read at a time.
template <typename scalar_t>
bool has_vectors(const at::Tensor& tensor) {
  constexpr int64_t kCount = vector_channels<at::opmath_type<scalar_t>>;
  return is_channels_last(tensor) && tensor.size(1) % kCount == 0 && tensor.stride(0) % kCount == 0 &&
      tensor.stride(2) % kCount == 0 && tensor.stride(3) % kCount == 0 &&
      reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (kCount * sizeof(scalar_t)) == 0;
}

// Returns the data of a tensor. `scalar_t` is const for tensors that are only read.
template <typename scalar_t>
scalar_t* data_of(const at::Tensor& tensor) {
  if constexpr (std::is_const_v<scalar_t>) {
    return tensor.const_data_ptr<std::remove_const_t<scalar_t>>();
  } else {
    return tensor.mutable_data_ptr<scalar_t>();
  }
}

template <typename scalar_t>
Bins<scalar_t> bins_of(const at::Tensor& tensor) {
  return {
      data_of<scalar_t>(tensor), steps_of(tensor), static_cast<int>(tensor.size(2)), static_cast<int>(tensor.size(3)),
      has_vectors<std::remove_const_t<scalar_t>>(tensor)};
}

// Describes the maps of a call. Tensors that are not defined become levels without data.
template <typename scalar_t>
Pyramid<scalar_t> pyramid_of(const Call& call, const std::array<at::Tensor, kMaxLevels>& maps) {
  Pyramid<scalar_t> pyramid{};
  pyramid.count = static_cast<int>(call.num_levels);
  pyramid.batch = static_cast<int>(call.batch);
  pyramid.channels = static_cast<int>(call.channels);
  for (int64_t l = 0; l < call.num_levels; ++l) {
    auto& level = pyramid.levels[l];
    level.height = static_cast<int>(call.levels[l].height);
    level.width = static_cast<int>(call.levels[l].width);
    if (maps[l].defined()) {
      level.data = data_of<scalar_t>(maps[l]);
      level.steps = steps_of(maps[l]);
      level.channels_last = is_channels_last(maps[l]);
      level.vectors = has_vectors<std::remove_const_t<scalar_t>>(maps[l]);
    }
  }
  return pyramid;
}

template <typename T>
Boxes<T> boxes_of(const Call& call, const at::Tensor& rois, const std::optional<at::Tensor>& levels) {
  Boxes<T> boxes{};
  boxes.data = rois.const_data_ptr<T>();
  boxes.levels = levels ? levels->const_data_ptr<int64_t>() : nullptr;
  boxes.count = call.num_rois;
  for (int64_t l = 0; l < call.num_levels; ++l) {
    boxes.scales[l] = static_cast<T>(call.levels[l].spatial_scale);
  }
  boxes.interpolation = call.options.interpolation;
  boxes.a = static_cast<T>(call.options.a);
  boxes.sampling_ratio = call.options.sampling_ratio;
  boxes.aligned = call.options.aligned;
  return boxes;
}

// The kernels count channels, pixels, RoIs, blocks and steps in 32 bits, and addresses in 64. They may count a few
// steps or a whole grid beyond the last one. Products of sizes are computed in double, since they may not fit 64 bits.
void check_sizes(const Call& call) {
  constexpr double kMost = 1 << 29;
  const auto blocks = [](int64_t size, int64_t of_block) { return static_cast<double>((size - 1) / of_block + 1); };
  const double channels = static_cast<double>(call.channels), chunks = blocks(call.channels, 16);
  const double rows = static_cast<double>(call.pooled_height), columns = static_cast<double>(call.pooled_width);
  const double num_tiles =
      static_cast<double>(call.num_rois) * blocks(call.pooled_height, 7) * blocks(call.pooled_width, 7);
  double most = std::max({channels, rows * columns, columns * channels, num_tiles, num_tiles * chunks});
  double map_blocks = 0, map_size = 0;
  for (int64_t l = 0; l < call.num_levels; ++l) {
    const double height = static_cast<double>(call.levels[l].height), width = static_cast<double>(call.levels[l].width);
    most = std::max({most, height * width, width * channels});
    map_size = std::max({map_size, height, width});
    map_blocks += blocks(call.levels[l].height, 8) * blocks(call.levels[l].width, 16);
  }
  map_blocks *= static_cast<double>(call.batch);
  most = std::max({most, map_blocks, map_blocks * chunks, static_cast<double>(call.batch) * kMaxLevels});
  TORCH_CHECK_VALUE(
      most < kMost, "roi_align: this call is too large for CUDA, since it has to count to ", most,
      ", and the limit is ", kMost, " (", call.num_rois, " boxes of ", call.pooled_height, " x ", call.pooled_width,
      " bins, ", call.batch, " images, ", call.channels, " channels)");
  // The weights take at most 2^7 bytes for each of these, see make_workspace().
  const double records = num_tiles * map_size;
  TORCH_CHECK_VALUE(
      records < std::pow(2.0, 56), "roi_align: this call is too large for CUDA, since the weights of ", call.num_rois,
      " boxes on a map of ", map_size, " pixels along an axis need more than 2^63 bytes");
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(tensor->contiguous()) : std::nullopt;
}

at::Tensor allocate(const at::Tensor& rois, int64_t bytes) {
  return at::empty({bytes}, rois.options().dtype(at::kByte));
}

} // namespace

at::Tensor roi_align(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a) {
  const Call call = check_forward(
      input, rois, levels, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a);
  check_sizes(call);
  const at::Tensor boxes = rois.contiguous();
  const std::optional<at::Tensor> box_levels = contiguous(levels);
  std::array<at::Tensor, kMaxLevels> maps;
  for (size_t l = 0; l < input.size(); ++l) {
    maps[l] = with_short_steps(input[l]);
  }
  const at::Tensor output = at::empty(
      {call.num_rois, call.channels, pooled_height, pooled_width}, input[0].options(),
      input[0].suggest_memory_format());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, output.scalar_type(), "roi_align", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto pyramid = pyramid_of<const scalar_t>(call, maps);
    const auto bins = bins_of<scalar_t>(output);
    const at::Tensor workspace =
        allocate(boxes, workspace_bytes<const scalar_t, T>(pyramid, bins.height, bins.width, call.num_rois));
    launch_forward<scalar_t, T>(
        pyramid, boxes_of<T>(call, boxes, box_levels), workspace.mutable_data_ptr(), bins, current_stream());
  });
  check_launch();
  return output;
}

std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Call call = check_backward(
      grad, rois, levels, spatial_scales, batch, heights, widths, needed, sampling_ratio, aligned, interpolation, a);
  check_sizes(call);
  const at::Tensor boxes = rois.contiguous();
  const std::optional<at::Tensor> box_levels = contiguous(levels);
  const at::Tensor gradient = with_short_steps(grad);
  std::array<at::Tensor, kMaxLevels> maps;
  std::vector<at::Tensor> results;
  for (int64_t l = 0; l < call.num_levels; ++l) {
    if (call.levels[l].needed) {
      maps[l] = at::empty({batch, call.channels, heights[l], widths[l]}, grad.options(), grad.suggest_memory_format());
      results.push_back(maps[l]);
    }
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto pyramid = pyramid_of<scalar_t>(call, maps);
    const auto bins = bins_of<const scalar_t>(gradient);
    const at::Tensor workspace =
        allocate(boxes, workspace_bytes<scalar_t, T>(pyramid, bins.height, bins.width, call.num_rois));
    launch_backward<scalar_t, T>(
        bins, boxes_of<T>(call, boxes, box_levels), workspace.mutable_data_ptr(), pyramid, current_stream());
  });
  check_launch();
  return results;
}

} // namespace mrcnn_plugin::cuda
