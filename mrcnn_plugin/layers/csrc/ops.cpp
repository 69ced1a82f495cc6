// Registration of the operators. Fake (meta) kernels and autograd are registered from Python, in layers/roi_align.py.
#include <Python.h>
#include <torch/library.h>

#include "roi_align.h"

namespace mrcnn_plugin {

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
