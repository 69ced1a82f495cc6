// Runs the CPU kernels and the emulated CUDA kernels without torch. `make sanitize` builds this file with sanitizers.
// Wrong results fail too: values are compared with the definition of RoIAlign, and gradients have to satisfy <G, A X> =
// <A^T G, X>.
//
//   sanitize         runs all cases
//   sanitize tiny    runs a few small cases, for ThreadSanitizer
#define MRCNN_CUDA_EMULATION
#define MRCNN_MOST_BLOCKS 3
#include "cpu/roi_align_geometry.h"
#include "cpu/roi_align_kernel.h"
#include "cuda/roi_align_launch.cu"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

using namespace mrcnn_plugin;

namespace {

struct Problem {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t pooled_height;
  int64_t pooled_width;
  Interpolation interpolation;
};

struct Case {
  Problem problem;
  int64_t sampling_ratio;
  bool aligned;
  bool channels_last;
  double scale;
};

template <typename T>
using Buffer = std::vector<T>; // exactly as large as needed, so that access beyond it is an error

constexpr double kA = -0.5;

double keys(double x) {
  x = std::fabs(x);
  return x <= 1 ? (kA + 2) * x * x * x - (kA + 3) * x * x + 1
                : (x < 2 ? kA * x * x * x - 5 * kA * x * x + 8 * kA * x - 4 * kA : 0);
}

double linear(double x) {
  return std::max(0.0, 1 - std::fabs(x));
}

int64_t at(const Case& c, int64_t n, int64_t channel, int64_t y, int64_t x, int64_t height, int64_t width) {
  return c.channels_last ? ((n * height + y) * width + x) * c.problem.channels + channel
                         : ((n * c.problem.channels + channel) * height + y) * width + x;
}

// Computes one output, sample by sample and tap by tap.
template <typename S, typename T>
double definition(const Case& c, const T* box, const Buffer<S>& map, int64_t channel, int64_t p, int64_t q) {
  const Problem& problem = c.problem;
  const bool cubic = problem.interpolation == Interpolation::kBicubic;
  const double offset = c.aligned ? 0.5 : 0;
  double start[2], bin[2];
  int64_t grid[2];
  for (int axis = 0; axis < 2; ++axis) { // y, x
    start[axis] = box[2 - axis] * c.scale - offset;
    double size = box[4 - axis] * c.scale - offset - start[axis];
    if (!c.aligned) {
      size = std::max(size, 1.0);
    }
    bin[axis] = size / (axis == 0 ? problem.pooled_height : problem.pooled_width);
    grid[axis] = c.sampling_ratio > 0 ? c.sampling_ratio : static_cast<int64_t>(std::ceil(bin[axis]));
  }
  double sum = 0;
  for (int64_t i = 0; i < grid[0]; ++i) {
    for (int64_t j = 0; j < grid[1]; ++j) {
      double y = start[0] + (p + (i + 0.5) / grid[0]) * bin[0], x = start[1] + (q + (j + 0.5) / grid[1]) * bin[1];
      if (y < -1 || y > problem.height || x < -1 || x > problem.width) {
        continue;
      }
      y = std::min(std::max(y, 0.0), problem.height - 1.0);
      x = std::min(std::max(x, 0.0), problem.width - 1.0);
      for (int64_t v = static_cast<int64_t>(y) - 1; v <= static_cast<int64_t>(y) + 2; ++v) {
        for (int64_t u = static_cast<int64_t>(x) - 1; u <= static_cast<int64_t>(x) + 2; ++u) {
          const double weight = cubic ? keys(y - v) * keys(x - u) : linear(y - v) * linear(x - u);
          const int64_t row = std::min(std::max<int64_t>(v, 0), problem.height - 1);
          const int64_t column = std::min(std::max<int64_t>(u, 0), problem.width - 1);
          sum += weight *
              static_cast<double>(
                     map[at(c, static_cast<int64_t>(box[0]), channel, row, column, problem.height, problem.width)]);
        }
      }
    }
  }
  return grid[0] > 0 && grid[1] > 0 ? sum / (static_cast<double>(grid[0]) * grid[1]) : 0;
}

int failures = 0;

void check(bool good, const std::string& what, const Case& c, double error) {
  if (!good) {
    ++failures;
    std::printf(
        "FAILED %s: error %g; N %ld C %ld H %ld W %ld P %ld Q %ld ratio %ld aligned %d channels_last %d\n",
        what.c_str(), error, (long)c.problem.batch, (long)c.problem.channels, (long)c.problem.height,
        (long)c.problem.width, (long)c.problem.pooled_height, (long)c.problem.pooled_width, (long)c.sampling_ratio,
        c.aligned, c.channels_last);
  }
}

struct Layout {
  int64_t item, channel, row, column;
};

Layout layout(const Case& c, int64_t height, int64_t width) {
  const int64_t channels = c.problem.channels;
  if (c.channels_last) {
    return {height * width * channels, 1, width * channels, channels};
  }
  return {channels * height * width, height * width, width, 1};
}

// Checks the functions forward(map, bins) and backward(bins, map).
template <typename S, typename T, typename Forward, typename Backward>
void run(
    const std::string& name, const Case& c, const Buffer<T>& boxes, int64_t comparable, const Forward& forward,
    const Backward& backward) {
  const Problem& problem = c.problem;
  const int64_t num_rois = static_cast<int64_t>(boxes.size()) / 5;
  Buffer<S> map(problem.batch * problem.channels * problem.height * problem.width);
  Buffer<S> bins(num_rois * problem.channels * problem.pooled_height * problem.pooled_width);
  std::mt19937 random(0);
  std::normal_distribution<double> normal;
  for (S& value : map) {
    value = static_cast<S>(static_cast<T>(normal(random)));
  }
  forward(map, bins);
  const double tolerance = sizeof(S) == 8 ? 1e-11 : (sizeof(S) == 4 ? 1e-4 : 0.1);
  double dot = 0, largest = 0;
  for (int64_t k = 0; k < num_rois; ++k) {
    for (int64_t channel = 0; channel < problem.channels; ++channel) {
      for (int64_t p = 0; p < problem.pooled_height; ++p) {
        for (int64_t q = 0; q < problem.pooled_width; ++q) {
          const double value =
              static_cast<double>(bins[at(c, k, channel, p, q, problem.pooled_height, problem.pooled_width)]);
          check(std::isfinite(value), name + " is not finite", c, value);
          dot += value * value;
          if (k < comparable) {
            const double error = std::fabs(value - definition(c, boxes.data() + k * 5, map, channel, p, q));
            largest = std::max(largest, error);
          }
        }
      }
    }
  }
  check(largest < tolerance, name + " forward", c, largest);
  // The gradient is that of G = A X, so <G, A X> = <A^T G, X> must hold.
  Buffer<S> gradient(map.size());
  backward(bins, gradient);
  double other = 0;
  for (size_t i = 0; i < map.size(); ++i) {
    other += static_cast<double>(gradient[i]) * static_cast<double>(map[i]);
  }
  check(std::fabs(dot - other) <= tolerance * (1 + dot), name + " backward", c, dot - other);
}

template <typename S>
void run_cpu(
    const std::string& name, const Case& c, const Buffer<cpu::accumulator_t<S>>& boxes, int64_t comparable,
    cpu::Kernels<S> kernels) {
  using T = cpu::accumulator_t<S>;
  const int64_t num_rois = static_cast<int64_t>(boxes.size()) / 5;
  const Layout map = layout(c, c.problem.height, c.problem.width);
  const Layout bins = layout(c, c.problem.pooled_height, c.problem.pooled_width);
  const auto for_each_axis = [](const auto& work) {
    work(1);
    work(0);
  };
  const auto with_task = [&](bool transposed, const S* source, S* target, const auto& function) {
    Call call{num_rois, c.problem.batch, c.problem.channels, c.problem.pooled_height, c.problem.pooled_width, 1, {},
              {}};
    call.levels[0] = {c.problem.height, c.problem.width, c.scale, true};
    call.options = {c.problem.interpolation, kA, c.sampling_ratio, c.aligned};
    std::vector<int64_t> rows(num_rois);
    std::iota(rows.begin(), rows.end(), 0);
    cpu::Geometry<T> geometry(boxes.data(), rows.data(), num_rois, call, call.levels[0]);
    for_each_axis([&](int64_t axis) { geometry.add_weights(axis); });
    geometry.sort();
    if (transposed) {
      for_each_axis([&](int64_t axis) { geometry.transpose(axis); });
    }
    cpu::Task<S> task = geometry.template task<S>();
    task.source = source;
    task.target = target;
    task.map = {map.item, map.channel, map.row, map.column};
    task.bins = {bins.item, bins.channel, bins.row, bins.column};
    task.channels_per_unit = kernels.lanes * (c.channels_last ? 2 : 1);
    function(task, (c.problem.channels + task.channels_per_unit - 1) / task.channels_per_unit);
  };
  const auto scratch = [](int64_t size) {
    // The memory has exactly the given size, rounded up to the alignment.
    void* memory = std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64);
    return std::unique_ptr<T, void (*)(void*)>(static_cast<T*>(memory), std::free);
  };
  for (const bool share : {false, true}) {
    run<S, T>(
        name, c, boxes, comparable,
        [&](const Buffer<S>& source, Buffer<S>& target) {
          with_task(false, source.data(), target.data(), [&](cpu::Task<S>& task, int64_t parts) {
            task.share_map = share;
            const auto memory = scratch(kernels.forward_scratch(task));
            kernels.forward(task, 0, parts * (share ? c.problem.batch : num_rois), memory.get());
          });
        },
        [&](const Buffer<S>& source, Buffer<S>& target) {
          with_task(true, source.data(), target.data(), [&](cpu::Task<S>& task, int64_t parts) {
            task.bands = share ? 1 : 3;
            const auto memory = scratch(kernels.backward_scratch(task));
            kernels.backward(task, 0, parts * c.problem.batch * task.bands, memory.get());
          });
        });
  }
}

