// The CUDA kernels: out[k, c] = Wy[k] . F[c] . Wx[k]^T for all levels in one call.
//
// The bins of a RoI are cut into bin tiles of at most kTileBins x kTileBins bins. A map row or map column that a bin
// tile reads has a record of kRecord numbers: its weight in each bin row or bin column of the tile, and a mask of the
// weights that are not zero. A kernel therefore finds a weight without a search, and bands may have any length.
//
// taps_kernel writes the records of all RoIs. They are computed once and serve all channels.
//
// forward_kernel has a block for each RoI, row of bin tiles, and chunk of channels. In the y pass, a thread has one map
// column and some channels. It reads each pixel once for a group of bin columns, and adds it to the bin rows in its
// record. The resulting strip of bin rows x map columns lies in shared memory, and the x pass makes bins from it.
//
// backward_kernel has a block for each map tile and chunk of channels. A map tile is a rectangle of pixels. The block
// finds the bin tiles that touch it. One thread adds up the contributions of the RoIs to a pixel, in the order of the
// RoIs and in registers. Each pixel is therefore written once, without atomic additions, and gets the same bits in
// every run. The map need not be cleared first.
//
// When a warp reads or writes maps, its threads lie along contiguous memory: columns for NCHW, channels for
// channels_last.
#pragma once

#include "../interpolation.h"
#include "../problem.h"
#include "compat.cuh"
#include "roi_align_launch.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace mrcnn_plugin::cuda {

constexpr int kTileBins = 7; // most bins of a bin tile along an axis
constexpr int kHalf = 4; // bin rows in the first half of a bin tile
constexpr int kPlaces = static_cast<int>(kMaxLevels); // places per image, one for each level
constexpr int kRecord = 8; // numbers of a record: kTileBins weights, then the mask
constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kGroups = 16; // groups of vector_channels channels in a block
constexpr int kColumns = kThreads / kGroups; // map columns of a block
constexpr int kGatherRows = 8; // map rows of a map tile, whose sums are registers
constexpr int kBatch = 2; // bin tiles that backward_kernel holds in shared memory at a time
// Map rows whose records forward_kernel holds at a time. With more, fewer blocks would fit the 64 to 100 KB of shared
// memory of sm_75, sm_86, sm_89 and sm_120.
constexpr int kStagedRows = 48;
constexpr int kGroupBins = 16; // most bin columns that forward_kernel makes at a time
constexpr int kFewBlocks = 1000; // fewer blocks of backward_kernel do not fill a GPU evenly
constexpr int kTapThreads = 2 * kWarp; // one warp per axis
constexpr int kTapTiles = kWarp / kTileBins; // bin tiles that a warp of taps_kernel works on at a time
constexpr int kRun = 16; // most weights of a band that taps_kernel holds in shared memory
constexpr int kShort = 8; // a band of at most this many pixels is short

// The most blocks that a multiprocessor can hold without spilling registers. For channels_last, backward_kernel has
// more registers in fewer blocks, so that more of its reads are under way.
template <typename T, bool channels_last>
constexpr int forward_blocks = sizeof(T) == 8 ? 2
    : channels_last                           ? CUDA_SINCE(860, 4, 2)
                                              : CUDA_SINCE(860, 3, 2);
template <typename T, bool channels_last>
constexpr int backward_blocks = sizeof(T) == 8 || channels_last ? 2 : CUDA_SINCE(800, 3, 2);

template <typename T>
MRCNN_HOST_DEVICE T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
MRCNN_HOST_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
MRCNN_HOST_DEVICE constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}

// How the bins of an axis are cut into tiles. All tiles have the same size, but the last one may be smaller.
struct Tiling {
  int bins;
  int tiles;
  int size; // bins of a tile
};

MRCNN_HOST_DEVICE Tiling make_tiling(int bins) {
  const int tiles = divide_up(bins, kTileBins);
  return {bins, tiles, divide_up(bins, tiles)};
}

// A bin tile of a RoI, and the pixels that it reads.
struct alignas(16) Tile {
  int place; // image * kPlaces + level, or -1 if the batch index or level of the RoI is invalid
  int roi;
  int tile_y;
  int tile_x;
  int y_begin;
  int y_end;
  int x_begin;
  int x_end;
};

// The pixels [first, first + count) of a band.
struct Band32 {
  int first;
  int count;
};

// The output of taps_kernel.
template <typename T>
struct Workspace {
  Tiling y;
  Tiling x;
  int height; // most rows of a map
  int width; // most columns of a map
  int num_rois;
  Tile* tiles; // [num_rois, y.tiles, x.tiles]
  Band32* bands; // bands of the bin columns, [num_rois, x.bins]
  T* short_weights; // weights of the short bands of bin columns, else zero, [num_rois, x.bins, kShort]
  T* row_records; // [num_rois, y.tiles, height, kRecord]
  T* column_records; // [num_rois, x.tiles, width, kRecord]

  MRCNN_HOST_DEVICE T* row_record(int roi, int tile) const {
    return row_records + (static_cast<int64_t>(roi) * y.tiles + tile) * height * kRecord;
  }
  MRCNN_HOST_DEVICE T* column_record(int roi, int tile) const {
    return column_records + (static_cast<int64_t>(roi) * x.tiles + tile) * width * kRecord;
  }
};

// The sizes of the maps.
struct Extents {
  int heights[kMaxLevels];
  int widths[kMaxLevels];
  int levels;
  int batch;
};

// Numbers that one instruction reads or writes.
template <typename T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

template <typename T, int count>
MRCNN_HOST_DEVICE Pack<T, count>& as_pack(T* p) {
  return *reinterpret_cast<Pack<T, count>*>(p);
}

