#include "runtime/parts.h"

namespace pyquant {
namespace {

bool is_convolution(const Layer& layer) { return layer.node != nullptr && layer.node->op == "conv2d"; }

}  // namespace

void assign_parts(const std::vector<Layer>& layers, const std::vector<ValueId>& outputs, PlanContext& context) {
  std::vector<bool> apart(context.shapes.size());  // by ValueId
  for (const Layer& layer : layers) {
    const Shape& shape = context.shapes[layer.output];
    apart[layer.output] = is_convolution(layer) && shape.at(0) == 1 && shape.at(2) % context.threads == 0;
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
