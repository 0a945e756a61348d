#include "runtime/activation.h"

#include <limits>

namespace pyquant {

std::optional<Activation> activation_of(const std::string& op) {
  if (op == "relu") return Activation::kRelu;
  if (op == "relu6") return Activation::kRelu6;
  if (op == "silu") return Activation::kSilu;
  if (op == "hardswish") return Activation::kHardswish;
  if (op == "hardsigmoid") return Activation::kHardsigmoid;
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
  return activation == Activation::kSilu || activation == Activation::kHardswish ||
         activation == Activation::kHardsigmoid || activation == Activation::kSigmoid;
}

void apply_curve(const CurveKernels& curves, Activation activation, float* values, int64_t count) {
  switch (activation) {
    case Activation::kSilu:
      return curves.silu(values, count);
    case Activation::kSigmoid:
      return curves.sigmoid(values, count);
    case Activation::kHardswish:
      return curves.hardswish(values, count);
    case Activation::kHardsigmoid:
      return curves.hardsigmoid(values, count);
    default:
      return;
  }
}

}  // namespace pyquant
