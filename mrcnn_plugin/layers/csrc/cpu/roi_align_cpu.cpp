// RoIAlign on the CPU: the weights of every RoI, and which kernel runs on which memory.
//
// Work is divided over (block of channels, image). In backward such a unit has a single writer that adds the RoIs in a
// fixed order, so that the gradient is the same for any number of threads.
#include "../roi_align.h"
#include "roi_align_geometry.h"
#include "roi_align_kernel.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <string>

namespace mrcnn_plugin::cpu {
namespace {

// work(0) and work(1), on two threads where there are.
constexpr auto for_each_axis = [](const auto& work) {
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t axis = begin; axis < end; ++axis) {
      work(axis);
    }
  });
};

template <typename T>
Geometry<T> make_geometry(
    const at::Tensor& boxes, const Problem& problem, double spatial_scale, int64_t sampling_ratio, bool aligned,
    double a) {
  const at::Tensor contiguous = boxes.contiguous();
  const T* data = contiguous.const_data_ptr<T>();
  for (int64_t k = 0; k < boxes.size(0); ++k) {
    check_batch_index(data[k * 5], k, problem.batch);
  }
  return Geometry<T>(data, boxes.size(0), problem, spatial_scale, sampling_ratio, aligned, a, for_each_axis);
}

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
    if (at::get_num_threads() > 1) {
      // Each page by one thread: those that touch a page at the same time would all clear it.
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
    const auto geometry = make_geometry<acc_t>(rois, problem, spatial_scale, sampling_ratio, aligned, a);
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
  // The bins of a RoI must lie at equal distances. The stride of an axis of size 1 can be anything.
  const auto column_stride = [](const at::Tensor& t) { return t.size(3) == 1 ? t.stride(2) : t.stride(3); };
  const bool is_run = grad.size(2) == 1 || grad.stride(2) == grad.size(3) * column_stride(grad);
  const at::Tensor bins = is_run ? grad : grad.contiguous();
  const at::Tensor grad_input = empty({batch, problem.channels, height, width}, grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using acc_t = accumulator_t<scalar_t>;
    auto geometry = make_geometry<acc_t>(rois, problem, spatial_scale, sampling_ratio, aligned, a);
    geometry.transpose(for_each_axis);
    const Kernels<scalar_t> kernels = best_kernels<scalar_t>();
    Task<scalar_t> task = geometry.template task<scalar_t>();
    task.source = bins.const_data_ptr<scalar_t>();
    const int64_t column = column_stride(bins);
    task.bins = {bins.stride(0), bins.stride(1), bins.size(3) * column, column};
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
