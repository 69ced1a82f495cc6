// Copies between the memory of a tensor and packed memory, [row][column][lane]. Part of roi_align_kernel_impl.h.
#pragma once

namespace mrcnn_plugin::cpu::MRCNN_ISA {
namespace {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MRCNN_SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(MRCNN_SHUFFLE)
// GCC before version 12 has another name for it.
#define MRCNN_SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

// These functions transpose a square of vectors. Each shuffle is one instruction.
template <typename T, typename Mask>
inline void transpose2(Vector<T> (&v)[2]) {
  const Vector<T> a = v[0], b = v[1];
  v[0] = MRCNN_SHUFFLE(Mask, a, b, 0, 2);
  v[1] = MRCNN_SHUFFLE(Mask, a, b, 1, 3);
}

template <typename T, typename Mask>
inline void transpose4(Vector<T> (&v)[4]) {
  const Vector<T> a = MRCNN_SHUFFLE(Mask, v[0], v[1], 0, 4, 2, 6), b = MRCNN_SHUFFLE(Mask, v[0], v[1], 1, 5, 3, 7);
  const Vector<T> c = MRCNN_SHUFFLE(Mask, v[2], v[3], 0, 4, 2, 6), d = MRCNN_SHUFFLE(Mask, v[2], v[3], 1, 5, 3, 7);
  v[0] = MRCNN_SHUFFLE(Mask, a, c, 0, 1, 4, 5);
  v[1] = MRCNN_SHUFFLE(Mask, b, d, 0, 1, 4, 5);
  v[2] = MRCNN_SHUFFLE(Mask, a, c, 2, 3, 6, 7);
  v[3] = MRCNN_SHUFFLE(Mask, b, d, 2, 3, 6, 7);
}

template <typename T, typename Mask>
inline void transpose8(Vector<T> (&v)[8]) {
  Vector<T> w[8];
  for (int i = 0; i < 8; i += 2) {
    w[i] = MRCNN_SHUFFLE(Mask, v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    w[i + 1] = MRCNN_SHUFFLE(Mask, v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    v[i] = MRCNN_SHUFFLE(Mask, w[i], w[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 1] = MRCNN_SHUFFLE(Mask, w[i], w[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    v[i + 2] = MRCNN_SHUFFLE(Mask, w[i + 1], w[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 3] = MRCNN_SHUFFLE(Mask, w[i + 1], w[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    w[i] = MRCNN_SHUFFLE(Mask, v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    w[i + 4] = MRCNN_SHUFFLE(Mask, v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) {
    v[i] = w[i];
  }
}

template <typename T>
inline void transpose(Vector<T> (&v)[kLanes<T>]) {
  using Mask = Vector<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;
  if constexpr (kLanes<T> == 2) {
    transpose2<T, Mask>(v);
  } else if constexpr (kLanes<T> == 4) {
    transpose4<T, Mask>(v);
  } else {
    transpose8<T, Mask>(v);
  }
}

// Pixels of a row, or bins, with their channels in memory of any layout.
template <typename scalar_t>
struct Run {
  scalar_t* data;
  int64_t column_stride;
  int64_t channel_stride;

  scalar_t* address(int64_t column, int64_t channel) const {
    return data + column * column_stride + channel * channel_stride;
  }
};

// Copies `columns` pixels of `channels` channels to [block][column][lane]. A block has as many channels as a vector has
// lanes, and blocks are block_stride elements apart. Lanes beyond the last channel get any number.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void pack(Run<const scalar_t> source, int64_t columns, int64_t channels, T* packed, int64_t block_stride) {
  constexpr int L = kLanes<T>;
  const int64_t full_blocks = source.channel_stride == 1 ? channels / L : 0;
  if (source.column_stride == 1 && columns >= L) {
    for (int64_t c = 0; c < channels; c += L, packed += block_stride) {
      for (int64_t x = 0; x < columns; x += L) {
        const int64_t start = smaller(x, columns - L);
        Vector<T> tile[L];
        for (int i = 0; i < L; ++i) {
          const scalar_t* line = source.address(start, smaller(c + i, channels - 1));
          tile[i] = load(line);
          // Each channel is a stream of memory, and the hardware does not predict so many streams well.
          __builtin_prefetch(line + 256 / sizeof(scalar_t));
        }
        transpose<T>(tile);
        for (int i = 0; i < L; ++i) {
          as_vector(packed + (start + i) * L) = tile[i];
        }
      }
    }
    return;
  }
  int64_t b = 0;
  for (; b + 2 <= full_blocks; b += 2) {
    const scalar_t* from = source.address(0, b * L);
    T* to = packed + b * block_stride;
    for (int64_t x = 0; x < columns; ++x, from += source.column_stride, to += L) {
      as_vector(to) = load(from);
      as_vector(to + block_stride) = load(from + L);
    }
  }
  for (; b * L < channels; ++b) {
    const int64_t lanes = smaller(L, channels - b * L);
    for (int64_t x = 0; x < columns; ++x) {
      as_vector(packed + b * block_stride + x * L) = b < full_blocks
          ? load(source.address(x, b * L))
          : load_some(source.address(x, b * L), lanes, source.channel_stride);
    }
  }
}

// Copies packed memory back to a tensor.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void unpack(const T* packed, int64_t block_stride, int64_t columns, int64_t channels, Run<scalar_t> target) {
  constexpr int L = kLanes<T>;
  const int64_t full_blocks = target.channel_stride == 1 ? channels / L : 0;
  if (target.column_stride == 1 && columns >= L) {
    for (int64_t c = 0; c < channels; c += L, packed += block_stride) {
      for (int64_t x = 0; x < columns; x += L) {
        const int64_t start = smaller(x, columns - L);
        Vector<T> tile[L];
        for (int i = 0; i < L; ++i) {
          tile[i] = as_vector(packed + (start + i) * L);
        }
        transpose<T>(tile);
        for (int i = 0; i < L && c + i < channels; ++i) {
          store(target.address(start, c + i), tile[i]);
        }
      }
    }
    return;
  }
  int64_t b = 0;
  for (; b + 2 <= full_blocks; b += 2) {
    const T* from = packed + b * block_stride;
    scalar_t* to = target.address(0, b * L);
    for (int64_t x = 0; x < columns; ++x, from += L, to += target.column_stride) {
      store(to, as_vector(from));
      store(to + L, as_vector(from + block_stride));
    }
  }
  for (; b * L < channels; ++b) {
    const int64_t lanes = smaller(L, channels - b * L);
    for (int64_t x = 0; x < columns; ++x) {
      const Vector<T> pixel = as_vector(packed + b * block_stride + x * L);
      if (b < full_blocks) {
        store(target.address(x, b * L), pixel);
      } else {
        store_some(target.address(x, b * L), pixel, lanes, target.channel_stride);
      }
    }
  }
}

// Does the same as unpack for pixels that will not be read soon. If two blocks of channels are a cache line of each
// pixel, the lines are not read first. That would take long, because they are far apart.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void unpack_for_good(
    const T* packed, int64_t block_stride, int64_t columns, int64_t channels, Run<scalar_t> target) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  if (2 * L == kLine && channels == kLine && target.channel_stride == 1 && target.column_stride % kLine == 0 &&
      reinterpret_cast<uintptr_t>(target.data) % 64 == 0) {
    for (int64_t x = 0; x < columns; ++x) {
      stream(target.address(x, 0), as_vector(packed + x * L));
      stream(target.address(x, L), as_vector(packed + block_stride + x * L));
    }
  } else {
    unpack(packed, block_stride, columns, channels, target);
  }
}

// Prefetches memory that will soon be read (if scalar_t is const) or written.
template <typename scalar_t>
inline void prefetch(Run<scalar_t> run, int64_t columns, int64_t channels) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  const int64_t column_step = run.column_stride == 1 ? kLine : 1;
  const int64_t channel_step = run.channel_stride == 1 ? kLine : 1;
  for (int64_t c = 0; c < channels; c += channel_step) {
    for (int64_t x = 0; x < columns; x += column_step) {
      __builtin_prefetch(run.address(x, c), std::is_const_v<scalar_t> ? 0 : 1);
    }
  }
}

} // namespace
} // namespace mrcnn_plugin::cpu::MRCNN_ISA
