// RoIAlign on the CPU as a product of two banded matrices, out[k, c] = Wy[k] . F[b(k), c] . Wx[k]^T.
//
// Wy and Wx are computed once per RoI and shared by all channels. Work is divided over planes (image, channel): the RoIs
// of an image visit one plane after the other, while it is in cache, and in backward each plane has a single writer that
// adds in the order of the RoIs, so that the gradient is the same for any number of threads.
#include "../roi_align.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mrcnn_plugin::cpu {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
};

// The rows of Wy or Wx for every RoI: row (k, p) is a band and its weights.
template <typename T>
struct BandMatrix {
  int64_t bins;
  std::vector<Range> reach; // [K], the pixels that any bin of a RoI reads
  std::vector<Band> bands; // [K * bins]
  std::vector<int64_t> offsets; // of a row's weights
  std::vector<T> weights;

  const Band& band(int64_t k, int64_t p) const {
    return bands[k * bins + p];
  }
  const T* row(int64_t k, int64_t p) const {
    return weights.data() + offsets[k * bins + p];
  }
};

// Columns 1 + axis and 3 + axis of rois hold the box's extent along the axis (0: x, 1: y).
template <typename T>
BandMatrix<T> make_band_matrix(
    const T* rois, int64_t num_rois, int axis, int64_t size, int64_t bins, double spatial_scale,
    int64_t sampling_ratio, bool aligned, Interpolation interpolation, double a) {
  BandMatrix<T> matrix{bins, {}, {}, {}, {}};
  matrix.reach.reserve(num_rois);
  matrix.bands.reserve(num_rois * bins);
  matrix.offsets.reserve(num_rois * bins);
  for (int64_t k = 0; k < num_rois; ++k) {
    const T* roi = rois + k * 5;
    const Axis<T> samples = make_axis(
        roi[1 + axis], roi[3 + axis], static_cast<T>(spatial_scale), bins, sampling_ratio, aligned);
    Range reach{size, 0};
    for (int64_t p = 0; p < bins; ++p) {
      const Band band = bin_band(samples, p, size, interpolation);
      if (band.count > 0) {
        reach.begin = std::min(reach.begin, band.first);
        reach.end = std::max(reach.end, band.first + band.count);
      }
      const int64_t offset = static_cast<int64_t>(matrix.weights.size());
      matrix.weights.resize(offset + band.count);
      bin_weights(samples, p, band, size, interpolation, static_cast<T>(a), matrix.weights.data() + offset);
      matrix.bands.push_back(band);
      matrix.offsets.push_back(offset);
    }
    matrix.reach.push_back(reach.begin < reach.end ? reach : Range{0, 0});
  }
  return matrix;
}

// The RoIs of each image, in their order.
template <typename T>
std::vector<std::vector<int64_t>> rois_by_image(const T* rois, int64_t num_rois, int64_t batch) {
  std::vector<std::vector<int64_t>> by_image(batch);
  for (int64_t k = 0; k < num_rois; ++k) {
    const T index = rois[k * 5];
    TORCH_CHECK_INDEX(
        index >= T(0) && index < static_cast<T>(batch) && index == std::floor(index),
        "roi_align: boxes[", k, ", 0] is the batch index ", index, ", but input has batch size ", batch,
        ", so it must be a whole number in [0, ", batch, ")");
    by_image[static_cast<int64_t>(index)].push_back(k);
  }
  return by_image;
}

// Wy and Wx of all RoIs, and which RoIs belong to an image.
template <typename T>
struct Geometry {
  std::vector<std::vector<int64_t>> by_image;
  BandMatrix<T> y;
  BandMatrix<T> x;
  int64_t strip_size; // elements that the strip of any RoI fits in

  Geometry(
      const at::Tensor& rois, const Problem& problem, double spatial_scale, int64_t sampling_ratio, bool aligned,
      double a) {
    const at::Tensor contiguous = rois.contiguous();
    const T* data = contiguous.const_data_ptr<T>();
    const int64_t num_rois = rois.size(0);
    by_image = rois_by_image(data, num_rois, problem.batch);
    y = make_band_matrix(
        data, num_rois, 1, problem.height, problem.pooled_height, spatial_scale, sampling_ratio, aligned,
        problem.interpolation, a);
    x = make_band_matrix(
        data, num_rois, 0, problem.width, problem.pooled_width, spatial_scale, sampling_ratio, aligned,
        problem.interpolation, a);
    strip_size = problem.pooled_height * problem.width;
  }
};

// One plane of one RoI: the y pass into a strip of pooled_height rows, then the x pass.
template <typename scalar_t, typename acc_t>
void pool_plane(
    const Geometry<acc_t>& geometry, int64_t k, const scalar_t* plane, int64_t width, acc_t* strip, scalar_t* output) {
  const BandMatrix<acc_t>& wy = geometry.y;
  const BandMatrix<acc_t>& wx = geometry.x;
  const Range columns = wx.reach[k];
  const int64_t length = columns.end - columns.begin;
  for (int64_t p = 0; p < wy.bins; ++p) {
    acc_t* strip_row = strip + p * length;
    std::fill_n(strip_row, length, acc_t(0));
    const Band& band = wy.band(k, p);
    const acc_t* weights = wy.row(k, p);
    for (int64_t j = 0; j < band.count; ++j) {
      const scalar_t* row = plane + (band.first + j) * width + columns.begin;
      for (int64_t x = 0; x < length; ++x) {
        strip_row[x] += weights[j] * static_cast<acc_t>(row[x]);
      }
    }
  }
  for (int64_t q = 0; q < wx.bins; ++q) {
    const Band& band = wx.band(k, q);
    const acc_t* weights = wx.row(k, q);
    const acc_t* column = strip + (band.first - columns.begin);
    for (int64_t p = 0; p < wy.bins; ++p) {
      acc_t sum = 0;
      for (int64_t j = 0; j < band.count; ++j) {
        sum += weights[j] * column[p * length + j];
      }
      output[p * wx.bins + q] = static_cast<scalar_t>(sum);
    }
  }
}

