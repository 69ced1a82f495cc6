// The kernels for the instructions that every CPU of a platform has: SSE2 on x86-64 and NEON on aarch64.
#include "roi_align_kernel.h"

#include <type_traits>

#define MRCNN_ISA isa_default
#define MRCNN_VECTOR_BYTES 16
#include "roi_align_kernel_impl.h"
