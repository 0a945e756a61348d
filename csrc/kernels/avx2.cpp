// Built with AVX2 and FMA enabled; reached only through select_kernels().
#include "kernels/avx2.h"

#include "kernels/vector_avx2.h"
#include "kernels/vector_bytes.h"
#include "kernels/vector_kernels.h"

namespace pyquant {

KernelTable improve_with_avx2(KernelTable table) {
  return ByteKernels<Avx2>::improve(VectorKernels<Avx2>::improve(table, "avx2"), "avx2");
}

}  // namespace pyquant