template <typename T, int count>
MRCNN_HOST_DEVICE const Pack<T, count>& as_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, count>*>(p);
}

// A record holds its mask as the bits of an integer in the place of a number.
template <typename T>
__device__ inline T mask_to_number(int mask) {
  T number = T(0);
  memcpy(&number, &mask, sizeof(mask));
  return number;
}

template <typename T>
__device__ inline int number_to_mask(T number) {
  int mask;
  memcpy(&mask, &number, sizeof(mask));
  return mask;
}

template <typename T>
__device__ inline void load_record(const T* shared, T (&record)[kRecord]) {
  constexpr int kPack = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < kRecord; i += kPack) {
    const Pack<T, kPack> pack = as_pack<T, kPack>(shared + i);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      record[i + j] = pack.values[j];
    }
  }
}

// Writes number(0) ... number(kRecord - 1) to global memory.
template <typename T, typename Number>
__device__ inline void store_numbers(T* target, const Number& number) {
  constexpr int kPack = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < kRecord; i += kPack) {
    Pack<T, kPack> pack;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      pack.values[j] = number(i + j);
    }
    store_global(&as_pack<T, kPack>(target + i), pack);
  }
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Extends the range [begin, end) so that it covers a band.
__device__ inline void extend(int& begin, int& end, int first, int count) {
  if (count > 0) {
    const bool is_empty = begin == end;
    end = is_empty ? first + count : larger(end, first + count);
    begin = is_empty ? first : smaller(begin, first);
  }
}

// A block has a RoI, and a warp has an axis. A thread first computes the weights of a bin, and then writes the record
// of a row or column.
template <typename T>
__global__ void CUDA_BOUNDS(kTapThreads, 12)
    taps_kernel(CUDA_PARAMETER Extents extents, CUDA_PARAMETER Boxes<T> boxes, CUDA_PARAMETER Workspace<T> workspace) {
  CUDA_SHARED(int, firsts, kTapThreads);
  CUDA_SHARED(int, counts, kTapThreads);
  CUDA_SHARED(T, runs, kTapThreads * kRun);
  const int axis = threadIdx.x / kWarp; // 0: rows, 1: columns
  const int lane = threadIdx.x % kWarp;
  const Tiling tiling = axis == 0 ? workspace.y : workspace.x;
  const int others = axis == 0 ? workspace.x.tiles : workspace.y.tiles;
  const int longest = larger(workspace.y.tiles, workspace.x.tiles);
  for (int k = blockIdx.x; k < workspace.num_rois; k += gridDim.x) {
    const T* box = boxes.data + static_cast<int64_t>(k) * 5;
    const T image = load_global(box);
    const int64_t given_level = boxes.levels == nullptr ? 0 : load_global(boxes.levels + k);
    const bool has_level = given_level >= 0 && given_level < extents.levels;
    const int level = has_level ? static_cast<int>(given_level) : 0;
    const bool is_valid =
        has_level && image >= T(0) && image < static_cast<T>(extents.batch) && image == std::floor(image);
    const int size = axis == 0 ? extents.heights[level] : extents.widths[level];
    const T* low = box + (axis == 0 ? 2 : 1);
    const Axis<T> samples = make_axis(
        load_global(low), load_global(low + 2), boxes.scales[level], tiling.bins, boxes.sampling_ratio, boxes.aligned);
    for (int first_tile = 0; first_tile < longest; first_tile += kTapTiles) {
      const int tile = first_tile + lane / kTileBins, slot = lane % kTileBins;
      const int p = tile * tiling.size + slot;
      const bool has_tile = lane < kTapTiles * kTileBins && tile < tiling.tiles;
      const bool has_bin = has_tile && slot < tiling.size && p < tiling.bins;
      Band band{0, 0, 0, 0};
      if (has_bin && is_valid) {
        band = bin_band(samples, p, size, boxes.interpolation);
      }
      const int first = static_cast<int>(band.first), count = static_cast<int>(band.count);
      if (count > 0 && count <= kRun) {
        bin_weights(samples, p, band, size, boxes.interpolation, boxes.a, runs + threadIdx.x * kRun);
      }
      firsts[threadIdx.x] = first;
      counts[threadIdx.x] = count;
      __syncthreads();
      if (has_bin && axis == 1) {
        const int64_t i = static_cast<int64_t>(k) * tiling.bins + p;
        store_global(workspace.bands + i, Band32{first, count});
        store_numbers(workspace.short_weights + i * kShort, [&](int j) {
          return j < count && count <= kShort ? runs[threadIdx.x * kRun + j] : T(0);
        });
      }
      const auto records_of = [&](int t) {
        return axis == 0 ? workspace.row_record(k, t) : workspace.column_record(k, t);
      };
      // Sets [begin, end) to the pixels that tile first_tile + t reads.
      const auto reach = [&](int t, int& begin, int& end) {
        begin = end = 0;
        for (int s = 0; s < kTileBins; ++s) {
          extend(begin, end, firsts[axis * kWarp + t * kTileBins + s], counts[axis * kWarp + t * kTileBins + s]);
        }
      };
      int begin, end;
      if (count > kRun) { // These weights go directly into the records, from which they are read again below.
        reach(lane / kTileBins, begin, end);
        bin_weights(
            samples, p, band, size, boxes.interpolation, boxes.a,
            records_of(tile) + (first - begin) * int64_t(kRecord) + slot, kRecord);
      }
      __syncthreads();
      for (int t = 0; t < kTapTiles && first_tile + t < tiling.tiles; ++t) {
        reach(t, begin, end);
        T* records = records_of(first_tile + t);
        for (int i = lane; i < end - begin; i += kWarp) {
          T record[kRecord];
          int mask = 0;
#pragma unroll
          for (int s = 0; s < kTileBins; ++s) {
            const int of_bin = axis * kWarp + t * kTileBins + s;
            const int j = begin + i - firsts[of_bin];
            record[s] = T(0);
            if (j >= 0 && j < counts[of_bin]) {
              record[s] =
                  counts[of_bin] <= kRun ? runs[of_bin * kRun + j] : load_global(records + i * int64_t(kRecord) + s);
            }
            mask |= (record[s] != T(0)) << s;
          }
          record[kTileBins] = mask_to_number<T>(mask);
          store_numbers(records + i * int64_t(kRecord), [&](int s) { return record[s]; });
        }
        for (int other = lane; other < others; other += kWarp) {
          const int y = axis == 0 ? first_tile + t : other, x = axis == 0 ? other : first_tile + t;
          Tile* result = workspace.tiles + (static_cast<int64_t>(k) * workspace.y.tiles + y) * workspace.x.tiles + x;
          if (axis == 0) {
            store_global(&result->place, is_valid ? static_cast<int>(image) * kPlaces + level : -1);
            store_global(&result->roi, k);
            store_global(&result->y_begin, begin);
            store_global(&result->y_end, end);
          } else {
            store_global(&result->tile_y, y);
            store_global(&result->tile_x, x);
            store_global(&result->x_begin, begin);
            store_global(&result->x_end, end);
          }
        }
      }
      __syncthreads();
    }
  }
}

