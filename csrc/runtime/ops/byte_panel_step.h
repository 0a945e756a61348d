// What the integer paths that multiply panels share: their inputs, and how a run begins.
#pragma once

#include <utility>

#include "runtime/ops/byte_convolution.h"
#include "runtime/ops/panels.h"

namespace pyquant {

class BytePanelStep : public Step {
 public:
  int64_t shared_floats() const override { return t_.shared_floats() + b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(state, epilogue(state));
    const uint32_t outside = state.quantization[b_.c.input].zeros();
    panels_.run(state, state.values[b_.c.input], outside,
                [&](const TiledWork& work, float* scratch) { multiply(work, state, scratch); });
  }

 protected:
  BytePanelStep(const Layer& layer, const char* kernel, const Convolution& convolution, const PlanContext& context,
                Panels panels)
      : Step(layer.node->name, layer.op, kernel), b_(convolution, context), panels_(std::move(panels)) {}

  // Compute and finish the outputs of some work; `scratch` is what is behind a worker's panels.
  virtual void multiply(const TiledWork& work, const RunState& state, float* scratch) const = 0;

  float* epilogue(const RunState& state) const { return state.shared + t_.shared_floats(); }

  ByteConvolution b_;
  Panels panels_;
  const Tiling& t_ = panels_.tiling;
};

}  // namespace pyquant
