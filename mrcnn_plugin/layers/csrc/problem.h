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

// Pixels of a row or column.
struct Range {
  int64_t begin;
  int64_t end;

  MRCNN_HOST_DEVICE int64_t size() const {
    return end - begin;
  }
};

// Elements from one image (or RoI), channel, row and column to the next.
struct Strides {
  int64_t item;
  int64_t channel;
  int64_t row;
  int64_t column;
};

} // namespace mrcnn_plugin
