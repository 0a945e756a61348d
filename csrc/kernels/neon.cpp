// Built for AArch64, all of which has NEON; reached only through select_kernels().
//
// Register tile 8 x 3: 24 sums, 3 inputs and 1 broadcast weight are 28 of the 32 registers; 11 loads for 24
// multiply-adds. One vector wide it loads 9 for 8, which processors with as many load units as multipliers still bear.
// sum_rows() unrolls 4 vectors.
//
// Of quads it is 8 x 2. The bytes of a vector of quads are sorted by channel and widened to 16 bits, so that smlal by
// element multiplies a channel of 4 pixels with a weight, and adds to their sums: four of them multiply a vector of
// quads, as many as the 16 products take in floats. 16 sums, 4 registers of inputs, the order of bytes and the weights
// of a row, in one of the 16 registers whose elements smlal reaches, are 22 registers; 8 x 3 would be all 32.
//
// Of a table's row 8 quads of inputs, 4 x 2, take 16 registers; GCC keeps the lower halves of some once more, and
// reloads 6 registers per centroid beside 32 multiply-adds.
//
// All this follows from counts; nothing was measured on a processor yet.
#include "kernels/neon.h"

#include <arm_neon.h>

#include "kernels/vector_bytes.h"
#include "kernels/vector_kernels.h"

