// RoIAlign as a product of sparse matrices, out[k, c] = Wy[k] . F[c] . Wx[k]^T, on vectors whose lanes are channels.
//
// The part of the map that is needed is first copied to [row][column][lane] ("packed"), so that everything after it is a
// sum of whole aligned vectors times a number, whatever the layout and type of the map. Per RoI and group of bin rows:
//   forward    map -- Wy --> strip [column][bin row][lane] -- Wx --> bins [bin row][bin column][lane] -- unpack --> target
//   backward   bins <-- pack -- source; the transposes in the opposite order; the map is unpacked to target at the end
// The rows of a strip are the registers of the x pass: each of its weights is loaded once for all of them.
//
// Included by one file per instruction set, which defines
//   MRCNN_ISA            the namespace; one of its own keeps the linker from mixing instruction sets
//   MRCNN_VECTOR_BYTES   16 or 32
//   MRCNN_F16C           where float16 is converted in hardware
// For the same reason nothing here may call an inline function of a header that is not included before the instruction
// set is switched on.

namespace mrcnn_plugin::cpu::MRCNN_ISA {
namespace {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(MRCNN_VECTOR_BYTES)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = MRCNN_VECTOR_BYTES / sizeof(T);

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// visit(Count<n>()) for n <= 8, so that loops over n registers are unrolled.
template <int N>
struct Count {
  static constexpr int value = N;
};

template <typename Visit>
inline void unrolled(int64_t n, const Visit& visit) {
  switch (n) {
    case 1: return visit(Count<1>());
    case 2: return visit(Count<2>());
    case 3: return visit(Count<3>());
    case 4: return visit(Count<4>());
    case 5: return visit(Count<5>());
    case 6: return visit(Count<6>());
    case 7: return visit(Count<7>());
    default: return visit(Count<8>());
  }
}

// ---- memory -------------------------------------------------------------------------------------------------------

inline Vector<float> load(const float* p) {
  Vector<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline Vector<double> load(const double* p) {
  Vector<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, Vector<float> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

inline void store(double* p, Vector<double> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Packed memory is aligned.
template <typename T>
inline const Vector<T>& at(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <typename T>
inline Vector<T>& at(T* p) {
  return *reinterpret_cast<Vector<T>*>(p);
}

typedef uint16_t Bits16 __attribute__((vector_size(MRCNN_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(MRCNN_VECTOR_BYTES)));

inline Vector<float> load(const c10::BFloat16* p) {
  Bits16 bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Bits32) << 16);
}

inline void store(c10::BFloat16* p, Vector<float> v) {
  // To the nearest, ties to even. A NaN is kept from being rounded to infinity.
  const Bits32 bits = reinterpret_cast<Bits32>(v);
  const Bits32 rounded = (bits + (0x7fff + ((bits >> 16) & 1))) >> 16;
  const Bits32 is_nan = reinterpret_cast<Bits32>(v != v);
  const Bits16 result = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Bits16);
  __builtin_memcpy(p, &result, sizeof(result));
}

#if defined(MRCNN_F16C)
inline Vector<float> load(const c10::Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline void store(c10::Half* p, Vector<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vector<float> load(const c10::Half* p) {
  Vector<float> v;
  for (int i = 0; i < kLanes<float>; ++i) {
    v[i] = static_cast<float>(p[i]);
  }
  return v;
}

inline void store(c10::Half* p, Vector<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) {
    p[i] = static_cast<c10::Half>(v[i]);
  }
}
#endif

// The first n lanes only, the others zero.
template <typename scalar_t>
inline Vector<accumulator_t<scalar_t>> load_some(const scalar_t* p, int64_t n, int64_t stride) {
  scalar_t lanes[kLanes<accumulator_t<scalar_t>>];
  __builtin_memset(lanes, 0, sizeof(lanes));
  for (int64_t i = 0; i < n; ++i) {
    __builtin_memcpy(&lanes[i], p + i * stride, sizeof(scalar_t));
  }
  return load(lanes);
}

template <typename scalar_t>
inline void store_some(scalar_t* p, Vector<accumulator_t<scalar_t>> v, int64_t n, int64_t stride) {
  scalar_t lanes[kLanes<accumulator_t<scalar_t>>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) {
    __builtin_memcpy(p + i * stride, &lanes[i], sizeof(scalar_t));
  }
}

// ---- packing ------------------------------------------------------------------------------------------------------

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MRCNN_SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(MRCNN_SHUFFLE)
// GCC before 12.
#define MRCNN_SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

// Transposes a square of vectors. The shuffles are those that are one instruction each.
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

// A run of pixels with their channels in memory of any layout.
template <typename scalar_t>
struct Run {
  scalar_t* data;
  int64_t column_stride;
  int64_t channel_stride;

  scalar_t* at(int64_t column, int64_t channel) const {
    return data + column * column_stride + channel * channel_stride;
  }
};

// Copies `columns` pixels of `channels` channels to [block][columns][lanes], block_stride elements from block to block.
// Lanes beyond the last channel get any number.
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
          const scalar_t* line = source.at(start, smaller(c + i, channels - 1));
          tile[i] = load(line);
          // A stream of memory per channel is more than hardware foresees well.
          __builtin_prefetch(line + 256 / sizeof(scalar_t));
        }
        transpose<T>(tile);
        for (int i = 0; i < L; ++i) {
          at(packed + (start + i) * L) = tile[i];
        }
      }
    }
    return;
  }
  int64_t b = 0;
  for (; b + 2 <= full_blocks; b += 2) {
    const scalar_t* from = source.at(0, b * L);
    T* to = packed + b * block_stride;
    for (int64_t x = 0; x < columns; ++x, from += source.column_stride, to += L) {
      at(to) = load(from);
      at(to + block_stride) = load(from + L);
    }
  }
  for (; b * L < channels; ++b) {
    const int64_t lanes = smaller(L, channels - b * L);
    for (int64_t x = 0; x < columns; ++x) {
      at(packed + b * block_stride + x * L) =
          b < full_blocks ? load(source.at(x, b * L)) : load_some(source.at(x, b * L), lanes, source.channel_stride);
    }
  }
}

