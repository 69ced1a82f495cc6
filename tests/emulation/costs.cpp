// Runs the emulated CUDA kernels, and kernels that work as torchvision's, on one map. costs.py builds this file so that
// each access to memory calls costs_runtime.cpp, which counts what the accesses of a warp cost on a GPU.
//
//   costs NAME CHANNELS HEIGHT WIDTH ROIS CHANNELS_LAST SCALE < BOXES    NAME is ours, theirs or known
//
// BOXES are float32 rows (batch index, x1, y1, x2, y2) of two images. The bins are 7 x 7. "known" runs a kernel whose
// costs are known instead.
#define MRCNN_CUDA_EMULATION
#include "simt.h"

extern "C" {
void costs_begin_kernel(const char* name);
void costs_name(const void* begin, int64_t bytes, const char* name, bool is_shared);
void costs_add(const void* address, int64_t bytes);
void costs_print();
}

template <typename T>
T* named(void* memory, int64_t count, const char* name) {
  costs_name(memory, count * sizeof(T), name, true);
  return static_cast<T*>(memory);
}

#undef CUDA_SHARED
#define CUDA_SHARED(type, name, count) \
  type* name = named<type>(simt::Block::current()->shared(sizeof(type) * (count)), count, #name)
#undef CUDA_LAUNCH
#define CUDA_LAUNCH(kernel, blocks, threads, stream, ...) \
  (costs_begin_kernel(#kernel), simt::launch(blocks, threads, [&] { kernel(__VA_ARGS__); }))

#include "cuda/roi_align_launch.cu"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using namespace mrcnn_plugin;
using namespace mrcnn_plugin::cuda;

constexpr int kBins = 7;
constexpr int kImages = 2;

struct Sizes {
  int channels, height, width, rois;
  float scale;
};

// A thread has one bin, and reads the four pixels around each sample. With `add`, it adds its gradient to them instead.
template <bool add>
__global__ void theirs(const Sizes& sizes, const float* boxes, float* maps, float* bins) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= sizes.rois * sizes.channels * kBins * kBins) {
    return;
  }
  const int q = i % kBins, p = i / kBins % kBins, c = i / (kBins * kBins) % sizes.channels;
  const float* box = boxes + i / (kBins * kBins * sizes.channels) * 5;
  float* map = maps + (static_cast<int64_t>(load_global(box)) * sizes.channels + c) * sizes.height * sizes.width;
  float start[2], bin[2], grid[2];
  for (int axis = 0; axis < 2; ++axis) { // x, y
    start[axis] = load_global(box + 1 + axis) * sizes.scale - 0.5f;
    bin[axis] = (load_global(box + 3 + axis) * sizes.scale - 0.5f - start[axis]) / kBins;
    grid[axis] = std::ceil(bin[axis]);
  }
  const float gradient = add ? load_global(bins + i) : 0;
  float sum = 0;
  for (int iy = 0; iy < grid[1]; ++iy) {
    for (int ix = 0; ix < grid[0]; ++ix) {
      float y = start[1] + (p + (iy + 0.5f) / grid[1]) * bin[1], x = start[0] + (q + (ix + 0.5f) / grid[0]) * bin[0];
      if (y < -1 || y > sizes.height || x < -1 || x > sizes.width) {
        continue;
      }
      y = std::min(std::max(y, 0.0f), sizes.height - 1.0f);
      x = std::min(std::max(x, 0.0f), sizes.width - 1.0f);
      const int low_y = y, low_x = x;
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        const int row = std::min(low_y + tap / 2, sizes.height - 1),
                  column = std::min(low_x + tap % 2, sizes.width - 1);
        const float wy = tap / 2 == 1 ? y - low_y : 1 - (y - low_y), wx = tap % 2 == 1 ? x - low_x : 1 - (x - low_x);
        float* pixel = map + row * sizes.width + column;
        const float weight = wy * wx / (grid[0] * grid[1]);
        if (add) {
          costs_add(pixel, sizeof(float));
          const simt::Unwatched unwatched;
          *pixel += weight * gradient;
        } else {
          sum += weight * load_global(pixel);
        }
      }
    }
  }
  if (!add) {
    store_global(bins + i, sum);
  }
}

