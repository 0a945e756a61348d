#include "runtime/plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/fuse.h"
#include "runtime/ops/ops.h"

namespace pyquant {

Plan::Plan(const Graph& graph, PlanContext context) : shapes(context.shapes), storage(graph.num_values) {
  std::iota(storage.begin(), storage.end(), 0);
  std::vector<Lifetime> lifetimes(graph.num_values);
  const auto write = [&](ValueId value, int64_t step) {
    lifetimes[value] = {.floats = checked_product(shapes[value]), .first = step, .last = step};
  };
  const auto read = [&](ValueId value, int64_t step) {
    Lifetime& life = lifetimes[storage[value]];
    life.last = std::max(life.last, step);
  };

  for (const ValueId input : graph.inputs) write(input, -1);
  for (const Layer& layer : fuse_layers(graph, shapes)) {
    // Values are contiguous, so flattening only gives the same memory another shape.
    if (layer.node->op == "flatten") {
      storage[layer.output] = storage[layer.inputs[0]];
      continue;
    }
    const auto step = static_cast<int64_t>(steps.size());
    steps.push_back(planner_for(layer.node->op)(layer, context));
    scratch_floats = std::max(scratch_floats, steps.back()->scratch_floats());
    shared_floats = std::max(shared_floats, steps.back()->shared_floats());
    for (const ValueId input : layer.inputs) read(input, step);
    if (layer.residual >= 0) read(layer.residual, step);
    write(layer.output, step);
  }
  for (const ValueId output : graph.outputs) read(output, static_cast<int64_t>(steps.size()));
  placement = place(lifetimes, kSlackBytes / static_cast<int64_t>(sizeof(float)));
}

}  // namespace pyquant
