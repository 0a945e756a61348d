// Fusion: residual additions and activations become part of the convolution or linear layer before them.
#pragma once

#include <vector>

#include "runtime/step.h"

namespace pyquant {

// The layers of `graph` for values of these shapes, in an order in which they can run.
std::vector<Layer> fuse_layers(const Graph& graph, const std::vector<Shape>& shapes);

}  // namespace pyquant