template <typename S>
void run_cuda(const std::string& name, const Case& c, const Buffer<cpu::accumulator_t<S>>& boxes, int64_t comparable) {
  using T = cpu::accumulator_t<S>;
  const int64_t num_rois = static_cast<int64_t>(boxes.size()) / 5;
  cuda::Boxes<T> call{boxes.data(), nullptr, num_rois, {}, c.problem.interpolation, T(kA), c.sampling_ratio, c.aligned};
  call.scales[0] = static_cast<T>(c.scale);
  const auto steps = [](const Layout& l) {
    return cuda::Steps{l.item, static_cast<int>(l.channel), static_cast<int>(l.row), static_cast<int>(l.column)};
  };
  const bool channels_last = c.channels_last && c.problem.channels > 1;
  const bool vectors = channels_last && c.problem.channels % cuda::vector_channels<T> == 0;
  const int height = static_cast<int>(c.problem.height), width = static_cast<int>(c.problem.width);
  const int bin_rows = static_cast<int>(c.problem.pooled_height),
            bin_columns = static_cast<int>(c.problem.pooled_width);
  const auto pyramid_of = [&](auto* data) {
    cuda::Pyramid<std::remove_pointer_t<decltype(data)>> pyramid{};
    pyramid.count = 1;
    pyramid.batch = static_cast<int>(c.problem.batch);
    pyramid.channels = static_cast<int>(c.problem.channels);
    pyramid.levels[0] = {data, steps(layout(c, height, width)), height, width, channels_last, vectors};
    return pyramid;
  };
  const auto bins_of = [&](auto* data) {
    return cuda::Bins<std::remove_pointer_t<decltype(data)>>{
        data, steps(layout(c, bin_rows, bin_columns)), bin_rows, bin_columns, vectors};
  };
  const int64_t bytes =
      cuda::workspace_bytes<S, T>(pyramid_of(static_cast<S*>(nullptr)), bin_rows, bin_columns, num_rois);
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(32, std::max<int64_t>(bytes, 32)), std::free);
  std::vector<simt::BlockOrder> orders{simt::BlockOrder::kForward};
  if (sizeof(S) == sizeof(float)) {
    orders.insert(orders.end(), {simt::BlockOrder::kReversed, simt::BlockOrder::kHostThreads});
  }
  for (const simt::BlockOrder order : orders) {
    simt::settings().order = order;
    run<S, T>(
        name, c, boxes, comparable,
        [&](const Buffer<S>& source, Buffer<S>& target) {
          cuda::launch_forward<S, T>(pyramid_of(source.data()), call, memory.get(), bins_of(target.data()), nullptr);
        },
        [&](const Buffer<S>& source, Buffer<S>& target) {
          cuda::launch_backward<S, T>(bins_of(source.data()), call, memory.get(), pyramid_of(target.data()), nullptr);
        });
  }
}

