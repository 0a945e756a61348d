// Fusion: residual additions and activations become part of the convolution or linear layer before them.
#pragma once

#include <vector>

#include "runtime/step.h"

namespace pyquant {

// The layers of `graph` for values of the context's shapes, in an order in which they can run. A value that an
// activation moved to has, in the context, the range of what the activation wrote.
std::vector<Layer> fuse_layers(const Graph& graph, PlanContext& context);

}  // namespace pyquant
