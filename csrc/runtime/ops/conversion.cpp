// Conversion of a value between floats and bytes.
#include <algorithm>
#include <limits>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// A value as planes, four of which are one plane of quads.
struct Planes {
  explicit Planes(const Shape& shape)
      : images(shape.at(0)),
        channels(shape.at(1)),
        quads(ceil_div(channels, kQuad)),
        plane(checked_product(shape) / (images * channels)) {}

  // The floats and the quads before quad plane `index` of all images, and how many channels it has.
  int64_t floats_before(int64_t index) const { return (index / quads * channels + index % quads * kQuad) * plane; }
  int64_t quads_before(int64_t index) const { return index * plane; }
  int64_t channels_of(int64_t index) const { return std::min(kQuad, channels - index % quads * kQuad); }

  int64_t images, channels, quads, plane;
};

class QuantizeStep : public Step {
 public:
  QuantizeStep(const Layer& layer, const PlanContext& context)
      : Step(layer.op, layer.op, "quantize"),
        kernels_(context.kernels),
        input_(layer.inputs[0]),
        output_(layer.output),
        planes_(context.shapes[output_]),
        is_measured_(!context.ranges[output_]) {}

  void run(const RunState& state) const override {
    if (is_measured_) state.quantization[output_] = measure(state);
    const Quantization to = state.quantization[output_];
    state.pool->parallel_for(planes_.images * planes_.quads, [&](int64_t index, int) {
      kernels_->quantize(state.values[input_] + planes_.floats_before(index), planes_.plane, planes_.channels_of(index),
                         1.0f / to.scale, static_cast<float>(to.zero),
                         state.quads(output_) + planes_.quads_before(index), planes_.plane);
    });
  }

 private:
  // The bytes that reach from the smallest to the largest value, infinite ones and NaN left aside.
  Quantization measure(const RunState& state) const {
    struct alignas(kAlignment) Range {
      float low = 0, high = 0;
    };
    std::vector<Range> ranges(state.pool->threads());
    state.pool->parallel_for(planes_.images * planes_.channels, [&](int64_t index, int worker) {
      const float* const values = state.values[input_] + index * planes_.plane;
      Range range = ranges[worker];
      for (int64_t p = 0; p < planes_.plane; ++p) {
        constexpr float most = std::numeric_limits<float>::max();
        range.low = values[p] < range.low && values[p] >= -most ? values[p] : range.low;
        range.high = values[p] > range.high && values[p] <= most ? values[p] : range.high;
      }
      ranges[worker] = range;
    });
    Range all;
    for (const Range& range : ranges) all = {std::min(all.low, range.low), std::max(all.high, range.high)};
    return quantization_of(all.low, all.high);
  }

  const KernelTable* kernels_;
  ValueId input_, output_;
  Planes planes_;
  bool is_measured_;  // in each run, for want of a range that is known before
};

class DequantizeStep : public Step {
 public:
  DequantizeStep(const Layer& layer, const PlanContext& context)
      : Step(layer.op, layer.op, "dequantize"),
        kernels_(context.kernels),
        input_(layer.inputs[0]),
        output_(layer.output),
        planes_(context.shapes[output_]) {}

  void run(const RunState& state) const override {
    const Quantization from = state.quantization[input_];
    state.pool->parallel_for(planes_.images * planes_.quads, [&](int64_t index, int) {
      kernels_->dequantize(state.quads(input_) + planes_.quads_before(index), from.scale, static_cast<float>(from.zero),
                           state.values[output_] + planes_.floats_before(index), planes_.plane,
                           planes_.channels_of(index), planes_.plane);
    });
  }

 private:
  const KernelTable* kernels_;
  ValueId input_, output_;
  Planes planes_;
};

}  // namespace

std::unique_ptr<Step> plan_conversion(const Layer& layer, const PlanContext& context) {
  if (context.formats[layer.output] == Format::kBytes) return std::make_unique<QuantizeStep>(layer, context);
  return std::make_unique<DequantizeStep>(layer, context);
}

}  // namespace pyquant