// The transpose of pool_plane: adds Wy^T . G . Wx to the plane.
template <typename scalar_t, typename acc_t>
void scatter_plane(
    const Geometry<acc_t>& geometry, int64_t k, const scalar_t* grad, int64_t width, acc_t* strip, acc_t* plane) {
  const BandMatrix<acc_t>& wy = geometry.y;
  const BandMatrix<acc_t>& wx = geometry.x;
  const Range columns = wx.reach[k];
  const int64_t length = columns.end - columns.begin;
  std::fill_n(strip, wy.bins * length, acc_t(0));
  for (int64_t q = 0; q < wx.bins; ++q) {
    const Band& band = wx.band(k, q);
    const acc_t* weights = wx.row(k, q);
    acc_t* column = strip + (band.first - columns.begin);
    for (int64_t p = 0; p < wy.bins; ++p) {
      const acc_t g = static_cast<acc_t>(grad[p * wx.bins + q]);
      for (int64_t j = 0; j < band.count; ++j) {
        column[p * length + j] += weights[j] * g;
      }
    }
  }
  for (int64_t p = 0; p < wy.bins; ++p) {
    const acc_t* strip_row = strip + p * length;
    const Band& band = wy.band(k, p);
    const acc_t* weights = wy.row(k, p);
    for (int64_t j = 0; j < band.count; ++j) {
      acc_t* row = plane + (band.first + j) * width + columns.begin;
      for (int64_t x = 0; x < length; ++x) {
        row[x] += weights[j] * strip_row[x];
      }
    }
  }
}

// Calls visit(image, channel, scratch) for every plane, in parallel; scratch is a strip of the calling thread.
template <typename T, typename Visit>
void for_each_plane(const Geometry<T>& geometry, int64_t channels, const Visit& visit) {
  const int64_t planes = static_cast<int64_t>(geometry.by_image.size()) * channels;
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> strip(geometry.strip_size);
    for (int64_t plane = begin; plane < end; ++plane) {
      visit(plane / channels, plane % channels, strip.data());
    }
  });
}

} // namespace

at::Tensor roi_align(
    const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_forward(input, rois, pooled_height, pooled_width, sampling_ratio, interpolation);
  const int64_t channels = problem.channels, width = problem.width;
  const int64_t plane_size = problem.height * width, bins = pooled_height * pooled_width;
  const at::Tensor features = input.contiguous();
  at::Tensor output = at::empty({rois.size(0), channels, pooled_height, pooled_width}, features.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "roi_align", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Geometry<acc_t> geometry(rois, problem, spatial_scale, sampling_ratio, aligned, a);
    const scalar_t* in = features.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    for_each_plane(geometry, channels, [&](int64_t image, int64_t channel, acc_t* strip) {
      const scalar_t* plane = in + (image * channels + channel) * plane_size;
      for (const int64_t k : geometry.by_image[image]) {
        pool_plane(geometry, k, plane, width, strip, out + (k * channels + channel) * bins);
      }
    });
  });
  return output;
}

at::Tensor roi_align_backward(
    const at::Tensor& grad, const at::Tensor& rois, double spatial_scale, int64_t batch, int64_t height, int64_t width,
    int64_t sampling_ratio, bool aligned, std::string_view interpolation, double a) {
  const Problem problem = check_backward(grad, rois, batch, height, width, sampling_ratio, interpolation);
  const int64_t channels = problem.channels;
  const int64_t plane_size = height * width, bins = problem.pooled_height * problem.pooled_width;
  const at::Tensor contiguous = grad.contiguous();
  at::Tensor grad_input;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Geometry<acc_t> geometry(rois, problem, spatial_scale, sampling_ratio, aligned, a);
    // Sums of half-precision gradients are kept in float32 until the last one is in.
    grad_input = at::zeros(
        {batch, channels, height, width}, grad.options().dtype(c10::CppTypeToScalarType<acc_t>::value));
    const scalar_t* in = contiguous.const_data_ptr<scalar_t>();
    acc_t* out = grad_input.mutable_data_ptr<acc_t>();
    for_each_plane(geometry, channels, [&](int64_t image, int64_t channel, acc_t* strip) {
      acc_t* plane = out + (image * channels + channel) * plane_size;
      for (const int64_t k : geometry.by_image[image]) {
        scatter_plane(geometry, k, in + (k * channels + channel) * bins, width, strip, plane);
      }
    });
  });
  return grad_input.to(grad.scalar_type());
}

} // namespace mrcnn_plugin::cpu