// One access for each kind of cost that tests/test_emulation.py knows.
__global__ void known(float* floats) {
  CUDA_SHARED(float, neighbours, 32);
  CUDA_SHARED(float, one_bank, 32 * 32);
  CUDA_SHARED(float, vectors, 4 * 32);
  const int lane = threadIdx.x;
  neighbours[lane] = load_global(floats + lane);
  one_bank[32 * lane] = load_global(floats + 8 * lane);
  as_pack<float, 4>(vectors + 4 * lane) = load_global(&as_pack<float, 4>(floats + 4 * lane));
  if (lane < 8) {
    store_global(floats + lane, neighbours[0]);
  }
}

// Returns memory for `size` numbers, with the alignment that torch gives its own. It is never freed.
template <typename T>
T* array(int64_t size, const char* name) {
  T* values = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64));
  costs_name(values, size * sizeof(T), name, false);
  return values;
}

} // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  if (name == "known") {
    float* const floats = array<float>(kWarp * 8, "floats");
    CUDA_LAUNCH(known, 1, kWarp, nullptr, floats);
    costs_print();
    return 0;
  }
  const Sizes sizes{
      std::atoi(arguments[2]), std::atoi(arguments[3]), std::atoi(arguments[4]), std::atoi(arguments[5]),
      static_cast<float>(std::atof(arguments[7]))};
  const bool channels_last = std::atoi(arguments[6]);
  const int pixels = sizes.height * sizes.width;
  float* const rois = array<float>(sizes.rois * 5, "boxes");
  if (std::fread(rois, 5 * sizeof(float), sizes.rois, stdin) != static_cast<size_t>(sizes.rois)) {
    return 1;
  }
  const int64_t num_bins = int64_t(sizes.rois) * sizes.channels * kBins * kBins;
  const int64_t map_size = int64_t(kImages) * sizes.channels * pixels;
  float* const map = array<float>(map_size, "map");
  float* const bins = array<float>(num_bins, "bins");
  for (int64_t i = 0; i < map_size; ++i) {
    map[i] = std::sin(static_cast<float>(i));
  }
  if (name == "theirs") {
    const int64_t blocks = (num_bins + kThreads - 1) / kThreads;
    CUDA_LAUNCH(theirs<false>, blocks, kThreads, nullptr, sizes, rois, map, bins);
    std::printf("checksum %.6f\n", bins[num_bins / 3]);
    CUDA_LAUNCH(theirs<true>, blocks, kThreads, nullptr, sizes, rois, map, bins);
    costs_print();
    return 0;
  }
  Pyramid<float> pyramid{};
  auto& level = pyramid.levels[0];
  level.data = map;
  level.height = sizes.height;
  level.width = sizes.width;
  level.channels_last = level.vectors = channels_last;
  const int C = sizes.channels;
  level.steps = channels_last ? Steps{int64_t(pixels) * C, 1, sizes.width * C, C}
                              : Steps{int64_t(pixels) * C, pixels, sizes.width, 1};
  pyramid.count = 1;
  pyramid.batch = kImages;
  pyramid.channels = C;
  Pyramid<const float> source{};
  source.levels[0] = {level.data, level.steps, level.height, level.width, channels_last, channels_last};
  source.count = 1;
  source.batch = kImages;
  source.channels = C;
  Boxes<float> boxes{};
  boxes.data = rois;
  boxes.count = sizes.rois;
  boxes.scales[0] = sizes.scale;
  boxes.interpolation = Interpolation::kBicubic;
  boxes.a = -0.5f;
  boxes.aligned = true;
  const int P = kBins * kBins;
  const Steps steps = channels_last ? Steps{int64_t(C) * P, 1, kBins * C, C} : Steps{int64_t(C) * P, P, kBins, 1};
  char* const memory = array<char>(workspace_bytes<float, float>(pyramid, kBins, kBins, sizes.rois), "weights");
  launch_forward<float, float>(source, boxes, memory, Bins<float>{bins, steps, kBins, kBins, channels_last}, nullptr);
  std::printf("checksum %.6f\n", bins[num_bins / 3]);
  launch_backward<float, float>(
      Bins<const float>{bins, steps, kBins, kBins, channels_last}, boxes, memory, pyramid, nullptr);
  costs_print();
}
