// Launches the kernels on raw pointers. nvcc compiles only this file, and the emulation of the tests includes it.
#include "roi_align_launch.h"
#include "roi_align_kernels.cuh"

namespace mrcnn_plugin::cuda {

// The kernels loop over units that do not fit the grid. Tests set a small maximum, so that this happens.
#if !defined(MRCNN_MOST_BLOCKS)
#define MRCNN_MOST_BLOCKS std::numeric_limits<int>::max()
#endif

namespace {

int blocks_for(int64_t units) {
  return static_cast<int>(smaller<int64_t>(units, MRCNN_MOST_BLOCKS));
}

template <typename scalar_t>
Extents extents_of(const Pyramid<scalar_t>& maps) {
  Extents extents{};
  for (int level = 0; level < maps.count; ++level) {
    extents.heights[level] = maps.levels[level].height;
    extents.widths[level] = maps.levels[level].width;
  }
  extents.levels = maps.count;
  extents.batch = maps.batch;
  return extents;
}

// Divides `memory` into the arrays of a workspace, and sets `bytes` to their total size.
template <typename T>
Workspace<T> make_workspace(
    const Extents& extents, int bin_rows, int bin_columns, int64_t num_rois, void* memory, int64_t* bytes) {
  Workspace<T> workspace{};
  workspace.y = make_tiling(bin_rows);
  workspace.x = make_tiling(bin_columns);
  for (int level = 0; level < extents.levels; ++level) {
    workspace.height = larger(workspace.height, extents.heights[level]);
    workspace.width = larger(workspace.width, extents.widths[level]);
  }
  workspace.num_rois = static_cast<int>(num_rois);
  *bytes = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(static_cast<char*>(memory) + *bytes);
    *bytes += divide_up<int64_t>(count * sizeof(*array), 32) * 32;
  };
  take(workspace.tiles, num_rois * workspace.y.tiles * workspace.x.tiles);
  take(workspace.row_records, num_rois * workspace.y.tiles * workspace.height * kRecord);
  take(workspace.column_records, num_rois * workspace.x.tiles * workspace.width * kRecord);
  take(workspace.bands, num_rois * bin_columns);
  take(workspace.short_weights, num_rois * bin_columns * kShort);
  return workspace;
}

template <typename T>
Workspace<T> compute_taps(
    const Extents& extents, const Boxes<T>& boxes, int bin_rows, int bin_columns, void* memory, cuda_stream_t stream) {
  int64_t bytes;
  const Workspace<T> workspace = make_workspace<T>(extents, bin_rows, bin_columns, boxes.count, memory, &bytes);
  if (boxes.count > 0) {
    CUDA_LAUNCH((taps_kernel<T>), blocks_for(boxes.count), kTapThreads, stream, extents, boxes, workspace);
  }
  return workspace;
}

} // namespace

template <typename scalar_t, typename T>
int64_t workspace_bytes(const Pyramid<scalar_t>& maps, int bin_rows, int bin_columns, int64_t num_rois) {
  int64_t bytes;
  make_workspace<T>(extents_of(maps), bin_rows, bin_columns, num_rois, nullptr, &bytes);
  return bytes;
}

template <typename scalar_t, typename T>
void launch_forward(
    const Pyramid<const scalar_t>& maps, const Boxes<T>& boxes, void* memory, const Bins<scalar_t>& bins,
    cuda_stream_t stream) {
  if (boxes.count == 0 || maps.channels == 0) {
    return;
  }
  const Workspace<T> workspace = compute_taps(extents_of(maps), boxes, bins.height, bins.width, memory, stream);
  const int64_t units = boxes.count * workspace.y.tiles * divide_up(maps.channels, kGroups * vector_channels<T>);
  bool has_layout[2] = {false, false};
  for (int level = 0; level < maps.count; ++level) {
    has_layout[maps.levels[level].channels_last] = true;
  }
  if (has_layout[0]) {
    CUDA_LAUNCH(
        (forward_kernel<scalar_t, T, false>), blocks_for(units), kThreads, stream, maps, workspace, bins,
        static_cast<int>(units));
  }
  if (has_layout[1]) {
    CUDA_LAUNCH(
        (forward_kernel<scalar_t, T, true>), blocks_for(units), kThreads, stream, maps, workspace, bins,
        static_cast<int>(units));
  }
}

namespace {

// Counts the blocks of each level for chunks of kGroups * V channels.
template <typename scalar_t>
GatherBlocks gather_blocks(const Pyramid<scalar_t>& maps, int V) {
  GatherBlocks blocks{};
  for (int order = 0; order < maps.count; ++order) {
    const auto& map = maps.levels[maps.count - 1 - order];
    const int count = map.data == nullptr ? 0
                                          : maps.batch * divide_up(map.height, kGatherRows) *
            divide_up(map.width, kColumns) * divide_up(maps.channels, kGroups * V);
    blocks.first[order + 1] = blocks.first[order] + count;
  }
  return blocks;
}

template <int V, bool channels_last, typename scalar_t, typename T>
void launch_backward_blocks(
    const Bins<const scalar_t>& bins, const Workspace<T>& workspace, const Pyramid<scalar_t>& maps,
    cuda_stream_t stream) {
  const GatherBlocks blocks = gather_blocks(maps, V);
  CUDA_LAUNCH(
      (backward_kernel<scalar_t, T, V, channels_last>), blocks_for(blocks.first[maps.count]), kThreads, stream, bins,
      workspace, maps, blocks);
}

} // namespace

template <typename scalar_t, typename T>
void launch_backward(
    const Bins<const scalar_t>& bins, const Boxes<T>& boxes, void* memory, const Pyramid<scalar_t>& maps,
    cuda_stream_t stream) {
  constexpr int V = vector_channels<T>;
  const int blocks = gather_blocks(maps, V).first[maps.count];
  if (blocks == 0) {
    return;
  }
  const Workspace<T> workspace = compute_taps(extents_of(maps), boxes, bins.height, bins.width, memory, stream);
  bool channels_last = false; // the layout, which all maps with data share
  for (int level = 0; level < maps.count; ++level) {
    channels_last = channels_last || maps.levels[level].channels_last;
  }
  if (channels_last) {
    launch_backward_blocks<V, true>(bins, workspace, maps, stream);
  } else if (blocks < kFewBlocks) {
    // Few blocks do not fill a GPU, so the number is doubled. For channels_last this gains nothing, because reads
    // become shorter.
    launch_backward_blocks<V / 2, false>(bins, workspace, maps, stream);
  } else {
    launch_backward_blocks<V, false>(bins, workspace, maps, stream);
  }
}

#define MRCNN_INSTANTIATE(scalar_t, T)                                                               \
  template void launch_forward<scalar_t, T>(                                                         \
      const Pyramid<const scalar_t>&, const Boxes<T>&, void*, const Bins<scalar_t>&, cuda_stream_t); \
  template void launch_backward<scalar_t, T>(                                                        \
      const Bins<const scalar_t>&, const Boxes<T>&, void*, const Pyramid<scalar_t>&, cuda_stream_t); \
  template int64_t workspace_bytes<scalar_t, T>(const Pyramid<scalar_t>&, int, int, int64_t);        \
  template int64_t workspace_bytes<const scalar_t, T>(const Pyramid<const scalar_t>&, int, int, int64_t);
MRCNN_INSTANTIATE(float, float)
MRCNN_INSTANTIATE(double, double)
MRCNN_INSTANTIATE(c10::Half, float)
MRCNN_INSTANTIATE(c10::BFloat16, float)
#undef MRCNN_INSTANTIATE

} // namespace mrcnn_plugin::cuda
