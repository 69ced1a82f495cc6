// RoIAlign on every device: the functions behind the schemas of ops.cpp.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "problem.h"

namespace mrcnn_plugin {

// Check the arguments of an operator, which are explained below; every device's kernels start with them. They do not
// look into rois and levels, which may be on another device: check_batch_index and check_level do.
Call check_forward(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a);
Call check_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a);

// boxes[k, 0] must be the index of one of `batch` images.
void check_batch_index(double index, int64_t k, int64_t batch);

// levels[k] must be the index of one of `num_levels` maps.
void check_level(int64_t level, int64_t k, int64_t num_levels);

namespace cpu {

// input: maps [N, C, H, W], one for each level, of one floating dtype and any layout. rois [K, 5], (batch index, x1,
// y1, x2, y2) of float32 or, if the maps are float64, float64. levels: int64 [K], which map a RoI is pooled from;
// without it all are pooled from the first. spatial_scales: one number for each map. Returns [K, C, pooled_height,
// pooled_width] of the dtype of the maps and the memory format of the first.
at::Tensor roi_align(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a);

// For grad [K, C, pooled_height, pooled_width] the gradients [batch, C, heights[l], widths[l]] of roi_align with
// respect to the maps l with needed[l], in their order, of the dtype and memory format of grad. Nothing is computed for
// others. Deterministic: the same bits for any number of threads.
std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a);

} // namespace cpu
} // namespace mrcnn_plugin