// The opposite of pack.
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
          tile[i] = at(packed + (start + i) * L);
        }
        transpose<T>(tile);
        for (int i = 0; i < L && c + i < channels; ++i) {
          store(target.at(start, c + i), tile[i]);
        }
      }
    }
    return;
  }
  int64_t b = 0;
  for (; b + 2 <= full_blocks; b += 2) {
    const T* from = packed + b * block_stride;
    scalar_t* to = target.at(0, b * L);
    for (int64_t x = 0; x < columns; ++x, from += L, to += target.column_stride) {
      store(to, at(from));
      store(to + L, at(from + block_stride));
    }
  }
  for (; b * L < channels; ++b) {
    const int64_t lanes = smaller(L, channels - b * L);
    for (int64_t x = 0; x < columns; ++x) {
      const Vector<T> pixel = at(packed + b * block_stride + x * L);
      if (b < full_blocks) {
        store(target.at(x, b * L), pixel);
      } else {
        store_some(target.at(x, b * L), pixel, lanes, target.channel_stride);
      }
    }
  }
}

// Asks for memory that is going to be read (if const) or written, so that it is there in time.
template <typename scalar_t>
inline void prefetch(Run<scalar_t> run, int64_t columns, int64_t channels) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  const int64_t column_step = run.column_stride == 1 ? kLine : 1;
  const int64_t channel_step = run.channel_stride == 1 ? kLine : 1;
  for (int64_t c = 0; c < channels; c += channel_step) {
    for (int64_t x = 0; x < columns; x += column_step) {
      __builtin_prefetch(run.at(x, c), std::is_const_v<scalar_t> ? 0 : 1);
    }
  }
}

// ---- the two passes -----------------------------------------------------------------------------------------------

constexpr int kTile = 8; // columns that the y passes work on at a time, one register each

// Packed pixels, row_stride elements from row to row.
template <typename T>
struct Pixels {
  T* data;
  int64_t row_stride;

  T* at(int64_t row, int64_t column) const {
    return data + row * row_stride + column * kLanes<std::remove_const_t<T>>;
  }
};

