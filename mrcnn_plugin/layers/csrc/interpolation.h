// One axis of RoIAlign: where the samples of a bin lie, and the weights of the pixels that they read.
//
// RoIAlign is out = Wy . F . Wx^T for each RoI and channel (see docs/roi_align.md). This header computes rows of Wy and
// Wx. It is plain C++ for host and device, without ATen and standard containers.
//
// In the notation for one axis, the map has S pixels, the RoI has P bins, and a bin has g samples.
//   position(p, i) = start + p * bin + (i + 1/2) * bin / g     in pixels of the map, whose centres are integers
//   W[p, x]        = 1/g * sum_i k(x - position(p, i))          k is the interpolation kernel
// A sample outside [-1, S] counts in g but adds nothing. Every other sample is first clamped to [0, S-1], and a tap
// beyond the border reads the pixel at the border. The source is He et al., Mask R-CNN, arXiv 1703.06870, with the
// conventions of torchvision's roi_align.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define MRCNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MRCNN_HOST_DEVICE inline
#endif

// Fused multiply-adds would put samples elsewhere than other CPUs and GPUs do. Compilers use them by themselves where
// all CPUs that they compile for have them, as on aarch64. nvcc has an option of its own, see setup.py.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__FP_FAST_FMAF) && !defined(__CUDACC__)
#define MRCNN_GCC_MAY_FUSE
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

