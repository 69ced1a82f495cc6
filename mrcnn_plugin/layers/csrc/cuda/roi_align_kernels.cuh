// RoIAlign on CUDA, out[k, c] = Wy[k] . F[c] . Wx[k]^T, as on the CPU (../cpu).
//
// weights_kernel writes the rows of Wy and Wx to memory, folded over the samples, once per RoI. The others work on
// tiles: the weights of kBinRows x kBinColumns bins and a tile of the map are in shared memory as dense little matrices,
// so that nothing depends on how large a RoI, a band or the number of bins is. A thread has one column of the tile and one
// channel; columns run along the threads of a warp where they lie together in memory (NCHW), else channels do
// (channels_last). A weight of zero is skipped: a pixel that a bin does not read cannot make it NaN.
//
// Never run on a GPU so far. The tests run this source on the CPU.
#pragma once

#include "../interpolation.h"
#include "../problem.h"
#include "compat.cuh"
#include "roi_align_launch.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace mrcnn_plugin::cuda {

constexpr int kThreads = 256;
constexpr int kWeightThreads = 64;
constexpr int kBinRows = 8; // of a tile: sums in registers
constexpr int kBinColumns = 16;
constexpr int kMapRows = 32; // whose weights are in shared memory at a time
constexpr int kGatherRows = 8; // of the map in a block of the gather: sums in registers

template <bool channels_last>
struct Tile {
  static constexpr int columns = channels_last ? 8 : 32;
  static constexpr int channels = kThreads / columns;
  // Bins of a thread, all of its channel.
  static constexpr int bins = kBinRows * kBinColumns / columns;
};

// The pixels [first, first + count) of a bin, whose weights start at `offset` of the RoI's.
struct BinWeights {
  int64_t first;
  int64_t count;
  int64_t offset;
};

struct Roi {
  int64_t image;
  Range rows; // that any bin reads
  Range columns;
};

// What weights_kernel writes.
template <typename T>
struct Workspace {
  Roi* rois; // [count]
  BinWeights* bins; // [count, pooled_height + pooled_width]
  T* weights; // [count, weights_per_roi]
};

// Samples of different bins do not overlap, so that the bands of an axis have no more than its pixels and 5 more per bin
// between them: twice the pixels, since a box so large that its bins are rounded to multiples of the map can have two
// neighbours that cover it.
MRCNN_HOST_DEVICE int64_t weights_per_roi(const Problem& problem) {
  return 2 * (problem.height + problem.width) + 5 * (problem.pooled_height + problem.pooled_width);
}

MRCNN_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

MRCNN_HOST_DEVICE int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

MRCNN_HOST_DEVICE int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Makes `range` reach over [begin, begin + count).
__device__ inline void extend(Range& range, int64_t begin, int64_t count) {
  if (count > 0) {
    const bool is_empty = range.begin == range.end;
    range.end = is_empty ? begin + count : larger(range.end, begin + count);
    range.begin = is_empty ? begin : smaller(range.begin, begin);
  }
}