namespace pyquant {
namespace {

struct NeonBytes16 {
  using Bytes = uint8x16_t;
  static Bytes load(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
  static Bytes load_half(const void* p) { return vcombine_u8(vld1_u8(static_cast<const uint8_t*>(p)), vdup_n_u8(0)); }
  static Bytes load_four(const void* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return vreinterpretq_u8_u32(vsetq_lane_u32(four, vdupq_n_u32(0), 0));
  }
  static Bytes add_parts(Bytes a, Bytes b) {
    return vreinterpretq_u8_s16(vaddq_s16(vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b)));
  }
  static Bytes rounded(Bytes a, Bytes b) {
    return vreinterpretq_u8_s8(vcombine_s8(vrshrn_n_s16(vreinterpretq_s16_u8(a), kPartBits),
                                           vrshrn_n_s16(vreinterpretq_s16_u8(b), kPartBits)));
  }
  static Bytes low(Bytes a, Bytes b) { return vzip1q_u8(a, b); }
  static Bytes high(Bytes a, Bytes b) { return vzip2q_u8(a, b); }
  static Bytes low_pairs(Bytes a, Bytes b) {
    return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
  }
  static Bytes high_pairs(Bytes a, Bytes b) {
    return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
  }
  static Bytes low_halves(Bytes a, Bytes b) { return vcombine_u8(vget_low_u8(a), vget_low_u8(b)); }
  static void store(uint32_t* p, Bytes quads) { vst1q_u8(reinterpret_cast<uint8_t*>(p), quads); }
  static void store_first(uint32_t* p, int64_t count, Bytes quads) { std::memcpy(p, &quads, count * sizeof *p); }
};

struct Neon {
  using Decoder = VectorQuads<NeonBytes16>;
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
  struct Lanes {
    int64_t begin, end;
  };
  static Lanes lanes(int64_t begin, int64_t end) { return {begin, end}; }
  static Float load_lanes(Float others, Lanes lanes, const float* p) {
    const auto has = [&](int64_t lane) { return lanes.begin <= lane && lane < lanes.end; };
    if (has(0) && has(3)) return load(p);
    if (has(0)) others = vld1q_lane_f32(p, others, 0);
    if (has(1)) others = vld1q_lane_f32(p + 1, others, 1);
    if (has(2)) others = vld1q_lane_f32(p + 2, others, 2);
    if (has(3)) others = vld1q_lane_f32(p + 3, others, 3);
    return others;
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
  static Float max_or_nan(Float a, Float b) { return vmaxq_f32(a, b); }
  static float sum(Float v) { return vaddvq_f32(v); }
  static Pair split(Float a, Float b) { return {vuzp1q_f32(a, b), vuzp2q_f32(a, b)}; }
  static Pair merge(Float even, Float odd) { return {vzip1q_f32(even, odd), vzip2q_f32(even, odd)}; }

  static Half low_half(Float v) { return vget_low_f32(v); }
  static Half load_half(const float* p) { return vld1_f32(p); }
  static void store_half(float* p, Half v) { vst1_f32(p, v); }
  static Half multiply_add(Half a, Half b, Half c) { return vfma_f32(c, a, b); }

  using Int = uint32x4_t;
  struct HalfInt {
    Int lanes;  // the first two count: smlal has no narrower sums
  };
  struct Inputs {  // a channel of each quad as 16 bits, two channels to a register
    int16x8_t first, second;
  };
  using HalfInputs = Inputs;
  using Weights = int16x4_t;
  struct PairInt {
    Int first, second;
  };
  static constexpr bool kAddsInPairs = false;
  static constexpr bool kDotsRows = false;
  static constexpr int64_t kRows8 = 8;
  static constexpr int64_t kVectors8 = 2;
  static constexpr double kLeastVectors8 = 1.0;
  static constexpr double kDotCost = 4.0;
  static constexpr int64_t kTable8Vectors = 4;

  static Int load_int(const void* p) { return vld1q_u32(static_cast<const uint32_t*>(p)); }
  static Int load_int_first(const void* p, int64_t count) {
    return vreinterpretq_u32_f32(load_first(static_cast<const float*>(p), count));
  }
  static void store_int(void* p, Int v) { vst1q_u32(static_cast<uint32_t*>(p), v); }
  static void store_int_first(void* p, int64_t count, Int v) {
    store_first(static_cast<float*>(p), count, vreinterpretq_f32_u32(v));
  }
  static Int broadcast_int(uint32_t value) { return vdupq_n_u32(value); }

  // Byte i of each quad side by side, and before those of i + 1; the same turns this back.
  static uint8x16_t turn_bytes(uint8x16_t bytes) {
    constexpr uint8_t kOrder[] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return vqtbl1q_u8(bytes, vld1q_u8(kOrder));
  }
  static Inputs inputs(Int quads) {
    const uint8x16_t bytes = turn_bytes(vreinterpretq_u8_u32(quads));
    return {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vreinterpretq_s16_u16(vmovl_high_u8(bytes))};
  }
  static HalfInputs inputs(HalfInt quads) { return inputs(quads.lanes); }
  // All quads are the same one; loaded without the others, it takes no instruction more.
  static Weights weights(Int quads) {
    const uint32x2_t quad = vset_lane_u32(vgetq_lane_u32(quads, 0), vdup_n_u32(0), 0);
    return vget_low_s16(vmovl_s8(vreinterpret_s8_u32(quad)));
  }
  static Int dot(Weights weights, Inputs inputs, Int sums) {
    int32x4_t sum = vreinterpretq_s32_u32(sums);
    sum = vmlal_lane_s16(sum, vget_low_s16(inputs.first), weights, 0);
    sum = vmlal_high_lane_s16(sum, inputs.first, weights, 1);
    sum = vmlal_lane_s16(sum, vget_low_s16(inputs.second), weights, 2);
    return vreinterpretq_u32_s32(vmlal_high_lane_s16(sum, inputs.second, weights, 3));
  }
  static HalfInt dot(Weights weights, HalfInputs inputs, HalfInt sums) { return {dot(weights, inputs, sums.lanes)}; }

  static Int bit_and(Int a, Int b) { return vandq_u32(a, b); }
  static Int bit_or(Int a, Int b) { return vorrq_u32(a, b); }
  static Int bit_xor(Int a, Int b) { return veorq_u32(a, b); }
  template <int count>
  static Int shift_left(Int v) {
    return vshlq_n_u32(v, count);
  }
  template <int count>
  static Int shift_right(Int v) {
    return vshrq_n_u32(v, count);
  }
  static Int shift_right_signed(Int v, int count) {
    return vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-count)));
  }
  static Int add_int(Int a, Int b) { return vaddq_u32(a, b); }
  static int16x8_t shorts(Int v) { return vreinterpretq_s16_u32(v); }
  static Int of_shorts(int16x8_t v) { return vreinterpretq_u32_s16(v); }
  static Int add_short(Int a, Int b) { return of_shorts(vaddq_s16(shorts(a), shorts(b))); }
  static Int subtract_short(Int a, Int b) { return of_shorts(vsubq_s16(shorts(a), shorts(b))); }
  static Int min_short(Int a, Int b) { return of_shorts(vminq_s16(shorts(a), shorts(b))); }
  static Int max_short(Int a, Int b) { return of_shorts(vmaxq_s16(shorts(a), shorts(b))); }
  static Int magnitude_short(Int v) { return of_shorts(vabsq_s16(shorts(v))); }
  static Int scale_short(Int a, Int b) { return of_shorts(vqrdmulhq_s16(shorts(a), shorts(b))); }
  static Int max_bytes(Int a, Int b) {
    return vreinterpretq_u32_u8(vmaxq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)));
  }
  static Int min_bytes(Int a, Int b) {
    return vreinterpretq_u32_u8(vminq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)));
  }
  static Int broadcast_byte(uint8_t value) { return vreinterpretq_u32_u8(vdupq_n_u8(value)); }
  static Int byte_of(Int quads, int i) { return bit_and(vshlq_u32(quads, vdupq_n_s32(-8 * i)), vdupq_n_u32(0xff)); }
  static int16x8_t to_shorts(Int a, Int b) {
    return vqmovn_high_s32(vqmovn_s32(vreinterpretq_s32_u32(a)), vreinterpretq_s32_u32(b));
  }
  static Int to_quads(Int a, Int b, Int c, Int d) {
    return vreinterpretq_u32_u8(turn_bytes(vqmovun_high_s16(vqmovun_s16(to_shorts(a, b)), to_shorts(c, d))));
  }
  static Int pack(Int a, Int b) { return vreinterpretq_u32_s16(to_shorts(a, b)); }
  static PairInt unpack(Int v) {
    const int16x8_t shorts = vreinterpretq_s16_u32(v);
    return {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(shorts))), vreinterpretq_u32_s32(vmovl_high_s16(shorts))};
  }
  static Float to_float(Int v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
  static Int to_int(Float v) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(v)); }  // of NaN: 0
  static PairInt split_int(Int a, Int b) { return {vuzp1q_u32(a, b), vuzp2q_u32(a, b)}; }
  static Int load_int_lanes(Int others, Lanes lanes, const void* p) {
    return vreinterpretq_u32_f32(load_lanes(vreinterpretq_f32_u32(others), lanes, static_cast<const float*>(p)));
  }
  static PairInt widen(Int v) {
    const uint8x16_t bytes = vreinterpretq_u8_u32(v);
    return {vreinterpretq_u32_u16(vmovl_u8(vget_low_u8(bytes))), vreinterpretq_u32_u16(vmovl_high_u8(bytes))};
  }
  static Int narrow(Int a, Int b) { return vreinterpretq_u32_s8(vqmovn_high_s16(vqmovn_s16(shorts(a)), shorts(b))); }
  static PairInt twins(Int v) { return {vzip1q_u32(v, v), vzip2q_u32(v, v)}; }
  static PairInt split_twins(Int a, Int b) { return split_int(a, b); }
  static Int add_pairs(Int v) { return vreinterpretq_u32_s32(vpaddlq_s16(shorts(v))); }
  static HalfInt low_half_int(Int v) { return {v}; }
  static HalfInt load_half_int(const void* p) {
    return {vcombine_u32(vld1_u32(static_cast<const uint32_t*>(p)), vdup_n_u32(0))};
  }
  static void store_half_int(void* p, HalfInt v) { vst1_u32(static_cast<uint32_t*>(p), vget_low_u32(v.lanes)); }
};

}  // namespace

KernelTable improve_with_neon(KernelTable table) {
  return ByteKernels<Neon>::improve(VectorKernels<Neon>::improve(table, "neon"), "neon");
}

}  // namespace pyquant
