#include "runtime/parts.h"

namespace pyquant {
namespace {

bool is_convolution(const Layer& layer) { return layer.node != nullptr && layer.node->op == "conv2d"; }

// Whether a value of one picture can be shared out evenly by rows of pixels. A unit for matrices reads inputs where
// they lie if rows begin with cache lines: parts must not take that away.
bool has_parts(const Shape& shape, const PlanContext& context) {
  constexpr int64_t kLine = 16;  // values
  if (shape.at(0) != 1 || shape.at(2) % context.threads != 0) return false;
  const int64_t plane = shape.at(2) * shape.at(3);
  return !context.kernels->matrix.exists() || plane % kLine != 0 || plane / context.threads % kLine == 0;
}

}  // namespace

void assign_parts(const std::vector<Layer>& layers, const std::vector<ValueId>& outputs, PlanContext& context) {
  std::vector<bool> apart(context.shapes.size());  // by ValueId
  for (const Layer& layer : layers) {
    apart[layer.output] = is_convolution(layer) && has_parts(context.shapes[layer.output], context);
  }
  for (const Layer& layer : layers) {
    if (is_convolution(layer)) continue;
    for (const ValueId value : layer.values_read()) apart[value] = false;
  }
  for (const ValueId output : outputs) apart[output] = false;
  // A residual lies as the output that it is added to.
  for (bool changed = true; changed;) {
    changed = false;
    for (const Layer& layer : layers) {
      if (layer.residual < 0 || apart[layer.residual] == apart[layer.output]) continue;
      apart[layer.residual] = apart[layer.output] = false;
      changed = true;
    }
  }
  for (size_t value = 0; value < apart.size(); ++value) {
    if (apart[value]) context.parts[value] = context.threads;
  }
}

}  // namespace pyquant