// strip[x][p] = sum_r Wy[first + p, r] . map[r][x]
template <typename T>
inline void y_pass(const SparseRows<T>& wy, int64_t first, int64_t rows, Pixels<const T> map, int64_t columns, T* strip) {
  constexpr int L = kLanes<T>;
  for (int64_t x = 0; x < columns; x += kTile) {
    unrolled(smaller(kTile, columns - x), [&](auto count) {
      constexpr int n = decltype(count)::value;
      const T* tile = map.at(0, x);
      for (int64_t p = 0; p < rows; ++p) {
        Vector<T> sum[n] = {};
        for (int64_t j = wy.starts[first + p]; j < wy.starts[first + p + 1]; ++j) {
          const T* row = tile + wy.columns[j] * map.row_stride;
          const T weight = wy.weights[j];
          for (int i = 0; i < n; ++i) {
            sum[i] += weight * at(row + i * L);
          }
        }
        for (int i = 0; i < n; ++i) {
          at(strip + ((x + i) * kGroupRows + p) * L) = sum[i];
        }
      }
    });
  }
}

// bins[p][q] = sum_x Wx[first + q, x] . strip[x][p]
template <typename T>
inline void x_pass(const SparseRows<T>& wx, int64_t first, int64_t rows, int64_t bins_per_row, const T* strip, T* bins) {
  constexpr int L = kLanes<T>;
  unrolled(rows, [&](auto count) {
    constexpr int n = decltype(count)::value;
    for (int64_t q = 0; q < bins_per_row; ++q) {
      Vector<T> sum[n] = {};
      for (int64_t j = wx.starts[first + q]; j < wx.starts[first + q + 1]; ++j) {
        const T* column = strip + wx.columns[j] * kGroupRows * L;
        const T weight = wx.weights[j];
        for (int p = 0; p < n; ++p) {
          sum[p] += weight * at(column + p * L);
        }
      }
      for (int p = 0; p < n; ++p) {
        at(bins + (p * bins_per_row + q) * L) = sum[p];
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
          sum[p] += weight * at(bin + p * bins_per_row * L);
        }
      }
      for (int p = 0; p < n; ++p) {
        at(strip + (x * kGroupRows + p) * L) = sum[p];
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
        T* row = map.at(r, x);
        Vector<T> sum[n];
        for (int i = 0; i < n; ++i) {
          sum[i] = at(row + i * L);
        }
        for (int64_t j = wy.starts[first + r]; j < wy.starts[first + r + 1]; ++j) {
          const T* column = tile + wy.columns[j] * L;
          const T weight = wy.weights[j];
          for (int i = 0; i < n; ++i) {
            sum[i] += weight * at(column + i * kGroupRows * L);
          }
        }
        for (int i = 0; i < n; ++i) {
          at(row + i * L) = sum[i];
        }
      }
    });
  }
}

// ---- units --------------------------------------------------------------------------------------------------------

// Channels [begin, begin + count) of an image.
struct Channels {
  int64_t begin;
  int64_t count;
};

template <typename scalar_t>
inline int64_t num_parts(const Task<scalar_t>& task) {
  return (task.channels + task.channels_per_unit - 1) / task.channels_per_unit;
}

template <typename scalar_t>
inline Channels part(const Task<scalar_t>& task, int64_t i) {
  const int64_t begin = i * task.channels_per_unit;
  return {begin, smaller(task.channels_per_unit, task.channels - begin)};
}

// The pixels of a row of the map from `column`, or the bins of a RoI from row p.
template <typename S, typename scalar_t>
inline Run<S> map_run(
    S* map, const Task<scalar_t>& task, int64_t image, Channels channels, int64_t row, int64_t column) {
  const Strides& strides = task.map;
  return {
      map + image * strides.item + channels.begin * strides.channel + row * strides.row + column * strides.column,
      strides.column, strides.channel};
}

template <typename S, typename scalar_t>
inline Run<S> bins_run(S* bins, const Task<scalar_t>& task, const Roi& roi, Channels channels, int64_t p) {
  const Strides& strides = task.bins;
  return {
      bins + roi.row * strides.item + channels.begin * strides.channel + p * strides.row, strides.column,
      strides.channel};
}

// Memory of a thread: a strip, the bins of a group of rows, and packed pixels. The latter two for each block of a unit.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
struct Scratch {
  int64_t bins_stride; // from block to block
  int64_t pixels_stride;
  T* strip;
  T* bins;
  T* pixels;

  Scratch(const Task<scalar_t>& task, int64_t num_pixels, T* memory)
      : bins_stride(smaller(kGroupRows, task.pooled_height) * task.pooled_width * kLanes<T>),
        pixels_stride(num_pixels * kLanes<T>),
        strip(memory),
        bins(strip + task.longest_row * kGroupRows * kLanes<T>),
        pixels(bins + blocks(task) * bins_stride) {}

