#pragma once

#include "interpolation.h"

#include <cstdint>

namespace mrcnn_plugin {

// The map and the bins of a call, and how to interpolate.
struct Problem {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t pooled_height;
  int64_t pooled_width;
  Interpolation interpolation;
};

} // namespace mrcnn_plugin
