// The kernels for what every CPU of the target has: SSE2 on x86-64, NEON on aarch64.
#include "roi_align_kernel.h"

#include <type_traits>

#define MRCNN_ISA isa_default
#define MRCNN_VECTOR_BYTES 16
#include "roi_align_kernel_impl.h"