  static int64_t blocks(const Task<scalar_t>& task) {
    return (task.channels_per_unit + kLanes<T> - 1) / kLanes<T>;
  }
  int64_t size(const Task<scalar_t>& task) const {
    return pixels + blocks(task) * pixels_stride - strip;
  }
};

// `map` starts at the first pixel that the RoI reads.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void pool(
    const Task<scalar_t>& task, const Roi& roi, Channels channels, Pixels<const T> map,
    const Scratch<scalar_t>& scratch) {
  for (int64_t group = 0; group < num_groups(task.pooled_height); ++group) {
    const int64_t p = group_begin(group, task.pooled_height);
    const int64_t rows = group_begin(group + 1, task.pooled_height) - p;
    const Run<scalar_t> target = bins_run(task.target, task, roi, channels, p);
    prefetch(target, rows * task.pooled_width, channels.count);
    for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
      y_pass(
          task.y, roi.index * task.pooled_height + p, rows,
          Pixels<const T>{map.data + b * scratch.pixels_stride, map.row_stride}, roi.columns.size(),
          scratch.strip);
      x_pass(
          task.x, roi.index * task.pooled_width, rows, task.pooled_width, scratch.strip,
          scratch.bins + b * scratch.bins_stride);
    }
    unpack(scratch.bins, scratch.bins_stride, rows * task.pooled_width, channels.count, target);
  }
}

// All RoIs of an image from one packed map, whose rows are packed when the first RoI needs them.
template <typename scalar_t>
void forward_shared(
    const Task<scalar_t>& task, int64_t image, Channels channels, const Scratch<scalar_t>& scratch) {
  using T = accumulator_t<scalar_t>;
  const Pixels<T> map{scratch.pixels, task.width * kLanes<T>};
  int64_t packed_end = 0;
  for (int64_t k = task.image_starts[image]; k < task.image_starts[image + 1]; ++k) {
    const Roi& roi = task.rois[k];
    if (packed_end < roi.rows.begin) {
      packed_end = roi.rows.begin;
    }
    for (; packed_end < roi.rows.end; ++packed_end) {
      pack(
          map_run(task.source, task, image, channels, packed_end, 0), task.width, channels.count,
          map.at(packed_end, 0), scratch.pixels_stride);
    }
    pool(
        task, roi, channels, Pixels<const T>{map.at(roi.rows.begin, roi.columns.begin), map.row_stride}, scratch);
  }
}

template <typename scalar_t>
void forward_single(
    const Task<scalar_t>& task, const Roi& roi, Channels channels, const Scratch<scalar_t>& scratch) {
  using T = accumulator_t<scalar_t>;
  const int64_t columns = roi.columns.size();
  const Pixels<T> map{scratch.pixels, columns * kLanes<T>};
  for (int64_t row = roi.rows.begin; row < roi.rows.end; ++row) {
    pack(
        map_run(task.source, task, roi.image, channels, row, roi.columns.begin), columns, channels.count,
        map.at(row - roi.rows.begin, 0), scratch.pixels_stride);
  }
  pool(task, roi, channels, Pixels<const T>{map.data, map.row_stride}, scratch);
}

template <typename scalar_t>
Scratch<scalar_t> forward_scratch(const Task<scalar_t>& task, accumulator_t<scalar_t>* memory) {
  return Scratch<scalar_t>(task, task.share_map ? task.height * task.width : task.largest_window, memory);
}

template <typename scalar_t>
int64_t forward_scratch_size(const Task<scalar_t>& task) {
  return forward_scratch(task, nullptr).size(task);
}

template <typename scalar_t>
void forward(const Task<scalar_t>& task, int64_t begin, int64_t end, accumulator_t<scalar_t>* memory) {
  const Scratch<scalar_t> scratch = forward_scratch(task, memory);
  const int64_t num_rois = task.image_starts[task.images];
  for (int64_t unit = begin; unit < end; ++unit) {
    if (task.share_map) {
      forward_shared(task, unit % task.images, part(task, unit / task.images), scratch);
    } else if (task.map.channel == 1) {
      forward_single(task, task.rois[unit / num_parts(task)], part(task, unit % num_parts(task)), scratch);
    } else {
      forward_single(task, task.rois[unit % num_rois], part(task, unit / num_rois), scratch);
    }
  }
}

