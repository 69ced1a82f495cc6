// The weights of all RoIs, as the kernels want them. No ATen.
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

// SparseRows that grow.
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

struct Range {
  int64_t begin;
  int64_t end;

  int64_t size() const {
    return end - begin;
  }
};

// The least range with the columns of the rows [first, first + count).
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

// Appends the transpose of the rows [first, first + count): a row for each column in `range`.
template <typename T>
void append_transpose(
    const SparseMatrix<T>& matrix, int64_t first, int64_t count, Range range, SparseMatrix<T>& transpose) {
  // Counting sort by column; next[i] is where the next entry of column range.begin + i goes.
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

// The weights of all RoIs.
template <typename T>
class Geometry {
 public:
  // boxes: [num_rois, 5], rows (batch index, x1, y1, x2, y2) with a valid batch index.
  Geometry(
      const T* boxes, int64_t num_rois, const Problem& problem, double spatial_scale, int64_t sampling_ratio,
      bool aligned, double a)
      : problem_(problem), image_starts(problem.batch + 1, 0) {
    rois.reserve(num_rois);
    const auto add_axis = [&](const T* box, int axis, int64_t size, int64_t bins, SparseMatrix<T>& matrix) {
      const Axis<T> samples = make_axis(
          box[1 + axis], box[3 + axis], static_cast<T>(spatial_scale), bins, sampling_ratio, aligned);
      return add_rows(samples, size, bins, static_cast<T>(a), matrix);
    };
    for (int64_t k = 0; k < num_rois; ++k) {
      const T* box = boxes + k * 5;
      const Range columns = add_axis(box, 0, problem.width, problem.pooled_width, x);
      const Range rows = add_axis(box, 1, problem.height, problem.pooled_height, y);
      const int64_t image = static_cast<int64_t>(box[0]);
      ++image_starts[image + 1];
      rois.push_back({k, image, rows.begin, rows.end, columns.begin, columns.end, 0});
      longest_row = std::max(longest_row, columns.size());
      largest_window = std::max(largest_window, rows.size() * columns.size());
      total_window += rows.size() * columns.size();
    }
    std::partial_sum(image_starts.begin(), image_starts.end(), image_starts.begin());
    std::stable_sort(rois.begin(), rois.end(), [](const Roi& left, const Roi& right) {
      return std::tie(left.image, left.row_begin) < std::tie(right.image, right.row_begin);
    });
  }

  // Replaces the matrices by their transposes.
  void transpose() {
    const int64_t bins_y = problem_.pooled_height, bins_x = problem_.pooled_width, count = num_groups(bins_y);
    SparseMatrix<T> yt, xt;
    groups.resize(rois.size() * count);
    for (Roi& roi : rois) {
      roi.transposed_column = xt.rows();
      append_transpose(x, roi.index * bins_x, bins_x, Range{0, roi.column_end - roi.column_begin}, xt);
      for (int64_t group = 0; group < count; ++group) {
        const int64_t p = group_begin(group, bins_y), rows = group_begin(group + 1, bins_y) - p;
        const Range range = reach(y, roi.index * bins_y + p, rows);
        groups[roi.index * count + group] = {roi.row_begin + range.begin, roi.row_begin + range.end, yt.rows()};
        append_transpose(y, roi.index * bins_y + p, rows, range, yt);
      }
    }
    x = std::move(xt);
    y = std::move(yt);
  }

  // Everything of a task but its tensors.
  template <typename scalar_t>
  Task<scalar_t> task() const {
    Task<scalar_t> task{};
    task.images = problem_.batch;
    task.channels = problem_.channels;
    task.height = problem_.height;
    task.width = problem_.width;
    task.pooled_height = problem_.pooled_height;
    task.pooled_width = problem_.pooled_width;
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
  // Appends the rows of the `bins` bins of an axis. Returns the pixels that they read; their columns count from its begin.
  Range add_rows(const Axis<T>& axis, int64_t size, int64_t bins, T a, SparseMatrix<T>& matrix) {
    const int64_t first_row = matrix.rows();
    const int64_t first_entry = matrix.starts.back();
    for (int64_t p = 0; p < bins; ++p) {
      const Band band = bin_band(axis, p, size, problem_.interpolation);
      band_.resize(band.count);
      bin_weights(axis, p, band, size, problem_.interpolation, a, band_.data());
      // Samples far apart leave gaps.
      for (int64_t j = 0; j < band.count; ++j) {
        if (band_[j] != T(0)) {
          matrix.add(band.first + j, band_[j]);
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

  Problem problem_;
  std::vector<T> band_;
  std::vector<Roi> rois;
  std::vector<int64_t> image_starts;
  std::vector<RowGroup> groups;
  SparseMatrix<T> y; // row roi * pooled_height + p
  SparseMatrix<T> x;
};

} // namespace mrcnn_plugin::cpu
