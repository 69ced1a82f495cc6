// Makes the emulated CUDA kernels available to the tests as operators of torch.ops.mrcnn_plugin_emulation:
//   roi_align, roi_align_backward    have the schemas of the operators of mrcnn_plugin
//   set_block_order(order)           0: forward, 1: reversed, 2: on several host threads
#define MRCNN_CUDA_EMULATION
#include "cuda/roi_align_launch.cu"
#include "cuda/roi_align_operators.h"
#include "roi_align.h"
// The headers of torch take longer to compile than this file, so they are compiled once for both.
#include "checks.cpp"

#include <Python.h>
#include <torch/library.h>

namespace mrcnn_plugin::cuda {

cuda_stream_t current_stream() {
  return nullptr;
}

void check_launch() {}

} // namespace mrcnn_plugin::cuda

namespace {

void set_block_order(int64_t order) {
  simt::settings().order = static_cast<simt::BlockOrder>(order);
}

} // namespace

TORCH_LIBRARY(mrcnn_plugin_emulation, m) {
  m.def(
      "roi_align(Tensor[] input, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, str interpolation, float a) -> Tensor",
      TORCH_FN(mrcnn_plugin::cuda::roi_align));
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt batch, "
      "SymInt[] heights, SymInt[] widths, bool[] needed, int sampling_ratio, bool aligned, str interpolation, "
      "float a) -> Tensor[]",
      TORCH_FN(mrcnn_plugin::cuda::roi_align_backward));
  m.def("set_block_order(int order) -> ()", TORCH_FN(set_block_order));
}