// Adds a RoI's gradient to the packed map.
template <typename scalar_t, typename T = accumulator_t<scalar_t>>
inline void scatter(
    const Task<scalar_t>& task, const Roi& roi, Channels channels, Pixels<T> map, const Scratch<scalar_t>& scratch) {
  const int64_t columns = roi.columns.size();
  for (int64_t group = 0; group < num_groups(task.pooled_height); ++group) {
    const int64_t p = group_begin(group, task.pooled_height);
    const int64_t rows = group_begin(group + 1, task.pooled_height) - p;
    const RowGroup& reach = task.groups[roi.index * num_groups(task.pooled_height) + group];
    pack(
        bins_run(task.source, task, roi, channels, p), rows * task.pooled_width, channels.count, scratch.bins,
        scratch.bins_stride);
    for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
      x_pass_transposed(
          task.x, roi.transposed_column, columns, scratch.bins + b * scratch.bins_stride, rows, task.pooled_width,
          scratch.strip);
      y_pass_transposed(
          task.y, reach.transposed_row, reach.rows.size(), scratch.strip, columns,
          Pixels<T>{map.at(reach.rows.begin, roi.columns.begin) + b * scratch.pixels_stride, map.row_stride});
    }
  }
}

template <typename scalar_t>
Scratch<scalar_t> backward_scratch(const Task<scalar_t>& task, accumulator_t<scalar_t>* memory) {
  return Scratch<scalar_t>(task, task.height * task.width, memory);
}

template <typename scalar_t>
int64_t backward_scratch_size(const Task<scalar_t>& task) {
  return backward_scratch(task, nullptr).size(task);
}

template <typename scalar_t>
void backward(const Task<scalar_t>& task, int64_t begin, int64_t end, accumulator_t<scalar_t>* memory) {
  using T = accumulator_t<scalar_t>;
  const Scratch<scalar_t> scratch = backward_scratch(task, memory);
  const Pixels<T> map{scratch.pixels, task.width * kLanes<T>};
  for (int64_t unit = begin; unit < end; ++unit) {
    const Channels channels = part(task, unit / task.images);
    const int64_t image = unit % task.images;
    // RoIs come by their first row: rows above it are final, rows that no RoI has reached yet are not cleared yet.
    int64_t final_end = 0;
    int64_t cleared_end = 0;
    const auto advance = [&](int64_t row_begin, int64_t row_end) {
      for (; cleared_end < row_end; ++cleared_end) {
        for (int64_t b = 0; b * kLanes<T> < channels.count; ++b) {
          __builtin_memset(map.at(cleared_end, 0) + b * scratch.pixels_stride, 0, map.row_stride * sizeof(T));
        }
      }
      for (; final_end < row_begin; ++final_end) {
        unpack(
            static_cast<const T*>(map.at(final_end, 0)), scratch.pixels_stride, task.width, channels.count,
            map_run(task.target, task, image, channels, final_end, 0));
      }
    };
    for (int64_t k = task.image_starts[image]; k < task.image_starts[image + 1]; ++k) {
      const Roi& roi = task.rois[k];
      if (roi.rows.begin < roi.rows.end) {
        advance(roi.rows.begin, roi.rows.end);
        if (task.bins.channel != 1 && k + 1 < task.image_starts[image + 1]) {
          // RoIs lie far apart in memory, and a piece of 8 channels is too short for hardware to foresee.
          prefetch(
              bins_run(task.source, task, task.rois[k + 1], channels, 0), task.pooled_height * task.pooled_width,
              channels.count);
        }
        scatter(task, roi, channels, map, scratch);
      }
    }
    advance(task.height, task.height);
  }
}

} // namespace

template <typename scalar_t>
Kernels<scalar_t> kernels() {
  return {
      kLanes<accumulator_t<scalar_t>>, forward_scratch_size<scalar_t>, forward<scalar_t>,
      backward_scratch_size<scalar_t>, backward<scalar_t>};
}

template Kernels<float> kernels();
template Kernels<double> kernels();
template Kernels<c10::Half> kernels();
template Kernels<c10::BFloat16> kernels();

} // namespace mrcnn_plugin::cpu::MRCNN_ISA
