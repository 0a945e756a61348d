// Built with AVX2 and FMA enabled; reached only through select_kernels().
//
// Register tile 4 x 3: 12 sums, 3 inputs and 1 broadcast weight fill the 16 registers; 7 loads for 12 multiply-adds.
#include "kernels/avx2.h"

#include <immintrin.h>

#include "kernels/vector_kernels.h"

namespace pyquant {
namespace {

struct Avx2 {
  using Float = __m256;
  using Half = __m128;
  struct Pair {
    Float first, second;
  };
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRows = 4;
  static constexpr int64_t kVectors = 3;
  static constexpr double kLeastVectors = 1.75;
  static constexpr int64_t kTableVectors = 4;
  static constexpr int64_t kResidentVectors = 1;

  static __m256i first(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_first(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static void store_first(float* p, int64_t count, Float v) { _mm256_maskstore_ps(p, first(count), v); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static float sum(Float v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Float swap_middle_quarters(Float v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static Pair split(Float a, Float b) {
    return {swap_middle_quarters(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0))),
            swap_middle_quarters(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)))};
  }
  static Pair merge(Float even, Float odd) {
    const Float low = _mm256_unpacklo_ps(even, odd);
    const Float high = _mm256_unpackhi_ps(even, odd);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
  }

  static Half low_half(Float v) { return _mm256_castps256_ps128(v); }
  static Half load_half(const float* p) { return _mm_loadu_ps(p); }
  static void store_half(float* p, Half v) { _mm_storeu_ps(p, v); }
  static Half multiply_add(Half a, Half b, Half c) { return _mm_fmadd_ps(a, b, c); }
};

}  // namespace

KernelTable improve_with_avx2(KernelTable table) { return VectorKernels<Avx2>::improve(table, "avx2"); }

}  // namespace pyquant
