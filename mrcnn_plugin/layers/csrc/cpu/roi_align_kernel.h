// The interface of the CPU kernels. Their code is in roi_align_kernel_impl.h, which is compiled once per instruction
// set. This header depends neither on an instruction set nor on ATen.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#include "../problem.h"

namespace mrcnn_plugin::cpu {

// The type of weights and sums: float for half-precision features.
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

// Rows of a sparse matrix. Row i has the entries [starts[i], starts[i + 1]).
template <typename T>
struct SparseRows {
  const int64_t* starts;
  const int64_t* columns;
  const T* weights;
};

// Bin rows are pooled in row groups of at most this many, with one register for each bin row. Row group i has the bin
// rows [group_begin(i), group_begin(i + 1)).
constexpr int64_t kGroupRows = 8;

inline constexpr int64_t num_groups(int64_t pooled_height) {
  return (pooled_height + kGroupRows - 1) / kGroupRows;
}

inline constexpr int64_t group_begin(int64_t group, int64_t pooled_height) {
  return group * pooled_height / num_groups(pooled_height);
}

struct Roi {
  int64_t row; // of the output
  int64_t index; // among the RoIs of its level, in the order of the matrices
  int64_t image;
  Range rows; // the map rows that its bins read
  Range columns; // the map columns that its bins read
  int64_t transposed_column; // backward: the row of Task::x for columns.begin
};

// Backward: the map rows that a row group of a RoI reads.
struct RowGroup {
  Range rows;
  int64_t transposed_row; // the row of Task::y for rows.begin
};

// The work on one level.
template <typename scalar_t>
struct Task {
  using acc_t = accumulator_t<scalar_t>;

  const scalar_t* source; // forward: the map; backward: the gradient of the bins
  scalar_t* target; // forward: the bins; backward: the gradient of the map
  Strides map; // [images, channels, height, width]
  Strides bins; // [RoIs, channels, pooled_height, pooled_width]; the row stride is pooled_width * column stride
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t pooled_height;
  int64_t pooled_width;

  // The RoIs are sorted by image, then by rows.begin. Image n has the RoIs [image_starts[n], image_starts[n + 1]).
  const Roi* rois;
  const int64_t* image_starts;
  int64_t longest_row; // most map columns that a RoI reads
  int64_t largest_window; // most map pixels that a RoI reads

  // The weights. Their columns count from the RoI's rows.begin or columns.begin.
  //   forward: row index * pooled_height + p of y is row p of Wy, and x holds Wx in the same way.
  //   backward: x holds rows of Wx^T. y holds rows of Wy^T for a row group, with columns from its first bin row on.
  SparseRows<acc_t> y;
  SparseRows<acc_t> x;
  const RowGroup* groups; // backward: num_groups of each RoI

  int64_t channels_per_unit;
  // Forward: whether the RoIs of an image share one copy of its map. Otherwise each copies its own part.
  bool share_map;
  // Backward: the number of bands of rows that a map is divided into.
  int64_t bands;
};

// The kernels for one instruction set. The channels are divided into parts of channels_per_unit.
//   forward: a unit is a (part, image) if share_map, else a (part, RoI) in the order that suits the layout.
//   backward: a unit is a (part, image, band of rows), and no other unit writes to its part of the target. Each unit
//   adds the RoIs in the same order, so the number of bands does not change a bit of the result.
// A kernel runs the units [begin, end). It needs scratch memory that is aligned to 64 bytes, and forward_scratch and
// backward_scratch return its size in elements.
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