// A block per RoI, a thread per bin.
template <typename T>
__global__ void weights_kernel(Problem problem, Boxes<T> boxes, Workspace<T> workspace) {
  CUDA_SHARED(int64_t, firsts, kWeightThreads);
  CUDA_SHARED(int64_t, counts, kWeightThreads);
  const int64_t capacity = weights_per_roi(problem);
  for (int64_t k = blockIdx.x; k < boxes.count; k += gridDim.x) {
    BinWeights* bin = workspace.bins + k * (problem.pooled_height + problem.pooled_width);
    Roi* roi = workspace.rois + k;
    int64_t used = 0;
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t size = axis == 0 ? problem.height : problem.width;
      const int64_t bins = axis == 0 ? problem.pooled_height : problem.pooled_width;
      const T* box = boxes.data + k * 5 + (axis == 0 ? 2 : 1);
      const Axis<T> samples = make_axis(
          load_global(box), load_global(box + 2), boxes.spatial_scale, bins, boxes.sampling_ratio, boxes.aligned);
      Range reach{0, 0};
      for (int64_t first = 0; first < bins; first += kWeightThreads) {
        const int64_t p = first + threadIdx.x;
        Band band{0, 0, 0, 0};
        if (p < bins) {
          band = bin_band(samples, p, size, problem.interpolation);
        }
        firsts[threadIdx.x] = band.first;
        counts[threadIdx.x] = band.count;
        __syncthreads();
        int64_t offset = used;
        for (int i = 0; i < kWeightThreads; ++i) {
          offset += i < static_cast<int>(threadIdx.x) ? counts[i] : 0;
          used += counts[i];
          extend(reach, firsts[i], counts[i]);
        }
        if (p < bins) {
          // Does not happen; what memory is written does not depend on that.
          if (offset + band.count > capacity) {
            band.count = band.samples = 0;
          }
          store_global(&bin[p].first, band.first);
          store_global(&bin[p].count, band.count);
          store_global(&bin[p].offset, offset);
          bin_weights(
              samples, p, band, size, problem.interpolation, boxes.a, workspace.weights + k * capacity + offset);
        }
        __syncthreads();
      }
      if (threadIdx.x == 0) {
        Range* range = axis == 0 ? &roi->rows : &roi->columns;
        store_global(&range->begin, reach.begin);
        store_global(&range->end, reach.end);
      }
      bin += bins;
    }
    if (threadIdx.x == 0) {
      store_global(&roi->image, static_cast<int64_t>(load_global(boxes.data + k * 5)));
    }
  }
}

// The weights of the bins [p, p + kBinRows) x [q, q + kBinColumns) of a RoI. What lies beyond its bins reads nothing.
template <typename T>
struct TileWeights {
  const BinWeights* bins; // in shared memory: of the rows, then of the columns
  const T* weights;
  Range rows; // that the bins read
  Range columns;

  // All threads together. `shared` has room for kBinRows + kBinColumns.
  __device__ TileWeights(
      const Problem& problem, const Workspace<T>& workspace, int64_t k, int64_t p, int64_t q, BinWeights* shared)
      : bins(shared), weights(workspace.weights + k * weights_per_roi(problem)), rows{0, 0}, columns{0, 0} {
    const BinWeights* bin = workspace.bins + k * (problem.pooled_height + problem.pooled_width);
    const int i = threadIdx.x;
    __syncthreads(); // nobody uses the last tile's any more
    if (i < kBinRows) {
      shared[i] = load_bin(bin, p + i, problem.pooled_height);
    } else if (i < kBinRows + kBinColumns) {
      shared[i] = load_bin(bin + problem.pooled_height, q + i - kBinRows, problem.pooled_width);
    }
    __syncthreads();
    for (int j = 0; j < kBinRows + kBinColumns; ++j) {
      extend(j < kBinRows ? rows : columns, shared[j].first, shared[j].count);
    }
  }

  __device__ static BinWeights load_bin(const BinWeights* bin, int64_t i, int64_t count) {
    if (i >= count) {
      return {0, 0, 0};
    }
    return {load_global(&bin[i].first), load_global(&bin[i].count), load_global(&bin[i].offset)};
  }

  __device__ T at(const BinWeights& bin, int64_t pixel) const {
    const int64_t i = pixel - bin.first;
    return i >= 0 && i < bin.count ? load_global(weights + bin.offset + i) : T(0);
  }

  // wy[row][bin], all threads together.
  __device__ void load_rows(int64_t row, int rows, T* wy) const {
    for (int i = threadIdx.x; i < rows * kBinRows; i += kThreads) {
      wy[i] = at(bins[i % kBinRows], row + i / kBinRows);
    }
  }

  // wx[bin][column], all threads together.
  template <int count>
  __device__ void load_columns(int64_t column, T* wx) const {
    for (int i = threadIdx.x; i < kBinColumns * count; i += kThreads) {
      wx[i] = at(bins[kBinRows + i / count], column + i % count);
    }
  }
};

// ---- the place of a thread --------------------------------------------------------------------------------------------

template <bool channels_last>
struct Place {
  using Shape = Tile<channels_last>;

  int x;
  int c;

  __device__ Place()
      : x(channels_last ? threadIdx.x / Shape::channels : threadIdx.x % Shape::columns),
        c(channels_last ? threadIdx.x % Shape::channels : threadIdx.x / Shape::columns) {}

