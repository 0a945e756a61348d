// Pixel shuffle: the channels of a pixel become a block of pixels.
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class PixelShuffleStep : public Step {
 public:
  PixelShuffleStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "copy"), input_(layer.inputs[0]), output_(layer.output) {
    const Shape& in = context.shapes[input_];
    const Shape& out = context.shapes[output_];
    planes_ = checked_multiply(out.at(0), out.at(1));
    height_ = in.at(2);
    width_ = in.at(3);
    factor_y_ = out.at(2) / height_;
    factor_x_ = out.at(3) / width_;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(planes_, [&](int64_t plane, int) {
      const int64_t pixels = height_ * width_ * factor_y_ * factor_x_;
      const float* in = state.values[input_] + plane * pixels;
      float* out = state.values[output_] + plane * pixels;
      for (int64_t fy = 0; fy < factor_y_; ++fy) {
        for (int64_t fx = 0; fx < factor_x_; ++fx) {
          for (int64_t y = 0; y < height_; ++y) {
            float* row = out + (y * factor_y_ + fy) * width_ * factor_x_ + fx;
            for (int64_t x = 0; x < width_; ++x) row[x * factor_x_] = *in++;
          }
        }
      }
    });
  }

 private:
  ValueId input_, output_;
  int64_t planes_, height_, width_, factor_y_, factor_x_;
};

}  // namespace

std::unique_ptr<Step> plan_pixel_shuffle(const Layer& layer, const PlanContext& context) {
  return std::make_unique<PixelShuffleStep>(layer, context);
}

}  // namespace pyquant
