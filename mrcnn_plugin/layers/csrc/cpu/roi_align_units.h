// The units of work of both passes. Part of roi_align_kernel_impl.h.
#pragma once

namespace mrcnn_plugin::cpu::MRCNN_ISA {
namespace {

// The channels [begin, begin + count) of an image.
struct Channels {
  int64_t begin;
  int64_t count;
};

template <typename scalar_t>
inline int64_t num_parts(const Task<scalar_t>& task) {
  return (task.channels + task.channels_per_unit - 1) / task.channels_per_unit;
}

template <typename scalar_t>
inline Channels part(const Task<scalar_t>& task, int64_t i) {
  const int64_t begin = i * task.channels_per_unit;
  return {begin, smaller(task.channels_per_unit, task.channels - begin)};
}

// map_run returns the pixels of a map row from `column` on. bins_run returns the bins of a RoI from bin row p on.
template <typename S, typename scalar_t>
inline Run<S> map_run(
    S* map, const Task<scalar_t>& task, int64_t image, Channels channels, int64_t row, int64_t column) {
  const Strides& strides = task.map;
  return {
      map + image * strides.item + channels.begin * strides.channel + row * strides.row + column * strides.column,
      strides.column, strides.channel};
}

template <typename S, typename scalar_t>
inline Run<S> bins_run(S* bins, const Task<scalar_t>& task, const Roi& roi, Channels channels, int64_t p) {
  const Strides& strides = task.bins;
  return {
      bins + roi.row * strides.item + channels.begin * strides.channel + p * strides.row, strides.column,
      strides.channel};
}

// The scratch memory of a thread: a strip, and for each block of a unit the bins of a row group and packed pixels.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
struct Scratch {
  int64_t bins_stride; // from block to block
  int64_t pixels_stride;
  T* strip;
  T* bins;
  T* pixels;

  Scratch(const Task<scalar_t>& task, int64_t num_pixels, T* memory)
      : bins_stride(smaller(kGroupRows, task.pooled_height) * task.pooled_width * kLanes<T>),
        pixels_stride(num_pixels * kLanes<T>),
        strip(memory),
        bins(strip + task.longest_row * kGroupRows * kLanes<T>),
        pixels(bins + blocks(task) * bins_stride) {}

  static int64_t blocks(const Task<scalar_t>& task) {
    return (task.channels_per_unit + kLanes<T> - 1) / kLanes<T>;
  }
  int64_t size(const Task<scalar_t>& task) const {
    return pixels + blocks(task) * pixels_stride - strip;
  }
};

// Pools a RoI from packed pixels. `map` starts at the first pixel that the RoI reads.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void pool(
    const Task<scalar_t>& task, const Roi& roi, Channels channels, Pixels<const T> map,
    const Scratch<scalar_t>& scratch) {
  for (int64_t group = 0; group < num_groups(task.pooled_height); ++group) {
    const int64_t p = group_begin(group, task.pooled_height);
    const int64_t rows = group_begin(group + 1, task.pooled_height) - p;
    const Run<scalar_t> target = bins_run(task.target, task, roi, channels, p);
    prefetch(target, rows * task.pooled_width, channels.count);
    for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
      y_pass(
          task.y, roi.index * task.pooled_height + p, rows,
          Pixels<const T>{map.data + b * scratch.pixels_stride, map.row_stride}, roi.columns.size(), scratch.strip);
      x_pass(
          task.x, roi.index * task.pooled_width, rows, task.pooled_width, scratch.strip,
          scratch.bins + b * scratch.bins_stride);
    }
    unpack(scratch.bins, scratch.bins_stride, rows * task.pooled_width, channels.count, target);
  }
}

// Pools all RoIs of an image from one packed map. A row is packed when the first RoI needs it.
template <typename scalar_t>
void forward_shared(const Task<scalar_t>& task, int64_t image, Channels channels, const Scratch<scalar_t>& scratch) {
  using T = accumulator_t<scalar_t>;
  const Pixels<T> map{scratch.pixels, task.width * kLanes<T>};
  int64_t packed_end = 0;
  for (int64_t k = task.image_starts[image]; k < task.image_starts[image + 1]; ++k) {
    const Roi& roi = task.rois[k];
    if (packed_end < roi.rows.begin) {
      packed_end = roi.rows.begin;
    }
    for (; packed_end < roi.rows.end; ++packed_end) {
      pack(
          map_run(task.source, task, image, channels, packed_end, 0), task.width, channels.count,
          map.address(packed_end, 0), scratch.pixels_stride);
    }
    pool(task, roi, channels, Pixels<const T>{map.address(roi.rows.begin, roi.columns.begin), map.row_stride}, scratch);
  }
}

// Packs the pixels that one RoI reads, and pools the RoI from them.
template <typename scalar_t>
void forward_single(const Task<scalar_t>& task, const Roi& roi, Channels channels, const Scratch<scalar_t>& scratch) {
  using T = accumulator_t<scalar_t>;
  const int64_t columns = roi.columns.size();
  const Pixels<T> map{scratch.pixels, columns * kLanes<T>};
  for (int64_t row = roi.rows.begin; row < roi.rows.end; ++row) {
    pack(
        map_run(task.source, task, roi.image, channels, row, roi.columns.begin), columns, channels.count,
        map.address(row - roi.rows.begin, 0), scratch.pixels_stride);
  }
  pool(task, roi, channels, Pixels<const T>{map.data, map.row_stride}, scratch);
}

