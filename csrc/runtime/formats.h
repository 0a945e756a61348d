// Formats: which values of a plan lie in memory as bytes, and where they are converted.
#pragma once

#include <vector>

#include "runtime/step.h"

namespace pyquant {

struct FormattedLayers {
  std::vector<Layer> layers;
  std::vector<ValueId> outputs;  // the graph's outputs, or what they are converted to
};

// Let layers read and write bytes where it is faster, and insert layers that convert values for those that read the
// other format; the graph's outputs are floats. Values that these make are appended to the context's.
FormattedLayers assign_formats(std::vector<Layer> layers, const Graph& graph, PlanContext& context);

}  // namespace pyquant
