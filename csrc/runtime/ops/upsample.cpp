// Upsampling by the nearest pixel or by bilinear interpolation, with PyTorch's rule for source positions.
#include <algorithm>
#include <cmath>

#include "runtime/interpolation.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// Source pixels per output pixel: as given, or the ratio of the sizes.
double step_of(int64_t in, int64_t out, double factor, bool align_corners) {
  if (align_corners) return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0;
  return factor > 0 ? 1 / factor : static_cast<double>(in) / static_cast<double>(out);
}

std::vector<Source> sources_of(int64_t in, int64_t out, double factor, bool bilinear, bool align_corners) {
  // PyTorch computes positions in fp32; doing otherwise could pick another pixel where a position is nearly whole.
  const auto step = static_cast<float>(step_of(in, out, factor, bilinear && align_corners));
  std::vector<Source> sources;
  for (int64_t i = 0; i < out; ++i) {
    const auto at = static_cast<float>(i);
    // Equal and doubled sizes are cases of their own in PyTorch, whatever the factor that led to them.
    if (out == in) {
      sources.push_back({i, i, 0});
    } else if (!bilinear) {
      const int64_t nearest = out == 2 * in ? i / 2 : std::min(static_cast<int64_t>(std::floor(at * step)), in - 1);
      sources.push_back({nearest, nearest, 0});
    } else {
      sources.push_back(source_at(align_corners ? at * step : position_of(i, step), in));
    }
  }
  return sources;
}

class UpsampleStep : public Step {
 public:
  UpsampleStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "plane"), input_(layer.inputs[0]), output_(layer.output) {
    const Node& node = *layer.node;
    const Shape& in = context.shapes[input_];
    const Shape& out = context.shapes[output_];
    const std::vector<double> by_size = {0, 0};
    const auto& factor = node.op == "upsample_like" ? by_size : node.attribute<std::vector<double>>("factor");
    const bool bilinear = node.attribute<std::string>("mode") == "bilinear";
    const bool align_corners = node.attribute<bool>("align_corners");
    planes_ = checked_multiply(in.at(0), in.at(1));
    height_ = in.at(2);
    width_ = in.at(3);
    rows_ = sources_of(height_, out.at(2), factor.at(0), bilinear, align_corners);
    columns_ = sources_of(width_, out.at(3), factor.at(1), bilinear, align_corners);
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(planes_, [&](int64_t plane, int) {
      const float* in = state.values[input_] + plane * height_ * width_;
      float* out = state.values[output_] + plane * static_cast<int64_t>(rows_.size() * columns_.size());
      for (const Source& y : rows_) {
        const float* top = in + y.first * width_;
        const float* bottom = in + y.second * width_;
        for (const Source& x : columns_) {
          const float upper = top[x.first] * (1 - x.weight) + top[x.second] * x.weight;
          const float lower = bottom[x.first] * (1 - x.weight) + bottom[x.second] * x.weight;
          *out++ = y.weight == 0 ? upper : upper * (1 - y.weight) + lower * y.weight;
        }
      }
    });
  }

 private:
  ValueId input_, output_;
  int64_t planes_, height_, width_;
  std::vector<Source> rows_, columns_;
};

}  // namespace

std::unique_ptr<Step> plan_upsample(const Layer& layer, const PlanContext& context) {
  return std::make_unique<UpsampleStep>(layer, context);
}

}  // namespace pyquant