template <typename scalar_t>
Scratch<scalar_t> forward_scratch(const Task<scalar_t>& task, accumulator_t<scalar_t>* memory) {
  return Scratch<scalar_t>(task, task.share_map ? task.height * task.width : task.largest_window, memory);
}

template <typename scalar_t>
int64_t forward_scratch_size(const Task<scalar_t>& task) {
  return forward_scratch(task, nullptr).size(task);
}

template <typename scalar_t>
void forward(const Task<scalar_t>& task, int64_t begin, int64_t end, accumulator_t<scalar_t>* memory) {
  const Scratch<scalar_t> scratch = forward_scratch(task, memory);
  const int64_t num_rois = task.image_starts[task.images];
  for (int64_t unit = begin; unit < end; ++unit) {
    if (task.share_map) {
      forward_shared(task, unit % task.images, part(task, unit / task.images), scratch);
    } else if (task.map.channel == 1) {
      forward_single(task, task.rois[unit / num_parts(task)], part(task, unit % num_parts(task)), scratch);
    } else {
      forward_single(task, task.rois[unit % num_rois], part(task, unit / num_rois), scratch);
    }
  }
}

// Adds the gradient of a RoI to the rows `band` of the packed map.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void scatter(
    const Task<scalar_t>& task, const Roi& roi, Channels channels, const Range& band, Pixels<T> map,
    const Scratch<scalar_t>& scratch) {
  const int64_t columns = roi.columns.size();
  for (int64_t group = 0; group < num_groups(task.pooled_height); ++group) {
    const int64_t p = group_begin(group, task.pooled_height);
    const int64_t rows = group_begin(group + 1, task.pooled_height) - p;
    const RowGroup& reach = task.groups[roi.index * num_groups(task.pooled_height) + group];
    const Range map_rows{larger(reach.rows.begin, band.begin), smaller(reach.rows.end, band.end)};
    if (map_rows.begin >= map_rows.end) {
      continue;
    }
    pack(
        bins_run(task.source, task, roi, channels, p), rows * task.pooled_width, channels.count, scratch.bins,
        scratch.bins_stride);
    for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
      x_pass_transposed(
          task.x, roi.transposed_column, columns, scratch.bins + b * scratch.bins_stride, rows, task.pooled_width,
          scratch.strip);
      y_pass_transposed(
          task.y, reach.transposed_row + map_rows.begin - reach.rows.begin, map_rows.size(), scratch.strip, columns,
          Pixels<T>{map.address(map_rows.begin, roi.columns.begin) + b * scratch.pixels_stride, map.row_stride});
    }
  }
}

template <typename scalar_t>
Scratch<scalar_t> backward_scratch(const Task<scalar_t>& task, accumulator_t<scalar_t>* memory) {
  return Scratch<scalar_t>(task, task.height * task.width, memory);
}

template <typename scalar_t>
int64_t backward_scratch_size(const Task<scalar_t>& task) {
  return backward_scratch(task, nullptr).size(task);
}

template <typename scalar_t>
void backward(const Task<scalar_t>& task, int64_t begin, int64_t end, accumulator_t<scalar_t>* memory) {
  using T = accumulator_t<scalar_t>;
  const Scratch<scalar_t> scratch = backward_scratch(task, memory);
  const Pixels<T> map{scratch.pixels, task.width * kLanes<T>};
  for (int64_t unit = begin; unit < end; ++unit) {
    const Channels channels = part(task, unit / (task.images * task.bands));
    const int64_t image = unit / task.bands % task.images;
    const int64_t number = unit % task.bands;
    const Range band{number * task.height / task.bands, (number + 1) * task.height / task.bands};
    // RoIs come in the order of their first row. The rows above it are therefore final and can be unpacked. A row is
    // cleared when the first RoI reaches it.
    int64_t final_end = band.begin;
    int64_t cleared_end = band.begin;
    const auto advance = [&](int64_t row_begin, int64_t row_end) {
      for (; cleared_end < row_end; ++cleared_end) {
        for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
          __builtin_memset(map.address(cleared_end, 0) + b * scratch.pixels_stride, 0, map.row_stride * sizeof(T));
        }
      }
      for (; final_end < row_begin; ++final_end) {
        unpack_for_good(
            static_cast<const T*>(map.address(final_end, 0)), scratch.pixels_stride, task.width, channels.count,
            map_run(task.target, task, image, channels, final_end, 0));
      }
    };
    for (int64_t k = task.image_starts[image]; k < task.image_starts[image + 1]; ++k) {
      const Roi& roi = task.rois[k];
      if (roi.rows.begin < smaller(roi.rows.end, band.end) && roi.rows.end > band.begin) {
        advance(roi.rows.begin, smaller(roi.rows.end, band.end));
        if (task.bins.channel != 1 && k + 1 < task.image_starts[image + 1]) {
          // The RoIs are far apart in memory, and the hardware cannot predict pieces as short as 8 channels.
          prefetch(
              bins_run(task.source, task, task.rois[k + 1], channels, 0), task.pooled_height * task.pooled_width,
              channels.count);
        }
        scatter(task, roi, channels, band, map, scratch);
      }
    }
    advance(band.end, band.end);
  }
  end_of_streams();
}

} // namespace
} // namespace mrcnn_plugin::cpu::MRCNN_ISA
