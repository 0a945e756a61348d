// Pixel shuffle: the channels of a pixel become a block of pixels.
#include <algorithm>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class PixelShuffleStep : public Step {
 public:
  PixelShuffleStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "copy"), input_(layer.inputs[0]), output_(layer.output) {
    const Shape& in = context.shapes[input_];
    const Shape& out = context.shapes[output_];
    images_ = out.at(0);
    channels_ = out.at(1);
    height_ = in.at(2);
    width_ = in.at(3);
    factor_y_ = out.at(2) / height_;
    factor_x_ = out.at(3) / width_;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(images_ * channels_, [&](int64_t plane, int) {
      const int64_t pixels = in_plane() * factor_y_ * factor_x_;
      const float* in = state.values[input_] + plane * pixels;
      float* out = state.values[output_] + plane * pixels;
      for (int64_t fy = 0; fy < factor_y_; ++fy) {
        for (int64_t fx = 0; fx < factor_x_; ++fx) {
          for (int64_t y = 0; y < height_; ++y) {
            float* row = row_of(out, y, fy, fx);
            for (int64_t x = 0; x < width_; ++x) row[x * factor_x_] = *in++;
          }
        }
      }
    });
  }

 protected:
  int64_t in_plane() const { return height_ * width_; }

  // Where the pixels of an input row go to: one after another, factor_x_ apart.
  template <typename T>
  T* row_of(T* plane, int64_t y, int64_t fy, int64_t fx) const {
    return plane + (y * factor_y_ + fy) * width_ * factor_x_ + fx;
  }

  ValueId input_, output_;
  int64_t images_, channels_, height_, width_, factor_y_, factor_x_;
};

// Blocks of four pixels in bytes, which keep their meaning: a block is a quad of the input.
class PixelShuffle8Step : public PixelShuffleStep {
 public:
  using PixelShuffleStep::PixelShuffleStep;

  void run(const RunState& state) const override {
    state.quantization[output_] = state.quantization[input_];
    const int64_t quads = ceil_div(channels_, kQuad);
    state.pool->parallel_for(images_ * quads, [&](int64_t index, int) {
      const int64_t channel = index % quads * kQuad;
      const int64_t some = std::min(kQuad, channels_ - channel);
      const uint32_t* in = state.quads(input_) + (index / quads * channels_ + channel) * in_plane();
      uint32_t* const out = state.quads(output_) + index * kQuad * in_plane();
      const uint32_t behind = some == kQuad ? 0 : state.quantization[output_].zeros() << (8 * some);
      for (int64_t y = 0; y < height_; ++y, in += width_) {
        for (int64_t i = 0; i < kQuad; ++i) {
          uint32_t* row = row_of(out, y, i / factor_x_, i % factor_x_);
          for (int64_t x = 0; x < width_; ++x) {
            uint32_t quad = behind;
            for (int64_t c = 0; c < some; ++c) quad |= (in[c * in_plane() + x] >> (8 * i) & 255) << (8 * c);
            row[x * factor_x_] = quad;
          }
        }
      }
    });
  }
};

}  // namespace

std::unique_ptr<Step> plan_pixel_shuffle(const Layer& layer, const PlanContext& context) {
  if (context.formats[layer.output] == Format::kBytes) return std::make_unique<PixelShuffle8Step>(layer, context);
  return std::make_unique<PixelShuffleStep>(layer, context);
}

}  // namespace pyquant
