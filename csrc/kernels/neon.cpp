// Built for AArch64, all of which has NEON; reached only through select_kernels().
//
// Register tile 8 x 3: 24 sums, 3 inputs and 1 broadcast weight are 28 of the 32 registers; 11 loads for 24
// multiply-adds. One vector wide it loads 9 for 8, which processors with as many load units as multipliers still bear.
// sum_rows() unrolls 4 vectors. All this follows from counts; nothing was measured on a processor yet.
#include "kernels/neon.h"

#include <arm_neon.h>

#include "kernels/vector_kernels.h"

namespace pyquant {
namespace {

struct Neon {
  using Float = float32x4_t;
  using Half = float32x2_t;
  struct Pair {
    Float first, second;
  };
  static constexpr int64_t kLanes = 4;
  static constexpr int64_t kRows = 8;
  static constexpr int64_t kVectors = 3;
  static constexpr double kLeastVectors = 1.0;
  static constexpr int64_t kTableVectors = 4;
  static constexpr int64_t kResidentVectors = 2;

  static Float load(const float* p) { return vld1q_f32(p); }
  static Float load_first(const float* p, int64_t count) {
    const Float zero = vdupq_n_f32(0.0f);
    switch (count) {
      case 1:
        return vld1q_lane_f32(p, zero, 0);
      case 2:
        return vcombine_f32(vld1_f32(p), vget_low_f32(zero));
      case 3:
        return vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vget_low_f32(zero)), 2);
    }
    return count <= 0 ? zero : load(p);
  }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static void store_first(float* p, int64_t count, Float v) {
    if (count >= kLanes) return store(p, v);
    if (count >= 2) vst1_f32(p, vget_low_f32(v));
    if (count == 1) vst1q_lane_f32(p, v, 0);
    if (count == 3) vst1q_lane_f32(p + 2, v, 2);
  }
  static Float broadcast(float value) { return vdupq_n_f32(value); }
  static Float multiply_add(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Float subtract(Float a, Float b) { return vsubq_f32(a, b); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  // Not vmaxq_f32() and vminq_f32(): where one operand is NaN, so is their result, and the second one is wanted.
  static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Float min(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static float sum(Float v) { return vaddvq_f32(v); }
  static Pair split(Float a, Float b) { return {vuzp1q_f32(a, b), vuzp2q_f32(a, b)}; }
  static Pair merge(Float even, Float odd) { return {vzip1q_f32(even, odd), vzip2q_f32(even, odd)}; }

  static Half low_half(Float v) { return vget_low_f32(v); }
  static Half load_half(const float* p) { return vld1_f32(p); }
  static void store_half(float* p, Half v) { vst1_f32(p, v); }
  static Half multiply_add(Half a, Half b, Half c) { return vfma_f32(c, a, b); }
};

}  // namespace

KernelTable improve_with_neon(KernelTable table) { return VectorKernels<Neon>::improve(table, "neon"); }

}  // namespace pyquant
