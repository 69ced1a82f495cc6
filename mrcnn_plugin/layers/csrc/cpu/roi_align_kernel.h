// What a RoIAlign kernel for the CPU computes and on which data. The kernels themselves are in roi_align_kernel_impl.h,
// compiled once per instruction set; nothing here depends on one, nor on ATen.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#include "../problem.h"

namespace mrcnn_plugin::cpu {

// Half-precision features are weighted and summed in float.
template <typename scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename scalar_t>
using accumulator_t = typename Accumulator<scalar_t>::type;

// Rows of a sparse matrix: row i has the entries [starts[i], starts[i + 1]).
template <typename T>
struct SparseRows {
  const int64_t* starts;
  const int64_t* columns;
  const T* weights;
};

// Rows of bins are pooled in groups of at most this many: one register each. A group is [group_begin(i), group_begin(i
// + 1)).
constexpr int64_t kGroupRows = 8;

inline constexpr int64_t num_groups(int64_t pooled_height) {
  return (pooled_height + kGroupRows - 1) / kGroupRows;
}

inline constexpr int64_t group_begin(int64_t group, int64_t pooled_height) {
  return group * pooled_height / num_groups(pooled_height);
}

struct Roi {
  int64_t row; // in bins
  int64_t index; // in the matrices, which hold the RoIs of one level
  int64_t image;
  Range rows; // the pixels that any of its bins reads
  Range columns;
  int64_t transposed_column; // backward: the row of `x` for columns.begin
};

// Backward: the map rows that a group of a RoI's bin rows reads.
struct RowGroup {
  Range rows;
  int64_t transposed_row; // the row of `y` for rows.begin
};

// The RoIs of one level.
template <typename scalar_t>
struct Task {
  using acc_t = accumulator_t<scalar_t>;

  const scalar_t* source; // forward: the map; backward: the gradient of the bins
  scalar_t* target; // forward: the bins; backward: the gradient of the map
  Strides map; // [images, channels, height, width]
  Strides bins; // [rows, channels, pooled_height, pooled_width], row stride = pooled_width * column stride
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t pooled_height;
  int64_t pooled_width;

  // Sorted by image, then by rows.begin; those of image n are [image_starts[n], image_starts[n + 1]).
  const Roi* rois;
  const int64_t* image_starts;
  int64_t longest_row; // of any RoI, in pixels
  int64_t largest_window; // of any RoI, in pixels

  // Columns count from the RoI's rows.begin or columns.begin.
  //   forward: row index * pooled_height + p of y (x likewise) is row p of Wy.
  //   backward: rows of Wy^T restricted to a group of bins, whose columns count from the group's first bin; rows of
  //   Wx^T.
  SparseRows<acc_t> y;
  SparseRows<acc_t> x;
  const RowGroup* groups; // backward: [RoIs * num_groups]

  int64_t channels_per_unit;
  // Forward: whether the RoIs of an image read one copy of its map, or each makes a copy of its own part.
  bool share_map;
};

// The kernels for one instruction set. Channels are worked on in parts of channels_per_unit.
//   forward: units are (part, image) if share_map, else (part, RoI) in the order that suits the layout.
//   backward: units are (part, image), each of which is the only one to write its part of the target.
// A kernel runs units [begin, end) with `scratch` elements of memory that are aligned to 64 bytes.
template <typename scalar_t>
struct Kernels {
  using acc_t = accumulator_t<scalar_t>;

  int64_t lanes;
  int64_t (*forward_scratch)(const Task<scalar_t>&);
  void (*forward)(const Task<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch);
  int64_t (*backward_scratch)(const Task<scalar_t>&);
  void (*backward)(const Task<scalar_t>&, int64_t begin, int64_t end, acc_t* scratch);
};

namespace isa_default {
template <typename scalar_t>
Kernels<scalar_t> kernels();
}

#if defined(__x86_64__)
#define MRCNN_HAS_AVX2 1
namespace isa_avx2 { // with FMA and F16C
template <typename scalar_t>
Kernels<scalar_t> kernels();
}
#endif

} // namespace mrcnn_plugin::cpu
