// Built with AVX-512 enabled; reached only through select_kernels().
#include "kernels/avx512.h"

#include "kernels/vector_avx512.h"
#include "kernels/vector_kernels.h"

namespace pyquant {

KernelTable improve_with_avx512(KernelTable table) { return VectorKernels<Avx512>::improve(table, "avx512"); }

}  // namespace pyquant
