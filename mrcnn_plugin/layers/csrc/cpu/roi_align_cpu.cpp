// The operators on the CPU. They compute the weights of every RoI and choose the kernels.
//
// The levels are pooled one after the other, and each as in a call on a single map. The work on a level is divided into
// units, one for each image and part of the channels. In the backward pass, a single thread adds up the RoIs of a unit
// in a fixed order. For that reason the gradient has the same bits for any number of threads.
#include "../roi_align.h"
#include "roi_align_geometry.h"
#include "roi_align_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <c10/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace mrcnn_plugin::cpu {
namespace {

// Sorts the rows of boxes by level. Level l has rows[starts[l]] ... rows[starts[l + 1] - 1], in their original order.
struct RowsByLevel {
  std::vector<int64_t> rows;
  std::array<int64_t, kMaxLevels + 1> starts{};

  RowsByLevel(const std::optional<at::Tensor>& levels, const Call& call) : rows(call.num_rois) {
    if (!levels) {
      std::iota(rows.begin(), rows.end(), 0);
      std::fill(starts.begin() + 1, starts.end(), call.num_rois);
      return;
    }
    const at::Tensor contiguous = levels->contiguous();
    const int64_t* level = contiguous.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < call.num_rois; ++k) {
      TORCH_CHECK_INDEX(
          level[k] >= 0 && level[k] < call.num_levels, "multiscale_roi_align: levels[", k, "] is ", level[k],
          ", but there are ", call.num_levels, " maps, so it must be in [0, ", call.num_levels, ")");
      ++starts[level[k] + 1];
    }
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::array<int64_t, kMaxLevels + 1> next = starts;
    for (int64_t k = 0; k < call.num_rois; ++k) {
      rows[next[level[k]]++] = k;
    }
  }

  int64_t count(int64_t level) const {
    return starts[level + 1] - starts[level];
  }
};

// The geometry of each level that has RoIs and, in the backward pass, needs a gradient. boxes and rows must outlive it.
template <typename T>
struct Geometries {
  std::vector<int64_t> levels;
  std::vector<Geometry<T>> of_level; // in the order of `levels`

  Geometries(const T* boxes, const RowsByLevel& rows, const Call& call, bool transposed) {
    for (int64_t k = 0; k < call.num_rois; ++k) {
      const double image = boxes[k * 5];
      TORCH_CHECK_INDEX(
          image >= 0 && image < static_cast<double>(call.batch) && image == std::floor(image),
          call.num_levels > 1 ? "multiscale_roi_align" : "roi_align", ": boxes[", k, ", 0] is the batch index ", image,
          ", but input has batch size ", call.batch, ", so it must be a whole number in [0, ", call.batch, ")");
    }
    for (int64_t level = 0; level < call.num_levels; ++level) {
      if (rows.count(level) > 0 && call.levels[level].needed) {
        levels.push_back(level);
        of_level.emplace_back(
            boxes, rows.rows.data() + rows.starts[level], rows.count(level), call, call.levels[level]);
      }
    }
    for_each_axis([](Geometry<T>& geometry, int64_t axis) { geometry.add_weights(axis); });
    for (Geometry<T>& geometry : of_level) {
      geometry.sort();
    }
    if (transposed) {
      for_each_axis([](Geometry<T>& geometry, int64_t axis) { geometry.transpose(axis); });
    }
  }

 private:
  // Works in parallel. All levels of one axis come before those of the other, so that two threads get equal work.
  template <typename Work>
  void for_each_axis(const Work& work) {
    const int64_t count = static_cast<int64_t>(of_level.size());
    at::parallel_for(0, 2 * count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        work(of_level[i % count], i / count);
      }
    });
  }
};

template <typename scalar_t>
Kernels<scalar_t> best_kernels() {
#if defined(MRCNN_HAS_AVX2)
  // ATen chooses the instruction set, and the environment variable ATEN_CPU_CAPABILITY can lower its choice.
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

// Sets the number of channels of a unit. Returns the number of parts that all channels are divided into.
template <typename scalar_t>
int64_t divide_channels(Task<scalar_t>& task, const Kernels<scalar_t>& kernels) {
  // If channels lie together in memory, two vectors make better use of a cache line than one.
  task.channels_per_unit = kernels.lanes * (task.map.channel == 1 ? 2 : 1);
  return (task.channels + task.channels_per_unit - 1) / task.channels_per_unit;
}

// The number of bands that a map is divided into, so that all threads have something to do. A RoI that reaches into
// several bands is partly computed in each of them, so that there are no more bands than needed.
int64_t num_bands(int64_t units, int64_t height) {
  constexpr int64_t kLeastRows = 16;
  const int64_t threads = at::get_num_threads();
  if (units == 0 || units >= threads) {
    return 1;
  }
  // Each thread gets two units, because units differ in the number of their RoIs.
  return std::max<int64_t>(1, std::min((2 * threads + units - 1) / units, height / kLeastRows));
}

// Returns a new tensor for the kernels to fill.
at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like) {
  const at::MemoryFormat format = like.suggest_memory_format();
  at::Tensor tensor = at::empty(sizes, like.options(), format);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // The system maps new memory page by page when it is first written. For large results, this can take longer than the
  // computation. It takes a fifth of the time with large pages, if the system gives them on request.
  constexpr uintptr_t kLargePage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes()) & ~(kLargePage - 1);
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    if (at::get_num_threads() > 1) {
      // One thread touches each page, because threads that touch a page at the same time would all clear it.
      at::parallel_for(0, (end - begin) / kLargePage, 1, [&](int64_t first, int64_t last) {
        for (int64_t page = first; page < last; ++page) {
          *reinterpret_cast<volatile char*>(begin + page * kLargePage) = 0;
        }
      });
    }
  }