// ---- forward --------------------------------------------------------------------------------------------------------

// Reads V channels from `channel` on. Beyond the last channel it reads the last one again, and no thread uses these
// values. `vectors` says whether one instruction can read the V channels.
template <typename scalar_t, typename T, int V, bool vectors>
struct ChannelReader {
  int offsets[V];

  __device__ ChannelReader(int step, int channel, int channels) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      offsets[v] = smaller(v, channels - 1 - channel) * step;
    }
  }

  __device__ void operator()(const scalar_t* pixel, T (&values)[V]) const {
    if constexpr (vectors) {
      const Pack<scalar_t, V> pack = load_global(&as_pack<scalar_t, V>(pixel));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = static_cast<T>(pack.values[v]);
      }
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = static_cast<T>(load_global(pixel + offsets[v]));
      }
    }
  }
};

// Writes V channels from `channel` on, up to the last one.
template <typename scalar_t, typename T, int V>
__device__ inline void store_channels(
    scalar_t* pixel, int step, int channel, int channels, bool vectors, const T (&values)[V]) {
  if (vectors) {
    Pack<scalar_t, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      pack.values[v] = static_cast<scalar_t>(values[v]);
    }
    store_global(&as_pack<scalar_t, V>(pixel), pack);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (channel + v < channels) {
        store_global(pixel + int64_t(v) * step, static_cast<scalar_t>(values[v]));
      }
    }
  }
}

// Adds a pixel to those of the bin rows [kFirst, kLast) that read it. The compiler predicates the multiply-adds.
template <int kFirst, int kLast, typename T, int V>
__device__ inline void add_row(const T* shared_record, const T (&values)[V], T (&sums)[kTileBins][V]) {
  T record[kRecord];
  load_record(shared_record, record);
  const int mask = number_to_mask(record[kTileBins]);
#pragma unroll
  for (int p = kFirst; p < kLast; ++p) {
    if (mask >> p & 1) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sums[p][v] = fused(record[p], values[v], sums[p][v]);
      }
    }
  }
}

// Calls add(weight, i) for each weight of a band that is not zero. The weights of a short band are `weights`. Those of
// a longer band are `num` numbers from more() on, kRecord numbers apart.
template <typename T, typename More, typename Add>
__device__ inline void for_each_weight(
    const T (&weights)[kShort], int count, int num, const More& more, const Add& add) {
  if (count <= kShort) {
#pragma unroll
    for (int i = 0; i < kShort; ++i) {
      if (weights[i] != T(0)) {
        add(weights[i], i);
      }
    }
  } else {
    const T* weight = more();
#pragma unroll 4
    for (int i = 0; i < num; ++i) {
      const T value = load_global(weight + i * kRecord);
      if (value != T(0)) {
        add(value, i);
      }
    }
  }
}

// Writes NaN to `num_rows` rows of bins of the channels from `channel` to `end`. `bin` is the first bin of channel 0.
template <typename scalar_t>
__device__ inline void store_nan(scalar_t* bin, const Steps& steps, int num_rows, int num_bins, int channel, int end) {
  for (int c = channel; c < end; ++c) {
    for (int i = threadIdx.x; i < num_rows * num_bins; i += kThreads) {
      store_global(
          bin + int64_t(c) * steps.channel + int64_t(i / num_bins) * steps.row + int64_t(i % num_bins) * steps.column,
          static_cast<scalar_t>(std::numeric_limits<float>::quiet_NaN()));
    }
  }
}

// Sets [begin, end) to the map columns that `count` neighbouring bin tiles read. It stops when they are more than
// `enough`.
__device__ inline void reach_of_tiles(const Tile* tiles, int count, int enough, int& begin, int& end) {
  begin = end = 0;
  for (int t = 0; t < count && end - begin <= enough; ++t) {
    const int first = load_global(&tiles[t].x_begin);
    extend(begin, end, first, load_global(&tiles[t].x_end) - first);
  }
}

