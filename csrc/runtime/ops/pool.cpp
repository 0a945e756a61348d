// Pooling: the largest or the mean value of a window, for windows of a fixed size and for a fixed number of them.
#include <algorithm>
#include <limits>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// The sum of `count` values. Several sums at a time: one alone waits for each of its additions.
float sum_of(const float* values, int64_t count) {
  constexpr int64_t kSums = 8;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t s = 0; s < kSums; ++s) sums[s] += values[i + s];
  }
  for (int64_t s = 0; i < count; ++s, ++i) sums[s] += values[i];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// What all pooling steps share: each plane of the input becomes a plane of the output.
class PlaneStep : public Step {
 public:
  PlaneStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "plane"), input_(layer.inputs[0]), output_(layer.output) {
    const Shape& in = context.shapes[input_];
    const Shape& out = context.shapes[output_];
    planes_ = checked_multiply(in.at(0), in.at(1));
    height_ = in.at(2);
    width_ = in.at(3);
    out_height_ = out.at(2);
    out_width_ = out.at(3);
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(planes_, [&](int64_t plane, int worker) {
      run_plane(state.values[input_] + plane * height_ * width_,
                state.values[output_] + plane * out_height_ * out_width_, state.scratch[worker]);
    });
  }

 protected:
  virtual void run_plane(const float* in, float* out, float* scratch) const = 0;

  ValueId input_, output_;
  int64_t height_, width_, out_height_, out_width_;

 private:
  int64_t planes_;
};

class WindowStep : public PlaneStep {
 public:
  WindowStep(const Layer& layer, const PlanContext& context) : PlaneStep(layer, context) {
    const Node& node = *layer.node;
    const auto pair = [&](const char* key) { return node.attribute<std::vector<int64_t>>(key); };
    kernel_y_ = pair("kernel").at(0);
    kernel_x_ = pair("kernel").at(1);
    stride_y_ = pair("stride").at(0);
    stride_x_ = pair("stride").at(1);
    pad_y_ = pair("padding").at(0);
    pad_x_ = pair("padding").at(1);
  }

 protected:
  int64_t kernel_y_, kernel_x_, stride_y_, stride_x_, pad_y_, pad_x_;
};

class MaxPoolStep : public WindowStep {
 public:
  MaxPoolStep(const Layer& layer, const PlanContext& context) : WindowStep(layer, context), kernels_(context.kernels) {
    const auto& dilation = layer.node->attribute<std::vector<int64_t>>("dilation");
    dilation_y_ = dilation.at(0);
    dilation_x_ = dilation.at(1);
  }

  int64_t scratch_floats() const override { return round_up(width_ + kSlackBytes / 4, 16); }

 protected:
  void run_plane(const float* in, float* out, float* scratch) const override {
    constexpr float least = -std::numeric_limits<float>::infinity();
    run_windows(in, out, scratch, least, kernels_->max_row);
  }

  // out[y][x] = the largest of its window: first of each column, width_ of them in `columns`, then of these.
  // take(from, step, to, count) makes to[i] the larger of itself and from[i * step].
  template <typename T, typename Take>
  void run_windows(const T* in, T* out, T* columns, T least, const Take& take) const {
    for (int64_t y = 0; y < out_height_; ++y, out += out_width_) {
      std::fill_n(columns, width_, least);
      for (int64_t ky = 0; ky < kernel_y_; ++ky) {
        const int64_t in_y = y * stride_y_ - pad_y_ + ky * dilation_y_;
        if (in_y >= 0 && in_y < height_) take(in + in_y * width_, 1, columns, width_);
      }
      std::fill_n(out, out_width_, least);
      for (int64_t kx = 0; kx < kernel_x_; ++kx) {
        const int64_t offset = kx * dilation_x_ - pad_x_;
        const int64_t begin = offset >= 0 ? 0 : ceil_div(-offset, stride_x_);
        const int64_t end = std::min(out_width_, offset >= width_ ? 0 : ceil_div(width_ - offset, stride_x_));
        if (end > begin) take(columns + offset + begin * stride_x_, stride_x_, out + begin, end - begin);
      }
    }
  }

  const KernelTable* kernels_;
  int64_t dilation_y_, dilation_x_;
};

