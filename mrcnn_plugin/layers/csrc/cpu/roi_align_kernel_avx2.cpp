// The kernels for x86-64 with AVX2, FMA and F16C. The rest of the extension must run without these instructions. So
// they are switched on for the code of this file only, after its headers.
#include "roi_align_kernel.h"

#if defined(MRCNN_HAS_AVX2)

#include <immintrin.h>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define MRCNN_ISA isa_avx2
#define MRCNN_VECTOR_BYTES 32
#define MRCNN_F16C 1
#include "roi_align_kernel_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
