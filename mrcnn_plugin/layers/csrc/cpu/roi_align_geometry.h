// The weights of the RoIs of one level, in the form that the kernels use. This header does not use ATen.
#pragma once

#include "../interpolation.h"
#include "../problem.h"
#include "roi_align_kernel.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

namespace mrcnn_plugin::cpu {

// A sparse matrix to which rows can be appended.
template <typename T>
struct SparseMatrix {
  std::vector<int64_t> starts{0};
  std::vector<int64_t> columns;
  std::vector<T> weights;

  void add(int64_t column, T weight) {
    columns.push_back(column);
    weights.push_back(weight);
  }
  void end_row() {
    starts.push_back(static_cast<int64_t>(columns.size()));
  }
  int64_t rows() const {
    return static_cast<int64_t>(starts.size()) - 1;
  }
  SparseRows<T> view() const {
    return {starts.data(), columns.data(), weights.data()};
  }
};

// Returns the smallest range that holds the columns of the rows [first, first + count).
template <typename T>
Range reach(const SparseMatrix<T>& matrix, int64_t first, int64_t count) {
  const auto begin = matrix.columns.begin() + matrix.starts[first];
  const auto end = matrix.columns.begin() + matrix.starts[first + count];
  if (begin == end) {
    return {0, 0};
  }
  const auto [least, most] = std::minmax_element(begin, end);
  return {*least, *most + 1};
}

// Appends the transpose of the rows [first, first + count) to `transpose`, with one row for each column in `range`.
template <typename T>
void append_transpose(
    const SparseMatrix<T>& matrix, int64_t first, int64_t count, Range range, SparseMatrix<T>& transpose) {
  // This is a counting sort by column: next[i] is where the next entry of column range.begin + i goes.
  std::vector<int64_t> next(range.size() + 1, 0);
  for (int64_t j = matrix.starts[first]; j < matrix.starts[first + count]; ++j) {
    ++next[matrix.columns[j] - range.begin + 1];
  }
  next[0] = transpose.starts.back();
  std::partial_sum(next.begin(), next.end(), next.begin());
  transpose.starts.insert(transpose.starts.end(), next.begin() + 1, next.end());
  transpose.columns.resize(next.back());
  transpose.weights.resize(next.back());
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t j = matrix.starts[first + row]; j < matrix.starts[first + row + 1]; ++j) {
      const int64_t at = next[matrix.columns[j] - range.begin]++;
      transpose.columns[at] = row;
      transpose.weights[at] = matrix.weights[j];
    }
  }
}

// The weights of the RoIs of one level. First call add_weights(axis) for both axes (0: x, 1: y), then sort(), and then
// transpose(axis) for both axes if the pass is backward. Two threads may work on the two axes at the same time.
template <typename T>
class Geometry {
 public:
  // boxes has rows (batch index, x1, y1, x2, y2) with valid batch indices. rows has the indices of the num_rois boxes
  // of this level. Both arrays must outlive the object.
  Geometry(const T* boxes, const int64_t* rows, int64_t num_rois, const Call& call, const Level& level)
      : boxes_(boxes), call_(call), level_(level), rois(num_rois), image_starts(call.batch + 1, 0) {
    for (int64_t k = 0; k < num_rois; ++k) {
      rois[k].row = rows[k];
      rois[k].index = k;
      rois[k].image = static_cast<int64_t>(boxes[rows[k] * 5]);
    }
  }

  void add_weights(int64_t axis) {
    const Options& options = call_.options;
    const int64_t size = axis == 0 ? level_.width : level_.height;
    const int64_t bins = axis == 0 ? call_.pooled_width : call_.pooled_height;
    SparseMatrix<T>& matrix = axis == 0 ? x : y;
    std::vector<T> scratch;
    for (Roi& roi : rois) {
      const T* box = boxes_ + roi.row * 5 + 1 + axis;
      const Axis<T> samples = make_axis(
          box[0], box[2], static_cast<T>(level_.spatial_scale), bins, options.sampling_ratio, options.aligned);
      (axis == 0 ? roi.columns : roi.rows) = add_rows(samples, size, bins, scratch, matrix);
    }
  }

