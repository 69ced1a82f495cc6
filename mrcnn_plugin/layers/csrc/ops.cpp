// Registration of the operators. Fake (meta) kernels and autograd are registered from Python, in
// layers/roi_align_registration.py.
#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>

#include "roi_align.h"

namespace mrcnn_plugin {

TORCH_LIBRARY(mrcnn_plugin, m) {
  // roi_align.h explains the arguments. A single map is the case of one level.
  m.def(
      "roi_align(Tensor[] input, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, str interpolation, float a) -> Tensor");
  // This operator returns only the gradients of the maps l with needed[l].
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt batch, "
      "SymInt[] heights, SymInt[] widths, bool[] needed, int sampling_ratio, bool aligned, str interpolation, "
      "float a) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(mrcnn_plugin, CPU, m) {
  m.impl("roi_align", TORCH_FN(cpu::roi_align));
  m.impl("roi_align_backward", TORCH_FN(cpu::roi_align_backward));
}

} // namespace mrcnn_plugin

// Importing mrcnn_plugin._C loads this library, and loading it runs the registrations above. The module itself is
// empty. python -m mrcnn_plugin.info looks for its docstring in the file, since an extension for another torch often
// cannot be imported.
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", "mrcnn_plugin for torch " TORCH_VERSION, -1, nullptr};
  return PyModule_Create(&module);
}
