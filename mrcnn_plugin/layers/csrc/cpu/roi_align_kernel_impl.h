// RoIAlign as a product of sparse matrices, out[k, c] = Wy[k] . F[c] . Wx[k]^T, on vectors whose lanes are channels.
//
// The part of the map that is needed is first copied to [row][column][lane] ("packed"), so that everything after it is
// a sum of whole aligned vectors times a number, whatever the layout and type of the map. Per RoI and group of bin
// rows:
//   forward    map -- Wy --> strip [column][bin row][lane] -- Wx --> bins [bin row][bin column][lane] -- unpack -->
//   target backward   bins <-- pack -- source; the transposes in the opposite order; the map is unpacked to target at
//   the end
// The rows of a strip are the registers of the x pass: each of its weights is loaded once for all of them.
//
// Included by one file per instruction set, which defines
//   MRCNN_ISA            the namespace; one of its own keeps the linker from mixing instruction sets
//   MRCNN_VECTOR_BYTES   16 or 32
//   MRCNN_F16C           where float16 is converted in hardware
// For the same reason nothing here may call an inline function of a header that is not included before the instruction
// set is switched on.

// clang-format off: each builds on those before it
#include "roi_align_vectors.h"
#include "roi_align_packing.h"
#include "roi_align_passes.h"
#include "roi_align_units.h"
// clang-format on

namespace mrcnn_plugin::cpu::MRCNN_ISA {

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
