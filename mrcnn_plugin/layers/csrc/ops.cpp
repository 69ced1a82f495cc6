// Registration of the operators. Fake (meta) kernels and autograd are registered from Python, in layers/roi_align.py.
#include <Python.h>
#include <torch/library.h>

#include "roi_align.h"

namespace mrcnn_plugin {

Interpolation check_arguments(
    const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width,
    std::string_view interpolation) {
  TORCH_CHECK_VALUE(input.dim() == 4, "roi_align: input must have 4 dimensions (N, C, H, W), got ", input.dim());
  TORCH_CHECK_VALUE(
      input.size(2) > 0 && input.size(3) > 0, "roi_align: input must have a height and width of at least 1, got ",
      input.sizes());
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && rois.size(1) == 5,
      "roi_align: boxes must have shape (K, 5): batch index, x1, y1, x2, y2; got ", rois.sizes());
  const at::ScalarType expected = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(
      rois.scalar_type() == expected, "roi_align: boxes of dtype ", expected, " go with input of dtype ",
      input.scalar_type(), ", got ", rois.scalar_type());
  TORCH_CHECK_VALUE(
      input.device() == rois.device(), "roi_align: input is on ", input.device(), " but boxes are on ", rois.device());
  TORCH_CHECK_VALUE(
      pooled_height > 0 && pooled_width > 0, "roi_align: output_size must be positive, got (", pooled_height, ", ",
      pooled_width, ")");
  if (interpolation == "bilinear") {
    return Interpolation::kBilinear;
  }
  TORCH_CHECK_VALUE(
      interpolation == "bicubic", "roi_align: interpolation must be \"bilinear\" or \"bicubic\", got \"",
      interpolation, "\"");
  return Interpolation::kBicubic;
}

TORCH_LIBRARY(mrcnn_plugin, m) {
  m.def(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned, str interpolation, float a) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt batch, SymInt height, SymInt width, "
      "int sampling_ratio, bool aligned, str interpolation, float a) -> Tensor");
}

TORCH_LIBRARY_IMPL(mrcnn_plugin, CPU, m) {
  m.impl("roi_align", TORCH_FN(cpu::roi_align));
  m.impl("roi_align_backward", TORCH_FN(cpu::roi_align_backward));
}

} // namespace mrcnn_plugin

// Importing mrcnn_plugin._C loads this library, which runs the registrations above; the module itself is empty.
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
