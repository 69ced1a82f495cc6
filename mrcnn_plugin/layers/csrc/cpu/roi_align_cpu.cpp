// RoIAlign on the CPU: the weights of every RoI, and which kernel runs on which memory.
//
// Work is divided over (block of channels, image). In backward such a unit has a single writer that adds the RoIs in a
// fixed order, so that the gradient is the same for any number of threads.
#include "../roi_align.h"
#include "roi_align_kernel.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

namespace mrcnn_plugin::cpu {
namespace {

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
  Geometry(
      const at::Tensor& boxes, const Problem& problem, double spatial_scale, int64_t sampling_ratio, bool aligned,
      double a)
      : problem_(problem), image_starts(problem.batch + 1, 0) {
    const at::Tensor contiguous = boxes.contiguous();
    const T* data = contiguous.const_data_ptr<T>();
    const int64_t num_rois = boxes.size(0);
    rois.reserve(num_rois);
    const auto add_axis = [&](const T* box, int axis, int64_t size, int64_t bins, SparseMatrix<T>& matrix) {
      const Axis<T> samples = make_axis(
          box[1 + axis], box[3 + axis], static_cast<T>(spatial_scale), bins, sampling_ratio, aligned);
      return add_rows(samples, size, bins, static_cast<T>(a), matrix);
    };
    for (int64_t k = 0; k < num_rois; ++k) {
      const T* box = data + k * 5;
      TORCH_CHECK_INDEX(
          box[0] >= T(0) && box[0] < static_cast<T>(problem.batch) && box[0] == std::floor(box[0]),
          "roi_align: boxes[", k, ", 0] is the batch index ", box[0], ", but input has batch size ", problem.batch,
          ", so it must be a whole number in [0, ", problem.batch, ")");
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

template <typename scalar_t>
Kernels<scalar_t> best_kernels() {
#if defined(MRCNN_HAS_AVX2)
  // ATen's own choice, which the environment variable ATEN_CPU_CAPABILITY can lower.
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX2" || capability == "AVX512") {
    return isa_avx2::kernels<scalar_t>();
  }
#endif
  return isa_default::kernels<scalar_t>();
}

Strides strides_of(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// Sets the channels of a unit; returns the number of units that all channels are divided into.
template <typename scalar_t>
int64_t divide_channels(Task<scalar_t>& task, const Kernels<scalar_t>& kernels) {
  // Where channels lie together, two vectors make better use of a cache line than one.
  task.channels_per_unit = kernels.lanes * (task.map.channel == 1 ? 2 : 1);
  return (task.channels + task.channels_per_unit - 1) / task.channels_per_unit;
}

// A new tensor for the kernels to fill.
at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like) {
  const at::MemoryFormat format = like.suggest_memory_format();
  at::Tensor tensor = at::empty(sizes, like.options(), format);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Fresh memory is mapped page by page as it is first written, which for results of this size can take longer than the
  // computation. Large pages, where the system has them to give on request, are a fifth of the time.
  constexpr uintptr_t kLargePage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes()) & ~(kLargePage - 1);
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

// run(begin, end, scratch) over all units, in parallel.
template <typename T, typename Run>
void for_each_unit(int64_t units, int64_t scratch_size, const Run& run) {
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    static_assert(c10::gAlignment >= 64);
    const at::DataPtr scratch = c10::GetCPUAllocator()->allocate(scratch_size * sizeof(T));
    run(begin, end, static_cast<T*>(scratch.get()));
  });
}

} // namespace

at::Tensor roi_align(
    const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_forward(input, rois, pooled_height, pooled_width, sampling_ratio, interpolation);
  const at::Tensor output = empty({rois.size(0), problem.channels, pooled_height, pooled_width}, input);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "roi_align", [&] {
    using acc_t = accumulator_t<scalar_t>;
    const Geometry<acc_t> geometry(rois, problem, spatial_scale, sampling_ratio, aligned, a);
    const Kernels<scalar_t> kernels = best_kernels<scalar_t>();
    Task<scalar_t> task = geometry.template task<scalar_t>();
    task.source = input.const_data_ptr<scalar_t>();
    task.map = strides_of(input);
    task.target = output.mutable_data_ptr<scalar_t>();
    task.bins = strides_of(output);
    const int64_t parts = divide_channels(task, kernels);
    // Copying the whole map once is worth it if its pixels are read often enough; three times where channels lie
    // together, measured, since copying a RoI is cheaper then. And only if it leaves work for all threads.
    const int64_t reads = task.map.channel == 1 ? 3 : 1;
    task.share_map = geometry.total_window > reads * problem.batch * problem.height * problem.width &&
        parts * problem.batch >= at::get_num_threads();
    for_each_unit<acc_t>(
        parts * (task.share_map ? problem.batch : rois.size(0)), kernels.forward_scratch(task),
        [&](int64_t begin, int64_t end, acc_t* scratch) { kernels.forward(task, begin, end, scratch); });
  });
  return output;
}

at::Tensor roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, double spatial_scale, int64_t batch, int64_t height, int64_t width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_backward(grad, rois, batch, height, width, sampling_ratio, interpolation);
  // The bins of a RoI must lie at equal distances.
  const at::Tensor bins = grad.stride(2) == grad.size(3) * grad.stride(3) ? grad : grad.contiguous();
  const at::Tensor grad_input = empty({batch, problem.channels, height, width}, grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using acc_t = accumulator_t<scalar_t>;
    Geometry<acc_t> geometry(rois, problem, spatial_scale, sampling_ratio, aligned, a);
    geometry.transpose();
    const Kernels<scalar_t> kernels = best_kernels<scalar_t>();
    Task<scalar_t> task = geometry.template task<scalar_t>();
    task.source = bins.const_data_ptr<scalar_t>();
    task.bins = strides_of(bins);
    task.target = grad_input.mutable_data_ptr<scalar_t>();
    task.map = strides_of(grad_input);
    const int64_t parts = divide_channels(task, kernels);
    for_each_unit<acc_t>(
        parts * batch, kernels.backward_scratch(task),
        [&](int64_t begin, int64_t end, acc_t* scratch) { kernels.backward(task, begin, end, scratch); });
  });
  return grad_input;
}

} // namespace mrcnn_plugin::cpu
