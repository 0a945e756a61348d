// The curves of activations: loops of which compilers make vectors, once for each instruction set, `V`.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/kernels.h"

namespace pyquant {

template <typename V>
struct VectorCurves {
  // e^x = 2^n * e^r for the whole n nearest to x / log(2), so that |r| <= log(2) / 2. There the terms behind r^7 / 7!
  // are less than 6e-9 of the sum. 2^n is two factors, for it may leave the range of floats.
  static float exponential(float x) noexcept {
    constexpr float kMost = 104.0f;  // beyond it, e^x is infinite or zero
    constexpr float kPerLog2 = 1.44269504f;
    constexpr float kLog2Head = 0.693359375f;  // 10 bits, so that its product with n is exact
    constexpr float kLog2Rest = -2.12194440e-4f;
    constexpr float kWhole = 0x1.8p23f;  // added to a small number, it leaves no room for a fraction
    // A NaN fails both comparisons and stays.
    x = x < -kMost ? -kMost : x;
    x = x > kMost ? kMost : x;
    const float shifted = x * kPerLog2 + kWhole;
    const float n = shifted - kWhole;
    const float r = (x - n * kLog2Head) - n * kLog2Rest;
    float sum = 1.0f / 5040.0f;
    sum = sum * r + 1.0f / 720.0f;
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    const int32_t whole = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kWhole);
    const int32_t half = whole >> 1;
    return sum * power_of_two(half) * power_of_two(whole - half);
  }

  static float power_of_two(int32_t exponent) noexcept { return std::bit_cast<float>((exponent + 127) << 23); }

  static void sigmoid(float* values, int64_t count) noexcept {
    for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + exponential(-values[i]));
  }

  static void silu(float* values, int64_t count) noexcept {
    for (int64_t i = 0; i < count; ++i) values[i] /= 1.0f + exponential(-values[i]);
  }

  static void hardswish(float* values, int64_t count) noexcept {
    for (int64_t i = 0; i < count; ++i) {
      float gate = values[i] + 3.0f;
      gate = gate < 0.0f ? 0.0f : gate;
      gate = gate > 6.0f ? 6.0f : gate;
      values[i] *= gate / 6.0f;
    }
  }

  static constexpr CurveKernels kernels() noexcept {
    return {.sigmoid = &sigmoid, .silu = &silu, .hardswish = &hardswish};
  }
};

}  // namespace pyquant
