#pragma once

#include "interpolation.h"

#include <cstdint>

namespace mrcnn_plugin {

// One call pools from at most this many maps.
constexpr int64_t kMaxLevels = 8;

// How to sample the bins and to interpolate.
struct Options {
  Interpolation interpolation;
  double a; // parameter of the cubic kernel
  int64_t sampling_ratio; // samples per bin and axis, or 0 for adaptive sampling
  bool aligned;
};

// The map of a level.
struct Level {
  int64_t height;
  int64_t width;
  double spatial_scale; // pixels of the map per pixel of the image
  bool needed; // whether the backward operator has to return its gradient
};

// The sizes and options of a call.
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

// The pixels [begin, end) along an axis.
struct Range {
  int64_t begin;
  int64_t end;

  MRCNN_HOST_DEVICE int64_t size() const {
    return end - begin;
  }
};

// The distances in elements between neighbouring images (or RoIs), channels, rows and columns.
struct Strides {
  int64_t item;
  int64_t channel;
  int64_t row;
  int64_t column;
};

} // namespace mrcnn_plugin
