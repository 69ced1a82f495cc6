// RoIAlign on every device: the functions behind the schemas of ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "problem.h"

namespace mrcnn_plugin {

// Check the arguments of an operator; every device's kernels start with them.
Problem check_forward(
    const at::Tensor& input,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    std::string_view interpolation);
Problem check_backward(
    const at::Tensor& grad,
    const at::Tensor& rois,
    int64_t batch,
    int64_t height,
    int64_t width,
    int64_t sampling_ratio,
    std::string_view interpolation);

// boxes[k, 0] must be the index of one of `batch` images.
void check_batch_index(double index, int64_t k, int64_t batch);

namespace cpu {

// input [N, C, H, W] of a floating dtype, rois [K, 5] (batch index, x1, y1, x2, y2) of float32 or, if input is float64,
// float64. Returns [K, C, pooled_height, pooled_width] of input's dtype.
at::Tensor roi_align(
    const at::Tensor& input,
    const at::Tensor& rois,
    double spatial_scale,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    std::string_view interpolation,
    double a);

// The gradient [N, C, H, W] of roi_align with respect to its input, for grad [K, C, pooled_height, pooled_width].
// Deterministic: the same bits for any number of threads.
at::Tensor roi_align_backward(
    const at::Tensor& grad,
    const at::Tensor& rois,
    double spatial_scale,
    int64_t batch,
    int64_t height,
    int64_t width,
    int64_t sampling_ratio,
    bool aligned,
    std::string_view interpolation,
    double a);

} // namespace cpu
} // namespace mrcnn_plugin
