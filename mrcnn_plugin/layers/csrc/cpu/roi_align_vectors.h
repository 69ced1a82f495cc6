// Loads, stores and conversions of vectors whose lanes are channels. Part of roi_align_kernel_impl.h.
#pragma once

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

inline int64_t larger(int64_t a, int64_t b) {
  return a < b ? b : a;
}

// Calls visit(Count<n>()) for n from 1 to 8, so that loops over n registers can be unrolled.
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

// Packed memory is aligned, so that it can be accessed as vectors.
template <typename T>
inline const Vector<T>& as_vector(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <typename T>
inline Vector<T>& as_vector(T* p) {
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
  // This rounds to the nearest, and ties to even. A NaN stays NaN, because rounding could turn it into infinity.
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

// Stores an aligned vector past the caches. The hardware then need not read a cache line before it is written, if the
// whole line is written at once. Other threads see the values only after end_of_streams.
template <typename scalar_t, typename V>
inline void stream(scalar_t* p, V v) {
  store(p, v);
}

inline void end_of_streams() {
#if MRCNN_VECTOR_BYTES == 32
  _mm_sfence();
#endif
}

#if MRCNN_VECTOR_BYTES == 32
inline void stream(float* p, Vector<float> v) {
  _mm256_stream_ps(p, v);
}

inline void stream(double* p, Vector<double> v) {
  _mm256_stream_pd(p, v);
}
#endif

// Loads or stores the first n lanes only. The other lanes of a loaded vector are zero.
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

} // namespace
} // namespace mrcnn_plugin::cpu::MRCNN_ISA
