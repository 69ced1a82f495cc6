// The functions behind the operators that ops.cpp registers. docs/roi_align.md explains the words and the mathematics.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "problem.h"

namespace mrcnn_plugin {

// These two check the arguments of an operator, which are explained below. Every device calls them first. They do not
// read the values of rois and levels, which may be on a GPU.
Call check_forward(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a);
Call check_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a);

namespace cpu {

// Pools each RoI from the map of its level.
//   input: the map [N, C, H, W] of each level, all of one floating dtype, each in any layout
//   rois: [K, 5] with rows (batch index, x1, y1, x2, y2) in pixels of the image; float64 for float64 maps, else float32
//   levels: int64 [K], the level of each RoI; without it all RoIs have level 0
//   spatial_scales: pixels of each map per pixel of the image
// Returns [K, C, pooled_height, pooled_width] of the dtype of the maps and the memory format of the first map.
at::Tensor roi_align(
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a);

// grad [K, C, pooled_height, pooled_width] is the gradient of the output of roi_align. Returns the gradient [batch, C,
// heights[l], widths[l]] of each map l with needed[l], in the order of the maps. They have the dtype and memory format
// of grad, and the same bits for any number of threads.
std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a);

} // namespace cpu
} // namespace mrcnn_plugin
