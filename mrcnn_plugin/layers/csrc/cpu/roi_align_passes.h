// The y pass and the x pass on packed memory, and their transposes. Part of roi_align_kernel_impl.h.
#pragma once

namespace mrcnn_plugin::cpu::MRCNN_ISA {
namespace {

constexpr int kTile = 8; // columns that a y pass works on at a time, with one register each

// Packed pixels. Rows are row_stride elements apart.
template <typename T>
struct Pixels {
  T* data;
  int64_t row_stride;

  T* address(int64_t row, int64_t column) const {
    return data + row * row_stride + column * kLanes<std::remove_const_t<T>>;
  }
};

// strip[x][p] = sum_r Wy[first + p, r] . map[r][x]
template <typename T>
inline void y_pass(
    const SparseRows<T>& wy, int64_t first, int64_t rows, Pixels<const T> map, int64_t columns, T* strip) {
  constexpr int L = kLanes<T>;
  for (int64_t x = 0; x < columns; x += kTile) {
    unrolled(smaller(kTile, columns - x), [&](auto count) {
      constexpr int n = decltype(count)::value;
      const T* tile = map.address(0, x);
      for (int64_t p = 0; p < rows; ++p) {
        Vector<T> sum[n] = {};
        for (int64_t j = wy.starts[first + p]; j < wy.starts[first + p + 1]; ++j) {
          const T* row = tile + wy.columns[j] * map.row_stride;
          const T weight = wy.weights[j];
          for (int i = 0; i < n; ++i) {
            sum[i] += weight * as_vector(row + i * L);
          }
        }
        for (int i = 0; i < n; ++i) {
          as_vector(strip + ((x + i) * kGroupRows + p) * L) = sum[i];
        }
      }
    });
  }
}

// bins[p][q] = sum_x Wx[first + q, x] . strip[x][p]
template <typename T>
inline void x_pass(
    const SparseRows<T>& wx, int64_t first, int64_t rows, int64_t bins_per_row, const T* strip, T* bins) {
  constexpr int L = kLanes<T>;
  unrolled(rows, [&](auto count) {
    constexpr int n = decltype(count)::value;
    for (int64_t q = 0; q < bins_per_row; ++q) {
      Vector<T> sum[n] = {};
      for (int64_t j = wx.starts[first + q]; j < wx.starts[first + q + 1]; ++j) {
        const T* column = strip + wx.columns[j] * kGroupRows * L;
        const T weight = wx.weights[j];
        for (int p = 0; p < n; ++p) {
          sum[p] += weight * as_vector(column + p * L);
        }
      }
      for (int p = 0; p < n; ++p) {
        as_vector(bins + (p * bins_per_row + q) * L) = sum[p];
      }
    }
  });
}

// strip[x][p] = sum_q Wx^T[first + x, q] . bins[p][q]
template <typename T>
inline void x_pass_transposed(
    const SparseRows<T>& wx, int64_t first, int64_t columns, const T* bins, int64_t rows, int64_t bins_per_row,
    T* strip) {
  constexpr int L = kLanes<T>;
  unrolled(rows, [&](auto count) {
    constexpr int n = decltype(count)::value;
    for (int64_t x = 0; x < columns; ++x) {
      Vector<T> sum[n] = {};
      for (int64_t j = wx.starts[first + x]; j < wx.starts[first + x + 1]; ++j) {
        const T* bin = bins + wx.columns[j] * L;
        const T weight = wx.weights[j];
        for (int p = 0; p < n; ++p) {
          sum[p] += weight * as_vector(bin + p * bins_per_row * L);
        }
      }
      for (int p = 0; p < n; ++p) {
        as_vector(strip + (x * kGroupRows + p) * L) = sum[p];
      }
    }
  });
}

// map[r][x] += sum_p Wy^T[first + r, p] . strip[x][p]
template <typename T>
inline void y_pass_transposed(
    const SparseRows<T>& wy, int64_t first, int64_t rows, const T* strip, int64_t columns, Pixels<T> map) {
  constexpr int L = kLanes<T>;
  for (int64_t x = 0; x < columns; x += kTile) {
    unrolled(smaller(kTile, columns - x), [&](auto count) {
      constexpr int n = decltype(count)::value;
      const T* tile = strip + x * kGroupRows * L;
      for (int64_t r = 0; r < rows; ++r) {
        T* row = map.address(r, x);
        Vector<T> sum[n];
        for (int i = 0; i < n; ++i) {
          sum[i] = as_vector(row + i * L);
        }
        for (int64_t j = wy.starts[first + r]; j < wy.starts[first + r + 1]; ++j) {
          const T* column = tile + wy.columns[j] * L;
          const T weight = wy.weights[j];
          for (int i = 0; i < n; ++i) {
            sum[i] += weight * as_vector(column + i * kGroupRows * L);
          }
        }
        for (int i = 0; i < n; ++i) {
          as_vector(row + i * L) = sum[i];
        }
      }
    });
  }
}

} // namespace
} // namespace mrcnn_plugin::cpu::MRCNN_ISA
