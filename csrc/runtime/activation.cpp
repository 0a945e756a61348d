#include "runtime/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyquant {

std::optional<Activation> activation_of(const std::string& op) {
  if (op == "relu") return Activation::kRelu;
  if (op == "relu6") return Activation::kRelu6;
  if (op == "silu") return Activation::kSilu;
  if (op == "hardswish") return Activation::kHardswish;
  if (op == "sigmoid") return Activation::kSigmoid;
  return std::nullopt;
}

Clamp clamp_of(Activation activation) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (activation) {
    case Activation::kRelu:
      return {0.0f, kInfinity};
    case Activation::kRelu6:
      return {0.0f, 6.0f};
    default:
      return {-kInfinity, kInfinity};
  }
}

bool has_curve(Activation activation) {
  return activation == Activation::kSilu || activation == Activation::kHardswish || activation == Activation::kSigmoid;
}

void apply_curve(Activation activation, float* values, int64_t count) {
  switch (activation) {
    case Activation::kSilu:
      for (int64_t i = 0; i < count; ++i) values[i] /= 1.0f + std::exp(-values[i]);
      break;
    case Activation::kSigmoid:
      for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + std::exp(-values[i]));
      break;
    case Activation::kHardswish:
      for (int64_t i = 0; i < count; ++i) {
        const float gate = values[i] + 3.0f;
        values[i] *= (gate < 0.0f ? 0.0f : gate > 6.0f ? 6.0f : gate) / 6.0f;
      }
      break;
    default:
      break;
  }
}

}  // namespace pyquant