// Copies `count` records to shared memory. Empty records fill the last kUnroll map rows. Above its mask, a record gets
// kTileBins more bits: the bin rows that read any of its kUnroll map rows.
template <int kUnroll, typename T>
__device__ inline void stage_records(const T* records, int count, T* staged) {
#pragma unroll 1
  for (int i = threadIdx.x; i < divide_up(count, kUnroll) * kUnroll * kRecord; i += kThreads) {
    T number = i < count * kRecord ? load_global(records + i) : T(0);
    if (i % kRecord == kTileBins) {
      int of_rows = 0;
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const int row = i / kRecord / kUnroll * kUnroll + j;
        of_rows |= row < count ? number_to_mask(load_global(records + row * kRecord + kTileBins)) : 0;
      }
      number = mask_to_number<T>(number_to_mask(number) | of_rows << kTileBins);
    }
    staged[i] = number;
  }
}

// Copies the bands and the short weights of `count` bin columns to shared memory.
template <typename T>
__device__ inline void stage_bands(
    const Workspace<T>& workspace, int64_t first_bin, int count, Band32* bands, T* short_weights) {
  const int thread = threadIdx.x;
  if (thread < count * kShort) {
    short_weights[thread] = load_global(workspace.short_weights + first_bin * kShort + thread);
  } else if (thread >= kThreads - count) {
    bands[thread - (kThreads - count)] = load_global(workspace.bands + first_bin + thread - (kThreads - count));
  }
}

// Reduces `count` to the bin columns that together read at most `columns` map columns, and sets [begin, end) to these.
// A single bin column may read more.
__device__ inline void fit_bands(const Band32* bands, int columns, int& count, int& begin, int& end) {
  begin = end = 0;
  for (int i = 0; i < count; ++i) {
    int new_begin = begin, new_end = end;
    extend(new_begin, new_end, bands[i].first, bands[i].count);
    if (i > 0 && new_end - new_begin > columns) {
      count = i;
    } else {
      begin = new_begin;
      end = new_end;
    }
  }
}

// Adds `count` rows of a map column to the sums of the bin rows, kUnroll rows at a time. `pixel` is the first of them,
// and `staged` has their records. For each kUnroll rows, a half of the bin tile that reads none of them is skipped.
template <int kUnroll, typename scalar_t, typename T, int V, bool vectors>
__device__ inline void y_pass(
    const ChannelReader<scalar_t, T, V, vectors>& read, const scalar_t* pixel, int row_step, int count, const T* staged,
    T (&sums)[kTileBins][V]) {
  const scalar_t* pixels[V]; // for reads that are no vectors, since `read` would take more instructions
#pragma unroll
  for (int v = 0; v < V; ++v) {
    pixels[v] = pixel + read.offsets[v];
  }
  int steps[kUnroll]; // to the next rows
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    steps[i] = row_step;
  }
  for (int r = 0; r < count; r += kUnroll) {
    if (r + kUnroll > count) { // Past the end, the last row is read again, and its record is empty.
#pragma unroll
      for (int i = 0; i < kUnroll - 1; ++i) {
        steps[i] = r + i + 1 < count ? row_step : 0;
      }
    }
    T values[kUnroll][V];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if constexpr (vectors) {
        read(pixel, values[i]);
        pixel += steps[i];
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          values[i][v] = static_cast<T>(load_global(pixels[v]));
          pixels[v] += steps[i];
        }
      }
    }
    const T* records = staged + r * kRecord;
    const int of_rows = number_to_mask(records[kTileBins]) >> kTileBins;
    if (of_rows & ((1 << kHalf) - 1)) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        add_row<0, kHalf>(records + i * kRecord, values[i], sums);
      }
    }
    if (of_rows >> kHalf) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        add_row<kHalf, kTileBins>(records + i * kRecord, values[i], sums);
      }
    }
  }
}

// Writes the sums of a map column to the strip. It is [bin row][column][channel] for channels_last, and otherwise
// [channel][bin row][column] with one column more than needed, which spreads the channels over the banks.
template <bool channels_last, typename T, int V>
__device__ inline void store_strip(T* strip, int columns, int column, int group, const T (&sums)[kTileBins][V]) {
#pragma unroll
  for (int p = 0; p < kTileBins; ++p) {
    if constexpr (channels_last) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        pack.values[v] = sums[p][v];
      }
      as_pack<T, V>(strip + (p * kColumns + column) * kGroups * V + group * V) = pack;
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        strip[((group * V + v) * kTileBins + p) * (columns + 1) + column] = sums[p][v];
      }
    }
  }
}

// The map columns [column, column + columns) of a strip, among those that a group of bin columns reads, [begin, end).
// A strip has all of them, unless the group is a single bin column that is wide. The sums of its bins are kept from
// strip to strip.
struct StripColumns {
  int column;
  int columns;
  int begin;
  int end;
  bool is_wide;
};

// The bins that a thread makes in the x pass: bin rows `row`, `row + rows` and so on of a bin column. For NCHW these
// are bin rows of all channels.
struct Slot {
  int column; // among those of the group
  int row;
  int rows;
};

// Spreads the bins of `num_q` bin columns over `slots` threads.
__device__ inline Slot make_slot(unsigned int slot, unsigned int slots, int num_q) {
  const unsigned int inverse = 65536u / num_q + 1; // makes the quotients below exact for all slots
  const int row = slot * inverse >> 16, rows = slots * inverse >> 16;
  return {static_cast<int>(slot - row * num_q), row, rows};
}

// Makes the bins of a slot from the strip, for NCHW. The rows of the strip are the bin rows of all channels. `for_each`
// calls a function for each weight of the bin column, from map column `from` on. `sum` is that of a wide bin so far.
// `store(channel, bin row, bin)` writes a bin.
template <typename T, typename ForEachWeight, typename Store>
__device__ inline void x_pass_of_rows(
    const T* strip, T& sum, const StripColumns& now, const Slot& slot, int from, const ForEachWeight& for_each,
    int num_rows, int num_p, const Store& store) {
  for (int r = slot.row; r < num_rows; r += slot.rows) {
    const int c = r / kTileBins, p = r - c * kTileBins;
    if (p >= num_p) {
      continue;
    }
    T bin = T(0);
    const T* s = strip + r * (now.columns + 1) + from - now.column;
    for_each([&](T weight, int i) { bin = fused(weight, s[i], bin); });
    if (now.is_wide) {
      bin += now.column == now.begin ? T(0) : sum;
      sum = bin;
    }
    if (now.column + now.columns >= now.end) {
      store(c, p, bin);
    }
  }
}