// The same in bytes, which keep their meaning.
class MaxPool8Step : public MaxPoolStep {
 public:
  MaxPool8Step(const Layer& layer, const PlanContext& context)
      : MaxPoolStep(layer, context),
        planes_(context.shapes[output_].at(0) * ceil_div(context.shapes[output_].at(1), kQuad)) {}

  void run(const RunState& state) const override {
    state.quantization[output_] = state.quantization[input_];
    state.pool->parallel_for(planes_, [&](int64_t plane, int worker) {
      run_windows(state.quads(input_) + plane * height_ * width_,
                  state.quads(output_) + plane * out_height_ * out_width_,
                  reinterpret_cast<uint32_t*>(state.scratch[worker]), uint32_t{0}, kernels_->max_row8);
    });
  }

 private:
  int64_t planes_;  // of quads
};

class AveragePoolStep : public WindowStep {
 public:
  AveragePoolStep(const Layer& layer, const PlanContext& context)
      : WindowStep(layer, context),
        count_include_pad_(layer.node->attribute<bool>("count_include_pad")),
        divisor_(layer.node->attribute<int64_t>("divisor")) {}

 protected:
  void run_plane(const float* in, float* out, float*) const override {
    for (int64_t y = 0; y < out_height_; ++y) {
      for (int64_t x = 0; x < out_width_; ++x) *out++ = mean(in, y * stride_y_ - pad_y_, x * stride_x_ - pad_x_);
    }
  }

 private:
  float mean(const float* in, int64_t top, int64_t left) const {
    const int64_t first_y = std::max<int64_t>(top, 0);
    const int64_t first_x = std::max<int64_t>(left, 0);
    const int64_t last_y = std::min(top + kernel_y_, height_);
    const int64_t last_x = std::min(left + kernel_x_, width_);
    float sum = 0;
    for (int64_t y = first_y; y < last_y; ++y) {
      sum += sum_of(in + y * width_ + first_x, std::max<int64_t>(last_x - first_x, 0));
    }
    // With ceil_mode a window may reach behind the padding; what lies there never counts.
    const int64_t padded =
        (std::min(top + kernel_y_, height_ + pad_y_) - top) * (std::min(left + kernel_x_, width_ + pad_x_) - left);
    const int64_t inside = std::max<int64_t>(last_y - first_y, 0) * std::max<int64_t>(last_x - first_x, 0);
    const int64_t count = divisor_ != 0 ? divisor_ : count_include_pad_ ? padded : inside;
    return count == 0 ? 0.0f : sum / static_cast<float>(count);
  }

  bool count_include_pad_;
  int64_t divisor_;
};

// Output pixel y is the mean of input rows floor(y * H / OH) to ceil((y + 1) * H / OH), columns likewise.
class AdaptiveAveragePoolStep : public PlaneStep {
 public:
  using PlaneStep::PlaneStep;

 protected:
  void run_plane(const float* in, float* out, float*) const override {
    for (int64_t y = 0; y < out_height_; ++y) {
      const int64_t first_y = y * height_ / out_height_;
      const int64_t last_y = ceil_div((y + 1) * height_, out_height_);
      for (int64_t x = 0; x < out_width_; ++x) {
        const int64_t first_x = x * width_ / out_width_;
        const int64_t last_x = ceil_div((x + 1) * width_, out_width_);
        float sum = 0;
        const int64_t rows = last_y - first_y, columns = last_x - first_x;
        const bool is_one_run = columns == width_;
        for (int64_t row = 0; row < (is_one_run ? 1 : rows); ++row) {
          sum += sum_of(in + (first_y + row) * width_ + first_x, is_one_run ? rows * width_ : columns);
        }
        *out++ = sum / static_cast<float>(rows * columns);
      }
    }
  }
};

}  // namespace

std::unique_ptr<Step> plan_pool(const Layer& layer, const PlanContext& context) {
  if (layer.node->op == "max_pool2d") {
    if (context.formats[layer.output] == Format::kBytes) return std::make_unique<MaxPool8Step>(layer, context);
    return std::make_unique<MaxPoolStep>(layer, context);
  }
  return std::make_unique<AveragePoolStep>(layer, context);
}

std::unique_ptr<Step> plan_adaptive_pool(const Layer& layer, const PlanContext& context) {
  return std::make_unique<AdaptiveAveragePoolStep>(layer, context);
}

}  // namespace pyquant
