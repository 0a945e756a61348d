#include "runtime/plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/formats.h"
#include "runtime/fuse.h"
#include "runtime/ops/ops.h"
#include "runtime/parts.h"

namespace pyquant {
namespace {

// What one step or another needs, the most of it; a number below 0 was too large for 64 bits.
void need(int64_t& most, int64_t floats, const Step& step) {
  if (floats < 0) throw Error("layer '" + step.name() + "' needs more memory than there can be");
  most = std::max(most, floats);
}

// Give the sums of a layer that adds a residual the place of that, if no step after `step` reads it: they are written
// where it is read. So a processor's cache holds one value in place of two, and fetches nothing that is overwritten.
void write_over_residual(const Layer& layer, int64_t step, std::vector<ValueId>& storage,
                         std::vector<Lifetime>& lifetimes) {
  const ValueId place = storage[layer.residual];
  Lifetime& before = lifetimes[place];
  Lifetime& after = lifetimes[layer.output];
  const auto is_input = [&](ValueId input) { return storage[input] == place; };
  if (before.last != step || before.floats != after.floats) return;
  if (std::any_of(layer.inputs.begin(), layer.inputs.end(), is_input)) return;
  before.last = after.last;
  after = {};
  std::replace(storage.begin(), storage.end(), layer.output, place);
}

}  // namespace

Plan::Plan(const Graph& graph, PlanContext context) {
  FormattedLayers formatted = assign_formats(fuse_layers(graph, context), graph, context);
  outputs = std::move(formatted.outputs);
  assign_parts(formatted.layers, outputs, context);
  sections = find_sections(formatted.layers, outputs, context);
  for (const Section& section : sections) {
    for (const ValueId value : section.inner) context.shapes[value].at(0) = section.chunk;
  }
  shapes = context.shapes;
  for (const auto& range : context.ranges) quantization.push_back(range.value_or(Quantization{}));
  storage.resize(shapes.size());
  std::iota(storage.begin(), storage.end(), 0);
  std::vector<Lifetime> lifetimes(shapes.size());
  const auto write = [&](ValueId value, int64_t step) {
    lifetimes[value] = {.floats = size_of(shapes[value], context.formats[value]), .first = step, .last = step};
  };
  const auto read = [&](ValueId value, int64_t step) {
    Lifetime& life = lifetimes[storage[value]];
    life.last = std::max(life.last, step);
  };
  // Steps of a section run again and again: what they read of others stays to its end, what others read of it is
  // there from its beginning.
  const auto hold_through = [&](const Section& held, const std::vector<Layer>& layers) {
    for (size_t i = held.first_layer; i < held.end_layer; ++i) {
      for (const ValueId value : layers[i].values_read()) {
        if (lifetimes[storage[value]].first < held.first_step) read(value, held.end_step - 1);
      }
    }
    for (const WholeValue& whole : held.whole) {
      Lifetime& life = lifetimes[storage[whole.value]];
      life.first = std::min(life.first, held.first_step);
      life.last = std::max(life.last, held.end_step - 1);
    }
  };

  for (const ValueId input : graph.inputs) write(input, -1);
  std::vector<std::pair<int64_t, const Layer*>> additions;  // steps that add a residual
  auto section = sections.begin();
  for (size_t i = 0; i < formatted.layers.size(); ++i) {
    const Layer& layer = formatted.layers[i];
    if (section != sections.end() && i == section->first_layer) {
      section->first_step = static_cast<int64_t>(steps.size());
      set_rows(*section, section->chunk, context.shapes);
    }
    // Values are contiguous, so flattening only gives the same memory another shape.
    if (layer.node != nullptr && layer.node->op == "flatten") {
      storage[layer.output] = storage[layer.inputs[0]];
    } else {
      const auto step = static_cast<int64_t>(steps.size());
      const PlanFn plan = layer.node == nullptr ? &plan_conversion : planner_for(layer.node->op);
      steps.push_back(plan(layer, context));
      need(scratch_floats, steps.back()->scratch_floats(), *steps.back());
      need(shared_floats, steps.back()->shared_floats(), *steps.back());
      for (const ValueId value : layer.values_read()) read(value, step);
      if (layer.residual >= 0) {
        // In a section, rows of a value that is there as a whole may be computed twice.
        const bool in_section = section != sections.end() && i >= section->first_layer;
        if (!in_section || section->is_inner(layer.residual)) additions.emplace_back(step, &layer);
      }
      write(layer.output, step);
    }
    if (section != sections.end() && i + 1 == section->end_layer) {
      section->end_step = static_cast<int64_t>(steps.size());
      set_rows(*section, section->rows, context.shapes);
      hold_through(*section, formatted.layers);
      ++section;
    }
  }
  for (const ValueId output : outputs) read(output, static_cast<int64_t>(steps.size()));
  for (const auto& [step, layer] : additions) write_over_residual(*layer, step, storage, lifetimes);
  placement = place(lifetimes, kSlackBytes / static_cast<int64_t>(sizeof(float)));
}

}  // namespace pyquant
