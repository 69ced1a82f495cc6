// The CPU kernels: out[k, c] = Wy[k] . F[c] . Wx[k]^T with sparse matrices, on vectors whose lanes are channels.
//
// A kernel first packs the part of the map that it needs: it copies the pixels to [row][column][lane]. All further
// steps are sums of whole aligned vectors times a weight, for every layout and type of the map. These are the steps for
// a RoI and a row group:
//   forward    map - Wy -> strip [column][bin row][lane] - Wx -> bins [bin row][bin column][lane] - unpack -> target
//   backward   map <- Wy^T - strip <- Wx^T - bins <- pack - source
// The backward pass unpacks the map to target at the end.
//
// The bin rows of a strip are the registers of the x pass, which loads each of its weights once for all of them.
//
// One file per instruction set includes this header. It defines:
//   MRCNN_ISA            the namespace, which keeps the linker from mixing instruction sets
//   MRCNN_VECTOR_BYTES   16 or 32
//   MRCNN_F16C           if the hardware converts float16
// The kernels must not call inline functions of other headers, unless those are included before the instruction set is
// switched on. Otherwise the linker could use the copy for this instruction set in the whole extension.

// clang-format off: each header uses those above it
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