  void sort() {
    for (const Roi& roi : rois) {
      ++image_starts[roi.image + 1];
      longest_row = std::max(longest_row, roi.columns.size());
      largest_window = std::max(largest_window, roi.rows.size() * roi.columns.size());
      total_window += roi.rows.size() * roi.columns.size();
    }
    std::partial_sum(image_starts.begin(), image_starts.end(), image_starts.begin());
    std::stable_sort(rois.begin(), rois.end(), [](const Roi& left, const Roi& right) {
      return std::tie(left.image, left.rows.begin) < std::tie(right.image, right.rows.begin);
    });
  }

  // Replaces the matrix of an axis by its transpose.
  void transpose(int64_t axis) {
    const int64_t bins_y = call_.pooled_height, bins_x = call_.pooled_width, count = num_groups(bins_y);
    SparseMatrix<T> transpose;
    if (axis == 0) {
      for (Roi& roi : rois) {
        roi.transposed_column = transpose.rows();
        append_transpose(x, roi.index * bins_x, bins_x, Range{0, roi.columns.size()}, transpose);
      }
      x = std::move(transpose);
      return;
    }
    groups.resize(rois.size() * count);
    for (const Roi& roi : rois) {
      for (int64_t group = 0; group < count; ++group) {
        const int64_t p = group_begin(group, bins_y), rows = group_begin(group + 1, bins_y) - p;
        const Range range = reach(y, roi.index * bins_y + p, rows);
        groups[roi.index * count + group] = {
            {roi.rows.begin + range.begin, roi.rows.begin + range.end}, transpose.rows()};
        append_transpose(y, roi.index * bins_y + p, rows, range, transpose);
      }
    }
    y = std::move(transpose);
  }

  // Returns a task with everything except its tensors.
  template <typename scalar_t>
  Task<scalar_t> task() const {
    Task<scalar_t> task{};
    task.images = call_.batch;
    task.channels = call_.channels;
    task.height = level_.height;
    task.width = level_.width;
    task.pooled_height = call_.pooled_height;
    task.pooled_width = call_.pooled_width;
    task.rois = rois.data();
    task.image_starts = image_starts.data();
    task.longest_row = longest_row;
    task.largest_window = largest_window;
    task.y = y.view();
    task.x = x.view();
    task.groups = groups.data();
    return task;
  }

  int64_t longest_row = 0;
  int64_t largest_window = 0;
  int64_t total_window = 0;

 private:
  // Appends a row for each bin of an axis to `matrix`. Returns the range of pixels that the bins read. The columns of
  // the new rows count from its begin.
  Range add_rows(
      const Axis<T>& axis, int64_t size, int64_t bins, std::vector<T>& weights, SparseMatrix<T>& matrix) const {
    const Interpolation interpolation = call_.options.interpolation;
    const T a = static_cast<T>(call_.options.a);
    const int64_t first_row = matrix.rows();
    const int64_t first_entry = matrix.starts.back();
    for (int64_t p = 0; p < bins; ++p) {
      const Band band = bin_band(axis, p, size, interpolation);
      weights.resize(band.count);
      bin_weights(axis, p, band, size, interpolation, a, weights.data());
      // If samples are far apart, some weights between them are zero.
      for (int64_t j = 0; j < band.count; ++j) {
        if (weights[j] != T(0)) {
          matrix.add(band.first + j, weights[j]);
        }
      }
      matrix.end_row();
    }
    const Range range = reach(matrix, first_row, bins);
    for (size_t j = first_entry; j < matrix.columns.size(); ++j) {
      matrix.columns[j] -= range.begin;
    }
    return range;
  }

  const T* boxes_;
  Call call_;
  Level level_;
  std::vector<Roi> rois;
  std::vector<int64_t> image_starts;
  std::vector<RowGroup> groups;
  SparseMatrix<T> y; // row roi * pooled_height + p
  SparseMatrix<T> x;
};

} // namespace mrcnn_plugin::cpu