namespace mrcnn_plugin {

enum class Interpolation { kBilinear, kBicubic };

// The samples of one RoI along one axis.
template <typename T>
struct Axis {
  T start; // where the first bin begins, in pixels of the map
  T bin; // size of a bin, in pixels of the map
  T grid; // samples per bin, a whole number; there are none if it is not positive
};

// The band of a bin: the pixels [first, first + count), each with a weight. They are the taps of the samples [begin,
// begin + samples), which are those on the map.
struct Band {
  int64_t begin;
  int64_t samples;
  int64_t first;
  int64_t count;
};

// The operations have torchvision's order, so that rounding gives the same number of samples.
template <typename T>
MRCNN_HOST_DEVICE Axis<T> make_axis(T low, T high, T scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  Axis<T> axis;
  axis.start = low * scale - offset;
  T size = high * scale - offset - axis.start;
  if (!aligned && size < T(1) && std::isfinite(size)) {
    size = T(1);
  }
  axis.bin = size / static_cast<T>(bins);
  axis.grid = sampling_ratio > 0 ? static_cast<T>(sampling_ratio) : std::ceil(size / static_cast<T>(bins));
  return axis;
}

template <typename T>
MRCNN_HOST_DEVICE T sample_position(const Axis<T>& axis, int64_t p, int64_t i) {
  return axis.start + static_cast<T>(p) * axis.bin + (static_cast<T>(i) + T(0.5)) * axis.bin / axis.grid;
}

template <typename T>
MRCNN_HOST_DEVICE bool on_map(T x, int64_t size) {
  return x >= T(-1) && x <= static_cast<T>(size);
}

template <typename T>
MRCNN_HOST_DEVICE T clamp_to_map(T x, int64_t size) {
  const T last = static_cast<T>(size - 1);
  return x <= T(0) ? T(0) : (x >= last ? last : x);
}

// Converts a whole number x to an index in [0, bound]. The bound makes the conversion defined for every x, even NaN.
template <typename T>
MRCNN_HOST_DEVICE int64_t to_index(T x, int64_t bound) {
  return x > T(0) ? (x < static_cast<T>(bound) ? static_cast<int64_t>(x) : bound) : 0;
}

MRCNN_HOST_DEVICE int64_t clamp_index(int64_t i, int64_t count) {
  return i < 0 ? 0 : (i >= count ? count - 1 : i);
}

// Returns the first i in [0, count) for which holds(i) is false, or else count. It must not become true again.
template <typename Predicate>
MRCNN_HOST_DEVICE int64_t partition_point(int64_t count, const Predicate& holds) {
  int64_t low = 0;
  while (low < count) {
    const int64_t middle = low + (count - low) / 2;
    if (holds(middle)) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

// Returns the band of bin p. A RoI has no samples if one of its coordinates is not finite. A bin uses its first 2^27
// samples at most (2^56 in double). Rounding puts many samples of a larger bin at one position, and all would be
// visited.
template <typename T>
MRCNN_HOST_DEVICE Band bin_band(const Axis<T>& axis, int64_t p, int64_t size, Interpolation interpolation) {
  Band band{0, 0, 0, 0};
  if (!(axis.grid > T(0)) || !std::isfinite(axis.start) || !std::isfinite(axis.bin)) {
    return band;
  }
  constexpr int64_t kMostSamples = int64_t(1) << (std::numeric_limits<T>::digits + 3);
  int64_t begin = 0;
  int64_t end = to_index(axis.grid, kMostSamples);
  T a = sample_position(axis, p, begin);
  T b = sample_position(axis, p, end - 1);
  if (!on_map(a, size) || !on_map(b, size)) {
    // The positions are monotonic, even when rounded, so bisection finds those on the map. A huge RoI then costs little
    // more than one that covers the map.
    const bool falling = axis.bin < T(0);
    const T last = static_cast<T>(size);
    begin = partition_point(end, [&](int64_t i) {
      const T x = sample_position(axis, p, i);
      return falling ? x > last : x < T(-1);
    });
    end = partition_point(end, [&](int64_t i) {
      const T x = sample_position(axis, p, i);
      return falling ? x >= T(-1) : x <= last;
    });
    if (begin >= end) {
      return band;
    }
    a = sample_position(axis, p, begin);
    b = sample_position(axis, p, end - 1);
  }
  a = clamp_to_map(a, size);
  b = clamp_to_map(b, size);
  const bool cubic = interpolation == Interpolation::kBicubic;
  const int64_t first = static_cast<int64_t>(a < b ? a : b) - (cubic ? 1 : 0);
  const int64_t last = static_cast<int64_t>(a < b ? b : a) + (cubic ? 2 : 1);
  band.begin = begin;
  band.samples = end - begin;
  band.first = clamp_index(first, size); // a map can be so long that its last pixel is rounded
  band.count = (last > size - 1 ? size - 1 : last) - band.first + 1;
  return band;
}

// Computes the factors of the taps floor(x) - 1 ... floor(x) + 2 for t = x - floor(x). The kernel is Keys' (Cubic
// Convolution Interpolation for Digital Image Processing, IEEE ASSP 29(6), 1981, eq. 4 for any a).
template <typename T>
MRCNN_HOST_DEVICE void cubic_taps(T t, T a, T taps[4]) {
  const T s = T(1) - t;
  taps[0] = a * t * s * s;
  taps[1] = ((a + T(2)) * t - (a + T(3))) * t * t + T(1);
  taps[2] = ((a + T(2)) * s - (a + T(3))) * s * s + T(1);
  taps[3] = a * s * t * t;
}

// Writes the `band.count` weights of bin p to `weights`, `stride` numbers apart. A tap beyond the border of the map
// reads the border pixel, which is then the end of the band. So taps are clamped to the band, and rounding cannot make
// them leave `weights`.
template <typename T>
MRCNN_HOST_DEVICE void bin_weights(
    const Axis<T>& axis, int64_t p, const Band& band, int64_t size, Interpolation interpolation, T a, T* weights,
    int64_t stride = 1) {
  for (int64_t k = 0; k < band.count; ++k) {
    weights[k * stride] = T(0);
  }
  for (int64_t k = 0; k < band.samples; ++k) {
    const T x = clamp_to_map(sample_position(axis, p, band.begin + k), size);
    const int64_t low = static_cast<int64_t>(x);
    const T t = x - static_cast<T>(low);
    if (interpolation == Interpolation::kBilinear) {
      weights[clamp_index(low - band.first, band.count) * stride] += T(1) - t;
      weights[clamp_index(low + 1 - band.first, band.count) * stride] += t;
    } else {
      T taps[4];
      cubic_taps(t, a, taps);
      for (int64_t j = 0; j < 4; ++j) {
        weights[clamp_index(low - 1 + j - band.first, band.count) * stride] += taps[j];
      }
    }
  }
  for (int64_t k = 0; k < band.count; ++k) {
    weights[k * stride] /= axis.grid;
  }
}

} // namespace mrcnn_plugin

#if defined(MRCNN_GCC_MAY_FUSE)
#pragma GCC pop_options
#endif