template <typename S>
void run_all(const Case& c, bool tiny) {
  using T = cpu::accumulator_t<S>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  const T last = static_cast<T>(c.problem.batch - 1);
  // clang-format off: one box per line
  Buffer<T> boxes{
      0, T(2.3), T(3.1), T(17.7), T(12.9), // ordinary
      last, -4, -3, 60, 80, // beyond every border
      last, 9, 8, 2, 1, // inverted
      0, 5, 5, 5, 5, // without area
      0, 4, 4, 5, 5, // one pixel
      last, -300, -300, -200, -200, // outside of the map
      0, 1, T(-0.5), T(30), T(0.5)}; // half across the upper border
  // clang-format on
  const int64_t comparable = static_cast<int64_t>(boxes.size()) / 5;
  for (const T extreme : {nan, inf, -inf, T(1e9), T(1e30)}) {
    boxes.insert(boxes.end(), {0, 1, 1, extreme, 9});
    boxes.insert(boxes.end(), {last, -extreme, -extreme, extreme, extreme});
  }
  if (tiny) {
    boxes.resize(2 * 5);
  }
  const int64_t compared = std::min(comparable, static_cast<int64_t>(boxes.size()) / 5);
  run_cuda<S>("CUDA", c, boxes, compared);
  run_cuda<S>("CUDA, no boxes", c, {}, 0);
  if (!tiny) {
    run_cpu<S>("CPU", c, boxes, compared, cpu::isa_default::kernels<S>());
    run_cpu<S>("CPU, no boxes", c, {}, 0, cpu::isa_default::kernels<S>());
#if defined(MRCNN_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      run_cpu<S>("AVX2", c, boxes, compared, cpu::isa_avx2::kernels<S>());
    }
#endif
  }
}

} // namespace

