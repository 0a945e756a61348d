// Built with AVX-512 enabled; reached only through select_kernels().
#include "kernels/avx512.h"

#include "kernels/vector_avx512.h"
#include "kernels/vector_kernels.h"

namespace pyquant {

KernelTable improve_with_avx512(KernelTable table) {
  table = VectorKernels<Avx512>::improve(table, "avx512");
  // Integer kernels stay those of AVX2, with half as many lanes.
  table.tile8.step_cost *= 2;
  table.tile8.pixels -= table.tile8.pixels % table.lanes;
  return table;
}

}  // namespace pyquant
