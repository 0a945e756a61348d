// A plan: everything decided before the first run, for one set of input shapes.
#pragma once

#include <memory>
#include <vector>

#include "runtime/arena.h"
#include "runtime/sections.h"
#include "runtime/step.h"

namespace pyquant {

struct Plan {
  // Plan `graph` for values of these shapes (by ValueId, as the graph's shape rules give them).
  Plan(const Graph& graph, PlanContext context);

  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Section> sections;           // of the steps, in order
  std::vector<ValueId> outputs;            // of the graph, in floats
  std::vector<Shape> shapes;               // by ValueId; values behind the graph's are conversions of these
  std::vector<ValueId> storage;            // by ValueId: the value whose memory it uses, itself except for views
  std::vector<Quantization> quantization;  // by ValueId: of values in bytes, where it is known
  Placement placement;                     // by ValueId
  int64_t scratch_floats = 0;              // per worker
  int64_t shared_floats = 0;
};

}  // namespace pyquant