// Does the same with short bands and bins that are not wide, which is the usual case, in half of the instructions.
// `strip` has the first pixel of the slot's first bin, and `bin` is where that bin goes.
template <typename scalar_t, typename T>
__device__ inline void x_pass_of_short_bands(
    const T* strip, int strip_step, const Slot& slot, const T (&weights)[kShort], int num_rows, int num_p,
    scalar_t* bin, const Steps& steps) {
  const T* const end = strip + (num_rows - slot.row) * strip_step;
  // From bin to bin, the channel and the bin row grow by these numbers. Beyond the last bin row comes the next channel.
  const int more_c = slot.rows / kTileBins, more_p = slot.rows % kTileBins;
  const int64_t bin_step = int64_t(more_c) * steps.channel + int64_t(more_p) * steps.row;
  const int64_t to_next_channel = steps.channel - int64_t(kTileBins) * steps.row;
  int p = slot.row % kTileBins;
  while (strip < end) {
    if (p < num_p) {
      T sum = T(0);
#pragma unroll
      for (int i = 0; i < kShort; ++i) {
        if (weights[i] != T(0)) {
          sum = fused(weights[i], strip[i], sum);
        }
      }
      store_global(bin, static_cast<scalar_t>(sum));
    }
    strip += slot.rows * strip_step;
    bin += bin_step;
    p += more_p;
    if (p >= kTileBins) {
      p -= kTileBins;
      bin += to_next_channel;
    }
  }
}

// Does the same as x_pass_of_rows for channels_last and the V channels of a group. `store(bin row, bins)` writes the
// bins of a bin row.
template <int V, typename T, typename ForEachWeight, typename Store>
__device__ inline void x_pass_of_channels(
    const T* strip, T* wide, const StripColumns& now, const Slot& slot, int from, const ForEachWeight& for_each,
    int group, int num_p, const Store& store) {
  constexpr int kChannels = kGroups * V;
  for (int p = slot.row; p < num_p; p += slot.rows) {
    T bin[V] = {};
    const T* s = strip + (p * kColumns + from - now.column) * kChannels + group * V;
    for_each([&](T weight, int i) {
      const Pack<T, V> pack = as_pack<T, V>(s + i * kChannels);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        bin[v] = fused(weight, pack.values[v], bin[v]);
      }
    });
    if (now.is_wide) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        T* sum = wide + p * kChannels + group * V + v;
        bin[v] += now.column == now.begin ? T(0) : *sum;
        *sum = bin[v];
      }
    }
    if (now.column + now.columns >= now.end) {
      store(p, bin);
    }
  }
}