int main(int argc, char** argv) {
  const bool tiny = argc > 1 && std::string(argv[1]) == "tiny";
  std::vector<Problem> problems{{2, 3, 9, 14, 3, 2, Interpolation::kBicubic}};
  if (tiny) {
    // This problem has more than one tile in each direction.
    problems.push_back({1, 1, 35, 35, 9, 17, Interpolation::kBicubic});
  } else {
    problems.insert(
        problems.end(),
        {{1, 1, 1, 1, 1, 1, Interpolation::kBicubic},
         {1, 8, 1, 40, 2, 5, Interpolation::kBilinear},
         {2, 17, 34, 1, 9, 1, Interpolation::kBicubic},
         {2, 33, 12, 37, 7, 7, Interpolation::kBicubic},
         {1, 2, 20, 9, 10, 18, Interpolation::kBilinear},
         {1, 5, 70, 40, 1, 1, Interpolation::kBicubic},
         {1, 0, 4, 4, 2, 2, Interpolation::kBicubic}});
  }
  int64_t cases = 0;
  for (const Problem& problem : problems) {
    for (const bool channels_last : {false, true}) {
      for (const int64_t ratio : {int64_t(0), int64_t(2)}) {
        if (tiny && ratio == 2) {
          continue;
        }
        const Case c{problem, ratio, ratio == 0, channels_last, 0.5};
        run_all<float>(c, tiny);
        if (!tiny && ratio == 0) {
          run_all<double>(c, tiny);
          run_all<c10::Half>(c, tiny);
          run_all<c10::BFloat16>(c, tiny);
        }
        ++cases;
      }
    }
  }
  std::printf("%ld cases, %d failures\n", static_cast<long>(cases), failures);
  return failures > 0;
}
