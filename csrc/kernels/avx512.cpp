// Built with AVX-512 enabled; reached only through select_kernels().
#include "kernels/avx512.h"

#include "kernels/vector_avx512.h"
#include "kernels/vector_kernels.h"

namespace pyquant {

KernelTable improve_with_avx512(KernelTable table) {
  table = VectorKernels<Avx512>::improve(table, "avx512");
  // Integer kernels stay those of vectors half as long; tiles are of whole vectors of floats.
  table.tile8.pixels -= table.tile8.pixels % table.lanes;
  table.tile8.least_vectors /= table.cost8();
  return table;
}

}  // namespace pyquant