// A block has a RoI, a row of bin tiles, and a chunk of kGroups * V channels. The kernel pools the levels whose map has
// the layout `channels_last`, and skips the others.
template <typename scalar_t, typename T, bool channels_last>
__global__ void CUDA_BOUNDS(kThreads, (forward_blocks<T, channels_last>)) forward_kernel(
    CUDA_PARAMETER Pyramid<const scalar_t> maps, CUDA_PARAMETER Workspace<T> workspace,
    CUDA_PARAMETER Bins<scalar_t> bins, int num_units) {
  constexpr int V = vector_channels<T>;
  constexpr int kChannels = kGroups * V;
  constexpr int kUnroll = channels_last || sizeof(T) == 8 ? 2 : 4; // map rows whose pixels a thread reads at a time
  constexpr int kStripSize = channels_last ? kTileBins * kColumns * kChannels : kTileBins * (kColumns + 1) * kChannels;
  CUDA_SHARED(T, staged, kStagedRows * kRecord);
  CUDA_SHARED(T, strip, kStripSize); // NCHW: [channel][bin row][column]; channels_last: [bin row][column][channel]
  // Sums of bins that read more columns than the block has. For NCHW, a thread makes one of them and has its sum.
  CUDA_SHARED(T, wide, channels_last ? kTileBins * kChannels : 1);
  static_assert(channels_last || V * kTileBins <= 2 * kColumns, "kThreads / (2 * kColumns) * V * kTileBins bins");
  CUDA_SHARED(Band32, bands, kGroupBins);
  CUDA_SHARED(T, short_weights, kGroupBins * kShort);
  const int thread = threadIdx.x;
  const int chunks = divide_up(maps.channels, kChannels);
  for (int unit = blockIdx.x; unit < num_units; unit += gridDim.x) {
    const int roi_and_tile = unit / chunks;
    const int chunk_channel = (unit - roi_and_tile * chunks) * kChannels;
    const Tile* tiles = workspace.tiles + static_cast<int64_t>(roi_and_tile) * workspace.x.tiles;
    const Tile tile = load_global(tiles);
    const int k = tile.roi;
    const bool is_valid = tile.place >= 0;
    const int level = is_valid ? tile.place % kPlaces : 0;
    const auto& map = maps.levels[level];
    if (map.channels_last != channels_last) {
      continue;
    }
    const int last_channel = smaller(chunk_channel + kChannels, maps.channels);
    const int num_bins = workspace.x.bins;
    const int first_p = tile.tile_y * workspace.y.size;
    const int num_p = smaller(workspace.y.size, workspace.y.bins - first_p);
    scalar_t* const result = bins.data + k * bins.steps.item + int64_t(first_p) * bins.steps.row;
    if (!is_valid) {
      store_nan(result, bins.steps, num_p, num_bins, chunk_channel, last_channel);
      continue;
    }
    const scalar_t* plane = map.data + tile.place / kPlaces * map.steps.item;
    const T* row_records = workspace.row_record(k, tile.tile_y);
    const int num_rows = tile.y_end - tile.y_begin;
    int x_begin, x_end;
    reach_of_tiles(tiles, workspace.x.tiles, 2 * kColumns, x_begin, x_end);
    // For a wide RoI, the block has twice the columns and half of the channels at a time.
    const int columns = channels_last || x_end - x_begin <= kColumns ? kColumns : 2 * kColumns;
    const bool is_one_group = num_bins <= kGroupBins && x_end - x_begin <= columns;
    const int step = kThreads / columns * V; // channels at a time
    const int x = channels_last ? thread / kGroups : thread & (columns - 1);
    const int group = channels_last ? thread % kGroups : thread / columns;
    // Copies the records of map rows from `first` on to shared memory.
    const auto stage = [&](int first) {
      stage_records<kUnroll>(row_records + first * int64_t(kRecord), smaller(kStagedRows, num_rows - first), staged);
    };
    for (int q0 = 0, num_q = 0; q0 < num_bins; q0 += num_q) {
      // Takes the next bin columns that together fit the columns of the block. A single bin column may read more.
      num_q = smaller(kGroupBins, num_bins - q0);
      __syncthreads(); // all threads have finished with the shared memory
      if (q0 == 0) {
        stage(0);
      }
      stage_bands(workspace, static_cast<int64_t>(k) * num_bins + q0, num_q, bands, short_weights);
      __syncthreads();
      int begin = x_begin, end = x_end;
      if (!is_one_group) {
        fit_bands(bands, columns, num_q, begin, end);
      }
      const bool is_wide = end - begin > columns;
      for (int first_channel = chunk_channel; first_channel < last_channel; first_channel += step) {
        int column = begin;
        T sum_of_wide = T(0);
        do { // This loops only for a bin that reads more columns than the block has.
          T sums[kTileBins][V] = {};
          const int channel = first_channel + group * V;
          const bool has_pixels = column + x < end && channel < maps.channels;
          for (int first = 0; first < num_rows; first += kStagedRows) {
            if (num_rows > kStagedRows) {
              __syncthreads();
              stage(first);
              __syncthreads();
            }
            if (has_pixels) {
              const int row_step = map.steps.row;
              const int left = smaller(kStagedRows, num_rows - first);
              const scalar_t* pixel = plane + int64_t(channel) * map.steps.channel +
                  int64_t(column + x) * map.steps.column + int64_t(tile.y_begin + first) * row_step;
              const auto add_rows = [&](auto vectors) {
                const ChannelReader<scalar_t, T, V, vectors> read(map.steps.channel, channel, maps.channels);
                y_pass<kUnroll>(read, pixel, row_step, left, staged, sums);
              };
              if (channels_last && map.vectors) {
                add_rows(std::bool_constant<channels_last>());
              } else {
                add_rows(std::false_type());
              }
            }
          }
          store_strip<channels_last>(strip, columns, x, group, sums);
          __syncthreads();
          const Slot slot =
              make_slot(channels_last ? thread / kGroups : thread, channels_last ? kColumns : kThreads, num_q);
          if (slot.row < slot.rows) {
            const Band32 band = bands[slot.column];
            const int q = q0 + slot.column;
            const int from = larger(band.first, column), to = smaller(band.first + band.count, column + columns);
            T weights[kShort];
            load_record(short_weights + slot.column * kShort, weights);
            const auto long_weights = [&] {
              const int t = q / workspace.x.size;
              return workspace.column_record(k, t) + (from - load_global(&tiles[t].x_begin)) * int64_t(kRecord) +
                  q % workspace.x.size;
            };
            const auto for_each = [&](const auto& add) {
              for_each_weight(weights, band.count, to - from, long_weights, add);
            };
            const auto bin_at = [&](int c, int p) {
              return result + int64_t(c) * bins.steps.channel + int64_t(p) * bins.steps.row +
                  int64_t(q) * bins.steps.column;
            };
            const StripColumns now{column, columns, begin, end, is_wide};
            if constexpr (channels_last) {
              x_pass_of_channels<V>(strip, wide, now, slot, from, for_each, group, num_p, [&](int p, const T(&bin)[V]) {
                if (channel < maps.channels) {
                  store_channels(bin_at(channel, p), bins.steps.channel, channel, maps.channels, bins.vectors, bin);
                }
              });
            } else {
              const int num_rows_of_strip = smaller(step, last_channel - first_channel) * kTileBins;
              if (band.count <= kShort && !is_wide) {
                x_pass_of_short_bands(
                    strip + slot.row * (columns + 1) + from - column, columns + 1, slot, weights, num_rows_of_strip,
                    num_p, bin_at(first_channel + slot.row / kTileBins, slot.row % kTileBins), bins.steps);
              } else {
                x_pass_of_rows(
                    strip, sum_of_wide, now, slot, from, for_each, num_rows_of_strip, num_p, [&](int c, int p, T bin) {
                      store_global(bin_at(first_channel + c, p), static_cast<scalar_t>(bin));
                    });
              }
            }
          }
          column += columns;
          __syncthreads();
        } while (column < end);
      }
    }
  }
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The first block of each level. A level has a block for each map tile of kGatherRows x kColumns pixels of an image,
// and chunk of channels. The last level comes first: more RoIs touch a tile of a coarse map, and long work should start
// early.
struct GatherBlocks {
  int first[kMaxLevels + 1];
};

// A block has a map tile and a chunk of kGroups * V channels. `channels_last` is the layout of both the bins and the
// maps.
template <typename scalar_t, typename T, int V, bool channels_last>
__global__ void CUDA_BOUNDS(kThreads, (backward_blocks<T, channels_last>)) backward_kernel(
    CUDA_PARAMETER Bins<const scalar_t> bins, CUDA_PARAMETER Workspace<T> workspace,
    CUDA_PARAMETER Pyramid<scalar_t> maps, CUDA_PARAMETER GatherBlocks blocks) {
  constexpr int kChannels = kGroups * V;
  constexpr int kBinRowsAtOnce = kThreads / (kGroups * kTileBins); // bin rows that the block reads at a time
  // Reads of a thread that are under way at a time. More would spill registers.
  constexpr int kReads = divide_up(kTileBins, kBinRowsAtOnce) / (channels_last ? 1 : 2);
  // One group more than needed puts the bins of a group into different banks.
  constexpr int kBinStep = (kGroups + 1) * V;
  constexpr int kTileStep = kTileBins * kTileBins * kBinStep;
  constexpr int kRecords = kGatherRows + kColumns;
  constexpr int kNear = 4;
  CUDA_SHARED(unsigned int, ballots, kThreads / kWarp);
  CUDA_SHARED(int, list, kThreads); // bin tiles that touch this map tile
  CUDA_SHARED(T, records, kBatch * kRecords * kRecord); // of rows as [bin][row], then of columns as [column][kRecord]
  CUDA_SHARED(int, row_masks, kBatch * kGatherRows);
  CUDA_SHARED(T, gradients, kBatch * kTileStep); // [bin][channel]
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int x = thread / kGroups, group = thread % kGroups;
  const int chunks = divide_up(maps.channels, kChannels);
  const int num_tiles = workspace.num_rois * workspace.y.tiles * workspace.x.tiles;
  // Each thread reads some bins for all threads: those in bin column my_q and every kBinRowsAtOnce-th bin row from my_p
  // on, for the channels of group my_group.
  const int my_group = channels_last ? thread % kGroups : thread / (kBinRowsAtOnce * kTileBins);
  const int my_bin = channels_last ? thread / kGroups : thread % (kBinRowsAtOnce * kTileBins);
  const int my_p = my_bin / kTileBins, my_q = my_bin % kTileBins;
  for (int block = blockIdx.x; block < blocks.first[maps.count]; block += gridDim.x) {
    int order = 0;
    while (block >= blocks.first[order + 1]) {
      ++order;
    }
    const int level = maps.count - 1 - order;
    const auto& map = maps.levels[level];
    int rest = block - blocks.first[order];
    const int first_channel = rest % chunks * kChannels;
    rest /= chunks;
    const int tiles_x = divide_up(map.width, kColumns);
    const int column = rest % tiles_x * kColumns;
    rest /= tiles_x;
    const int tiles_y = divide_up(map.height, kGatherRows);
    const int row = rest % tiles_y * kGatherRows;
    const int image = rest / tiles_y;
    const int my_channel = first_channel + my_group * V;
    const bool has_bin = my_p < kBinRowsAtOnce && my_group < kGroups && my_channel < maps.channels;
    T sums[kGatherRows][V] = {};
    for (int first = 0; first < num_tiles; first += kThreads) {
      bool is_touched = false;
      if (first + thread < num_tiles) {
        const Tile tile = load_global(workspace.tiles + first + thread);
        is_touched = tile.place == image * kPlaces + level && tile.y_begin < row + kGatherRows && row < tile.y_end &&
            tile.x_begin < column + kColumns && column < tile.x_end;
      }
      const unsigned int ballot = warp_ballot(is_touched);
      if (lane == 0) {
        ballots[thread / kWarp] = ballot;
      }
      __syncthreads();
      int position = count_bits(ballot & ((1u << lane) - 1)), count = 0;
#pragma unroll
      for (int i = 0; i < kThreads / kWarp; ++i) {
        const int of_warp = count_bits(ballots[i]);
        position += i < thread / kWarp ? of_warp : 0;
        count += of_warp;
      }
      if (is_touched) {
        list[position] = first + thread;
      }
      __syncthreads();
      for (int i = 0; i < count; i += kBatch) {
        const int num = smaller(kBatch, count - i);
#pragma unroll 1
        for (int j = 0; j < num; ++j) {
          const Tile tile = load_global(workspace.tiles + list[i + j]);
          // Reads the records of the rows and columns of this map tile. They are zero where the RoI reads nothing. They
          // are written to shared memory after the bins, so that all reads are under way together.
          const int pixel = thread / kRecord, s = thread % kRecord;
          const bool is_row = pixel < kGatherRows;
          T number = T(0);
          if (thread < kRecords * kRecord) {
            const int from = is_row ? row + pixel - tile.y_begin : column + pixel - kGatherRows - tile.x_begin;
            const int size = is_row ? tile.y_end - tile.y_begin : tile.x_end - tile.x_begin;
            const T* source =
                is_row ? workspace.row_record(tile.roi, tile.tile_y) : workspace.column_record(tile.roi, tile.tile_x);
            if (from >= 0 && from < size) {
              number = load_global(source + from * int64_t(kRecord) + s);
            }
          }
          if (has_bin) { // Sums of channels that do not exist may read unwritten memory, since they are never stored.
            const int first_p = tile.tile_y * workspace.y.size, first_q = tile.tile_x * workspace.x.size;
            const int num_p = smaller(workspace.y.size, workspace.y.bins - first_p);
            const bool has_column = my_q < smaller(workspace.x.size, workspace.x.bins - first_q);
            const scalar_t* bin = bins.data + tile.roi * bins.steps.item + int64_t(my_channel) * bins.steps.channel +
                int64_t(first_p + my_p) * bins.steps.row + int64_t(first_q + my_q) * bins.steps.column;
            T* target = gradients + j * kTileStep + my_bin * kBinStep + my_group * V;
            const auto read_bins = [&](auto vectors) {
              const ChannelReader<scalar_t, T, V, vectors> read(bins.steps.channel, my_channel, maps.channels);
#pragma unroll
              for (int p0 = 0; p0 < kTileBins; p0 += kReads * kBinRowsAtOnce) {
                Pack<T, V> values[kReads] = {}; // zero if there is no bin, since a weight of zero is also multiplied
#pragma unroll
                for (int i = 0; i < kReads; ++i) {
                  if (has_column && p0 + i * kBinRowsAtOnce + my_p < num_p) {
                    read(bin, values[i].values);
                  }
                  bin += kBinRowsAtOnce * bins.steps.row;
                }
#pragma unroll
                for (int i = 0; i < kReads; ++i) {
                  const int p = p0 + i * kBinRowsAtOnce;
                  if (p + my_p < kTileBins) {
                    as_pack<T, V>(target + p * kTileBins * kBinStep) = values[i];
                  }
                }
              }
            };
            if (channels_last && bins.vectors) {
              read_bins(std::bool_constant<channels_last>());
            } else {
              read_bins(std::false_type());
            }
          }
          if (thread < kRecords * kRecord) {
            T* target = records + j * kRecords * kRecord;
            if (!is_row) {
              target[thread] = number;
            } else if (s < kTileBins) {
              target[s * kGatherRows + pixel] = number;
            } else {
              row_masks[j * kGatherRows + pixel] = number_to_mask(number);
            }
          }
        }
        __syncthreads();
        for (int j = 0; j < num; ++j) {
          const T* row_weights = records + j * kRecords * kRecord;
          const T* column_weights = row_weights + (kGatherRows + x) * kRecord;
          const int columns_mask = number_to_mask(column_weights[kTileBins]);
          if (columns_mask != 0) {
            int rows_mask = 0;
#pragma unroll
            for (int r = 0; r < kGatherRows; ++r) {
              rows_mask |= row_masks[j * kGatherRows + r];
            }
            // The bins that contribute to the column are neighbours. Usually they are at most kNear, from first_q on.
            const int lowest = lowest_bit(columns_mask);
            const bool is_near = columns_mask >> lowest < 1 << kNear;
            const int first_q = is_near ? smaller(lowest, kTileBins - kNear) : 0;
            T near[kNear];
#pragma unroll
            for (int q = 0; q < kNear; ++q) {
              near[q] = column_weights[first_q + q];
            }
            const T* of_first = gradients + j * kTileStep + first_q * kBinStep + group * V;
#pragma unroll
            for (int p = 0; p < kTileBins; ++p) {
              if (rows_mask >> p & 1) {
                T strip[V] = {};
                const auto add = [&](T weight, const T* bin) {
                  const Pack<T, V> values = as_pack<T, V>(bin);
#pragma unroll
                  for (int v = 0; v < V; ++v) {
                    strip[v] = fused(weight, values.values[v], strip[v]);
                  }
                };
#pragma unroll
                for (int q = 0; q < kNear; ++q) {
                  add(near[q], of_first + (p * kTileBins + q) * kBinStep);
                }
                if (!is_near) {
#pragma unroll
                  for (int q = kNear; q < kTileBins; ++q) {
                    add(column_weights[q], of_first + (p * kTileBins + q) * kBinStep);
                  }
                }
                T of_rows[kGatherRows];
                load_record(row_weights + p * kGatherRows, of_rows);
#pragma unroll
                for (int r = 0; r < kGatherRows; ++r) {
#pragma unroll
                  for (int v = 0; v < V; ++v) {
                    sums[r][v] = fused(of_rows[r], strip[v], sums[r][v]);
                  }
                }
              }
            }
          }
        }
        __syncthreads();
      }
    }
    if constexpr (channels_last) {
      const int channel = first_channel + group * V;
      if (column + x < map.width && channel < maps.channels) {
        scalar_t* pixel = map.data + image * map.steps.item + int64_t(channel) * map.steps.channel +
            int64_t(row) * map.steps.row + int64_t(column + x) * map.steps.column;
#pragma unroll
        for (int r = 0; r < kGatherRows; ++r) {
          if (row + r < map.height) {
            store_channels(pixel, map.steps.channel, channel, maps.channels, map.vectors, sums[r]);
          }
          pixel += map.steps.row;
        }
      }
    } else {
      // The sums go through shared memory, so that neighbouring threads write neighbouring columns.
      constexpr int kRowsAtOnce = 2;
      const int my_column = thread % kColumns;
#pragma unroll
      for (int r0 = 0; r0 < kGatherRows; r0 += kRowsAtOnce) {
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            gradients[(r * kChannels + group * V + v) * (kColumns + 1) + x] = sums[r0 + r][v];
          }
        }
        __syncthreads();
        if (column + my_column < map.width) {
#pragma unroll 2
          for (int c = thread / kColumns; c < kRowsAtOnce * kChannels; c += kThreads / kColumns) {
            const int r = r0 + c / kChannels, channel = first_channel + c % kChannels;
            if (row + r < map.height && channel < maps.channels) {
              store_global(
                  map.data + image * map.steps.item + int64_t(channel) * map.steps.channel +
                      int64_t(row + r) * map.steps.row + int64_t(column + my_column) * map.steps.column,
                  static_cast<scalar_t>(gradients[c * (kColumns + 1) + my_column]));
            }
          }
        }
        __syncthreads();
      }
    }
  }
}

} // namespace mrcnn_plugin::cuda
