#pragma once

#include "interpolation.h"

#include <cstdint>

namespace mrcnn_plugin {

// The most maps that one call pools from.
constexpr int64_t kMaxLevels = 8;

// How to sample the bins and to interpolate.
struct Options {
  Interpolation interpolation;
  double a; // of the cubic kernel
  int64_t sampling_ratio; // samples per bin and axis, 0 for adaptive
  bool aligned;
};

// A map of the pyramid.
struct Level {
  int64_t height;
  int64_t width;
  double spatial_scale; // pixels of the map per unit of the boxes
  bool needed; // backward: whether its gradient is asked for
};

// What a call computes: RoIs, each pooled from one of the levels.
struct Call {
  int64_t num_rois;
  int64_t batch;
  int64_t channels;
  int64_t pooled_height;
  int64_t pooled_width;
  int64_t num_levels; // from 1 to kMaxLevels
  Level levels[kMaxLevels];
  Options options;
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