  // The i-th bin of the thread.
  __device__ int bin_row(int i) const {
    return (x + Shape::columns * i) / kBinColumns;
  }
  __device__ int bin_column(int i) const {
    return (x + Shape::columns * i) % kBinColumns;
  }
  // Shared arrays over (channel, bin row, column or bin column), so that a warp's accesses lie together.
  __device__ int strip(int p, int column) const {
    return channels_last ? (p * Shape::columns + column) * Shape::channels + c
                         : (c * kBinRows + p) * Shape::columns + column;
  }
  __device__ int bin(int p, int q) const {
    return channels_last ? (p * kBinColumns + q) * Shape::channels + c : (c * kBinRows + p) * kBinColumns + q;
  }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

// A block per RoI and group of channels. Reads each pixel once for kBinRows x kBinColumns bins.
template <typename scalar_t, typename T, bool channels_last>
__global__ void forward_kernel(
    Problem problem, int64_t num_rois, Workspace<T> workspace, const scalar_t* map, Strides map_strides, scalar_t* output,
    Strides output_strides) {
  using Shape = Tile<channels_last>;
  CUDA_SHARED(BinWeights, tile_bins, kBinRows + kBinColumns);
  CUDA_SHARED(T, wy, kMapRows * kBinRows);
  CUDA_SHARED(T, wx, kBinColumns * Shape::columns);
  CUDA_SHARED(T, strip, kBinRows * kThreads);
  const Place<channels_last> place;
  const int64_t groups = divide_up(problem.channels, Shape::channels);
  for (int64_t unit = blockIdx.x; unit < num_rois * groups; unit += gridDim.x) {
    const int64_t k = unit / groups;
    const int64_t channel = unit % groups * Shape::channels + place.c;
    const bool has_channel = channel < problem.channels;
    const int64_t image = load_global(&workspace.rois[k].image);
    const scalar_t* plane = map + image * map_strides.item + channel * map_strides.channel;
    for (int64_t p0 = 0; p0 < problem.pooled_height; p0 += kBinRows) {
      for (int64_t q0 = 0; q0 < problem.pooled_width; q0 += kBinColumns) {
        const TileWeights<T> tile(problem, workspace, k, p0, q0, tile_bins);
        const Range rows = tile.rows, columns = tile.columns;
        T sums[Shape::bins] = {};
        for (int64_t column = columns.begin; column < columns.end; column += Shape::columns) {
          tile.template load_columns<Shape::columns>(column, wx);
          T strip_column[kBinRows] = {};
          for (int64_t row = rows.begin; row < rows.end; row += kMapRows) {
            const int num_rows = static_cast<int>(smaller(kMapRows, rows.end - row));
            __syncthreads();
            tile.load_rows(row, num_rows, wy);
            __syncthreads();
            if (has_channel && column + place.x < columns.end) {
              const scalar_t* pixel = plane + row * map_strides.row + (column + place.x) * map_strides.column;
              for (int r = 0; r < num_rows; ++r, pixel += map_strides.row) {
                const T value = static_cast<T>(load_global(pixel));
                for (int p = 0; p < kBinRows; ++p) {
                  const T weight = wy[r * kBinRows + p];
                  if (weight != T(0)) {
                    strip_column[p] += weight * value;
                  }
                }
              }
            }
          }
          for (int p = 0; p < kBinRows; ++p) {
            strip[place.strip(p, place.x)] = strip_column[p];
          }
          __syncthreads();
          for (int i = 0; i < Shape::bins; ++i) {
            for (int j = 0; j < Shape::columns; ++j) {
              const T weight = wx[place.bin_column(i) * Shape::columns + j];
              if (weight != T(0)) {
                sums[i] += weight * strip[place.strip(place.bin_row(i), j)];
              }
            }
          }
          __syncthreads();
        }
        for (int i = 0; i < Shape::bins; ++i) {
          const int64_t p = p0 + place.bin_row(i), q = q0 + place.bin_column(i);
          if (has_channel && p < problem.pooled_height && q < problem.pooled_width) {
            store_global(
                output + k * output_strides.item + channel * output_strides.channel + p * output_strides.row +
                    q * output_strides.column,
                static_cast<scalar_t>(sums[i]));
          }
        }
      }
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// The gradients of a tile of bins, by the threads that own them.
template <typename scalar_t, typename T, bool channels_last>
__device__ inline void load_bins(
    const Problem& problem, const Place<channels_last>& place, const scalar_t* grad, const Strides& strides, int64_t k,
    int64_t channel, int64_t p0, int64_t q0, T* bins) {
  for (int i = 0; i < Tile<channels_last>::bins; ++i) {
    const int64_t p = p0 + place.bin_row(i), q = q0 + place.bin_column(i);
    const bool is_bin = channel < problem.channels && p < problem.pooled_height && q < problem.pooled_width;
    bins[place.bin(place.bin_row(i), place.bin_column(i))] = is_bin
        ? static_cast<T>(load_global(
              grad + k * strides.item + channel * strides.channel + p * strides.row + q * strides.column))
        : T(0);
  }
}

// strip[p] = sum_q Wx[q, x] . bins[p][q] at the thread's column. Returns whether any bin reads the column.
template <typename T, bool channels_last>
__device__ inline bool strip_of_bins(const Place<channels_last>& place, const T* wx, const T* bins, T (&strip)[kBinRows]) {
  bool is_read = false;
  for (int p = 0; p < kBinRows; ++p) {
    strip[p] = T(0);
  }
  for (int q = 0; q < kBinColumns; ++q) {
    const T weight = wx[q * Tile<channels_last>::columns + place.x];
    if (weight != T(0)) {
      is_read = true;
      for (int p = 0; p < kBinRows; ++p) {
        strip[p] += weight * bins[place.bin(p, q)];
      }
    }
  }
  return is_read;
}

// A block per RoI and group of channels adds to the map: one atomic addition per pixel for kBinRows x kBinColumns bins.
template <typename scalar_t, typename T, bool channels_last>
__global__ void backward_atomic_kernel(
    Problem problem, int64_t num_rois, Workspace<T> workspace, const scalar_t* grad, Strides grad_strides, T* map,
    Strides map_strides) {
  using Shape = Tile<channels_last>;
  CUDA_SHARED(BinWeights, tile_bins, kBinRows + kBinColumns);
  CUDA_SHARED(T, wy, kMapRows * kBinRows);
  CUDA_SHARED(T, wx, kBinColumns * Shape::columns);
  CUDA_SHARED(T, bins, kBinRows * kBinColumns * Shape::channels);
  const Place<channels_last> place;
  const int64_t groups = divide_up(problem.channels, Shape::channels);
  for (int64_t unit = blockIdx.x; unit < num_rois * groups; unit += gridDim.x) {
    const int64_t k = unit / groups;
    const int64_t channel = unit % groups * Shape::channels + place.c;
    const int64_t image = load_global(&workspace.rois[k].image);
    T* plane = map + image * map_strides.item + channel * map_strides.channel;
    for (int64_t p0 = 0; p0 < problem.pooled_height; p0 += kBinRows) {
      for (int64_t q0 = 0; q0 < problem.pooled_width; q0 += kBinColumns) {
        const TileWeights<T> tile(problem, workspace, k, p0, q0, tile_bins);
        const Range rows = tile.rows, columns = tile.columns;
        if (rows.begin == rows.end) {
          continue; // the barriers that keep the columns' weights apart are in the loop over rows
        }
        load_bins(problem, place, grad, grad_strides, k, channel, p0, q0, bins);
        for (int64_t column = columns.begin; column < columns.end; column += Shape::columns) {
          tile.template load_columns<Shape::columns>(column, wx);
          __syncthreads();
          T strip[kBinRows];
          const bool is_read =
              strip_of_bins(place, wx, bins, strip) && channel < problem.channels;
          for (int64_t row = rows.begin; row < rows.end; row += kMapRows) {
            const int num_rows = static_cast<int>(smaller(kMapRows, rows.end - row));
            tile.load_rows(row, num_rows, wy);
            __syncthreads();
            T* pixel = plane + row * map_strides.row + (column + place.x) * map_strides.column;
            for (int r = 0; r < num_rows && is_read; ++r, pixel += map_strides.row) {
              T sum = T(0);
              bool row_is_read = false;
              for (int p = 0; p < kBinRows; ++p) {
                const T weight = wy[r * kBinRows + p];
                if (weight != T(0)) {
                  row_is_read = true;
                  sum += weight * strip[p];
                }
              }
              if (row_is_read) {
                atomic_add_global(pixel, sum);
              }
            }
            __syncthreads();
          }
        }
      }
    }
  }
}

__device__ inline bool overlap(const Range& a, int64_t begin, int64_t end) {
  return a.begin < end && begin < a.end;
}

// A block per image, tile of the map and group of channels gathers from the RoIs in their order, and writes each pixel
// once: the same bits every time.
template <typename scalar_t, typename T, bool channels_last>
__global__ void backward_gather_kernel(
    Problem problem, int64_t num_rois, Workspace<T> workspace, const scalar_t* grad, Strides grad_strides, scalar_t* map,
    Strides map_strides) {
  using Shape = Tile<channels_last>;
  CUDA_SHARED(BinWeights, tile_bins, kBinRows + kBinColumns);
  CUDA_SHARED(T, wy, kGatherRows * kBinRows);
  CUDA_SHARED(T, wx, kBinColumns * Shape::columns);
  CUDA_SHARED(T, bins, kBinRows * kBinColumns * Shape::channels);
  CUDA_SHARED(bool, touches, kThreads);
  const Place<channels_last> place;
  const int64_t groups = divide_up(problem.channels, Shape::channels);
  const int64_t tiles_x = divide_up(problem.width, Shape::columns);
  const int64_t tiles_y = divide_up(problem.height, kGatherRows);
  for (int64_t unit = blockIdx.x; unit < problem.batch * tiles_y * tiles_x * groups; unit += gridDim.x) {
    const int64_t channel = unit % groups * Shape::channels + place.c;
    const int64_t column = unit / groups % tiles_x * Shape::columns;
    const int64_t row = unit / groups / tiles_x % tiles_y * kGatherRows;
    const int64_t image = unit / groups / tiles_x / tiles_y;
    T sums[kGatherRows] = {};
    for (int64_t first = 0; first < num_rois; first += kThreads) {
      const int64_t mine = first + threadIdx.x;
      bool is_touched = false;
      if (mine < num_rois) {
        const Roi* roi = workspace.rois + mine;
        const Range rows{load_global(&roi->rows.begin), load_global(&roi->rows.end)};
        const Range columns{load_global(&roi->columns.begin), load_global(&roi->columns.end)};
        is_touched = load_global(&roi->image) == image && overlap(rows, row, row + kGatherRows) &&
            overlap(columns, column, column + Shape::columns);
      }
      touches[threadIdx.x] = is_touched;
      __syncthreads();
      for (int64_t k = first; k < smaller(first + kThreads, num_rois); ++k) {
        if (!touches[k - first]) {
          continue;
        }
        for (int64_t p0 = 0; p0 < problem.pooled_height; p0 += kBinRows) {
          for (int64_t q0 = 0; q0 < problem.pooled_width; q0 += kBinColumns) {
            const TileWeights<T> tile(problem, workspace, k, p0, q0, tile_bins);
            if (!overlap(tile.rows, row, row + kGatherRows) ||
                !overlap(tile.columns, column, column + Shape::columns)) {
              continue;
            }
            tile.load_rows(row, kGatherRows, wy);
            tile.template load_columns<Shape::columns>(column, wx);
            load_bins(problem, place, grad, grad_strides, k, channel, p0, q0, bins);
            __syncthreads();
            T strip[kBinRows];
            if (strip_of_bins(place, wx, bins, strip)) {
              for (int r = 0; r < kGatherRows; ++r) {
                for (int p = 0; p < kBinRows; ++p) {
                  const T weight = wy[r * kBinRows + p];
                  if (weight != T(0)) {
                    sums[r] += weight * strip[p];
                  }
                }
              }
            }
          }
        }
      }
      __syncthreads();
    }
    if (channel < problem.channels && column + place.x < problem.width) {
      scalar_t* pixel = map + image * map_strides.item + channel * map_strides.channel + row * map_strides.row +
          (column + place.x) * map_strides.column;
      for (int r = 0; r < kGatherRows && row + r < problem.height; ++r, pixel += map_strides.row) {
        store_global(pixel, static_cast<scalar_t>(sums[r]));
      }
    }
  }
}

} // namespace mrcnn_plugin::cuda
