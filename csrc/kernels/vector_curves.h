// The curves of activations: written once over a vector type `V`; see vector_kernels.h.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/kernels.h"

namespace pyquant {

template <typename V>
struct VectorCurves {
  using Float = typename V::Float;
  typedef int32_t Int __attribute__((vector_size(sizeof(Float))));

  // min and max return their second operand where one is NaN: so it stays.
  static Float clamp(Float x, float low, float high) noexcept {
    return V::min(V::broadcast(high), V::max(V::broadcast(low), x));
  }

  // e^x = 2^n * e^r for the whole n nearest to x / log(2), so that |r| <= log(2) / 2. There the terms behind r^7 / 7!
  // are less than 6e-9 of the sum. 2^n is two factors, for it may leave the range of floats.
  static Float exponential(Float x) noexcept {
    constexpr float kMost = 104.0f;  // beyond it, e^x is infinite or zero
    constexpr float kPerLog2 = 1.44269504f;
    constexpr float kLog2Head = 0.693359375f;  // 10 bits, so that its product with n is exact
    constexpr float kLog2Rest = -2.12194440e-4f;
    constexpr float kWhole = 0x1.8p23f;  // added to a small number, it leaves no room for a fraction
    constexpr float kSeries[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    x = clamp(x, -kMost, kMost);
    const Float shifted = V::multiply_add(x, V::broadcast(kPerLog2), V::broadcast(kWhole));
    const Float n = V::subtract(shifted, V::broadcast(kWhole));
    const Float r = V::multiply_add(n, V::broadcast(-kLog2Rest), V::multiply_add(n, V::broadcast(-kLog2Head), x));
    Float sum = V::broadcast(1.0f / 5040.0f);
    for (const float term : kSeries) sum = V::multiply_add(sum, r, V::broadcast(term));
    const Int whole = std::bit_cast<Int>(shifted) - std::bit_cast<int32_t>(kWhole);
    const Int half = whole >> 1;
    return V::multiply(V::multiply(sum, power_of_two(half)), power_of_two(whole - half));
  }

  static Float power_of_two(Int exponent) noexcept { return std::bit_cast<Float>((exponent + 127) << 23); }

  // 1 + e^-x
  static Float denominator(Float x) noexcept {
    return V::add(V::broadcast(1.0f), exponential(V::subtract(V::broadcast(0.0f), x)));
  }

  template <typename Curve>
  static void apply(float* values, int64_t count, const Curve& curve) noexcept {
    int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) V::store(values + i, curve(V::load(values + i)));
    if (i < count) V::store_first(values + i, count - i, curve(V::load_first(values + i, count - i)));
  }

  static void sigmoid(float* values, int64_t count) noexcept {
    apply(values, count, [](Float x) { return V::broadcast(1.0f) / denominator(x); });
  }

  static void silu(float* values, int64_t count) noexcept {
    apply(values, count, [](Float x) { return x / denominator(x); });
  }

  static Float gate(Float x) noexcept { return clamp(V::add(x, V::broadcast(3.0f)), 0.0f, 6.0f) / V::broadcast(6.0f); }

  static void hardsigmoid(float* values, int64_t count) noexcept { apply(values, count, &gate); }

  static void hardswish(float* values, int64_t count) noexcept {
    apply(values, count, [](Float x) { return V::multiply(x, gate(x)); });
  }

  static constexpr CurveKernels kernels() noexcept {
    return {.sigmoid = &sigmoid, .silu = &silu, .hardsigmoid = &hardsigmoid, .hardswish = &hardswish};
  }
};

}  // namespace pyquant