#endif
  return tensor;
}

// Calls run(begin, end, scratch) for all units in parallel.
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
    at::TensorList input, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view interpolation, double a) {
  const Call call = check_forward(
      input, rois, levels, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, interpolation, a);
  const RowsByLevel rows(levels, call);
  const at::Tensor boxes = rois.contiguous();
  const at::Tensor output = empty({call.num_rois, call.channels, pooled_height, pooled_width}, input[0]);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, output.scalar_type(), "roi_align", [&] {
    using acc_t = accumulator_t<scalar_t>;
    const Geometries<acc_t> geometries(boxes.const_data_ptr<acc_t>(), rows, call, /*transposed=*/false);
    const Kernels<scalar_t> kernels = best_kernels<scalar_t>();
    for (size_t i = 0; i < geometries.levels.size(); ++i) {
      const int64_t level = geometries.levels[i];
      const Geometry<acc_t>& geometry = geometries.of_level[i];
      Task<scalar_t> task = geometry.template task<scalar_t>();
      task.source = input[level].const_data_ptr<scalar_t>();
      task.map = strides_of(input[level]);
      task.target = output.mutable_data_ptr<scalar_t>();
      task.bins = strides_of(output);
      const int64_t parts = divide_channels(task, kernels);
      // One copy of the whole map pays off if its pixels are read often enough, and if there is still work for all
      // threads. Measurements show that three reads are needed if channels lie together, since it is then cheap to copy
      // a RoI.
      const int64_t reads = task.map.channel == 1 ? 3 : 1;
      task.share_map = geometry.total_window > reads * call.batch * task.height * task.width &&
          parts * call.batch >= at::get_num_threads();
      for_each_unit<acc_t>(
          parts * (task.share_map ? call.batch : rows.count(level)), kernels.forward_scratch(task),
          [&](int64_t begin, int64_t end, acc_t* scratch) { kernels.forward(task, begin, end, scratch); });
    }
  });
  return output;
}

std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales, int64_t batch, at::IntArrayRef heights, at::IntArrayRef widths,
    const c10::List<bool>& needed, int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Call call = check_backward(
      grad, rois, levels, spatial_scales, batch, heights, widths, needed, sampling_ratio, aligned, interpolation, a);
  const RowsByLevel rows(levels, call);
  const at::Tensor boxes = rois.contiguous();
  // The kernels need the bins of a RoI at equal distances. An axis of size 1 may have any stride.
  const auto column_stride = [](const at::Tensor& t) { return t.size(3) == 1 ? t.stride(2) : t.stride(3); };
  const bool is_run = grad.size(2) == 1 || grad.stride(2) == grad.size(3) * column_stride(grad);
  const at::Tensor bins = is_run ? grad : grad.contiguous();
  std::array<at::Tensor, kMaxLevels> gradients;
  std::vector<at::Tensor> result;
  for (int64_t l = 0; l < call.num_levels; ++l) {
    if (call.levels[l].needed) {
      gradients[l] = empty({batch, call.channels, heights[l], widths[l]}, grad);
      if (rows.count(l) == 0) {
        gradients[l].zero_();
      }
      result.push_back(gradients[l]);
    }
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using acc_t = accumulator_t<scalar_t>;
    const Geometries<acc_t> geometries(boxes.const_data_ptr<acc_t>(), rows, call, /*transposed=*/true);
    const Kernels<scalar_t> kernels = best_kernels<scalar_t>();
    for (size_t i = 0; i < geometries.levels.size(); ++i) {
      const at::Tensor& gradient = gradients[geometries.levels[i]];
      Task<scalar_t> task = geometries.of_level[i].template task<scalar_t>();
      task.source = bins.const_data_ptr<scalar_t>();
      const int64_t column = column_stride(bins);
      task.bins = {bins.stride(0), bins.stride(1), bins.size(3) * column, column};
      task.target = gradient.mutable_data_ptr<scalar_t>();
      task.map = strides_of(gradient);
      const int64_t parts = divide_channels(task, kernels);
      task.bands = num_bands(parts * batch, task.height);
      for_each_unit<acc_t>(
          parts * batch * task.bands, kernels.backward_scratch(task),
          [&](int64_t begin, int64_t end, acc_t* scratch) { kernels.backward(task, begin, end, scratch); });
    }
  });
  return result;
}

} // namespace mrcnn_plugin::cpu
