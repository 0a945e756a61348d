// Operations that treat each value by itself: activations and affine maps that nothing precedes, sums and products.
#include <algorithm>
#include <array>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// Values that a thread takes at a time: large enough to be worth it, small enough to share out.
constexpr int64_t kChunk = 16384;

constexpr float kZero = 0.0f;
constexpr float kOne = 1.0f;

class ActivationStep : public Step {
 public:
  ActivationStep(const Layer& layer, const PlanContext& context, Activation activation)
      : Step(layer.node->name, layer.op, "elementwise"),
        kernels_(context.kernels),
        activation_(activation),
        input_(layer.inputs[0]),
        output_(layer.output),
        size_(checked_product(context.shapes[layer.output])) {}

  void run(const RunState& state) const override {
    const Clamp clamp = clamp_of(activation_);
    state.pool->parallel_for(ceil_div(size_, kChunk), [&](int64_t chunk, int) {
      const int64_t first = chunk * kChunk;
      const int64_t count = std::min(kChunk, size_ - first);
      float* out = state.values[output_] + first;
      kernels_->finish_tile(state.values[input_] + first, 0, &kOne, &kZero, nullptr, clamp.low, clamp.high, out, 0, 1,
                            count);
      apply_curve(kernels_->curves, activation_, out, count);
    });
  }

 private:
  const KernelTable* kernels_;
  Activation activation_;
  ValueId input_, output_;
  int64_t size_;
};

class AffineStep : public Step {
 public:
  AffineStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "elementwise"),
        kernels_(context.kernels),
        node_(layer.node),
        input_(layer.inputs[0]),
        output_(layer.output) {
    const Shape& shape = context.shapes[layer.output];
    images_ = shape.at(0);
    channels_ = shape.at(1);
    plane_ = checked_product(shape) / (images_ * channels_);
    together_ = std::clamp<int64_t>(kChunk / plane_, 1, channels_);
    if (static_cast<int64_t>(node_->scale.size()) != channels_ || node_->bias.size() != node_->scale.size()) {
      throw Error("layer '" + node_->name + "' (affine): expected a scale and a bias for each of " +
                  std::to_string(channels_) + " channels, got " + std::to_string(node_->scale.size()));
    }
  }

  void run(const RunState& state) const override {
    const Clamp open = clamp_of(Activation::kNone);
    const int64_t units = ceil_div(channels_, together_);  // of an image
    state.pool->parallel_for(images_ * units, [&](int64_t unit, int) {
      const int64_t first = unit % units * together_;
      const int64_t at = (unit / units * channels_ + first) * plane_;
      kernels_->finish_tile(state.values[input_] + at, plane_, &node_->scale[first], &node_->bias[first], nullptr,
                            open.low, open.high, state.values[output_] + at, plane_,
                            std::min(together_, channels_ - first), plane_);
    });
  }

 private:
  const KernelTable* kernels_;
  const Node* node_;
  ValueId input_, output_;
  int64_t images_, channels_, plane_;
  int64_t together_;  // channels
};

constexpr int64_t kMostDimensions = 6;

// Two inputs that broadcast as NumPy's do: a dimension of size 1 (or one that is missing in front) has stride 0.
class BinaryStep : public Step {
 public:
  BinaryStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "elementwise"),
        multiply_(layer.node->op == "mul"),
        left_(layer.inputs[0]),
        right_(layer.inputs[1]),
        output_(layer.output) {
    const Shape& shape = context.shapes[output_];
    if (static_cast<int64_t>(shape.size()) > kMostDimensions) {
      throw Error("layer '" + layer.node->name + "': at most " + std::to_string(kMostDimensions) + " dimensions");
    }
    std::copy_backward(shape.begin(), shape.end(), sizes_.end());
    left_strides_ = strides_of(context.shapes[left_]);
    right_strides_ = strides_of(context.shapes[right_]);
    // Neighbouring dimensions that both inputs walk through without a jump are one long dimension.
    for (int64_t d = kMostDimensions - 2; d >= 0; --d) {
      const int64_t inner = sizes_[kMostDimensions - 1];
      const bool joins =
          left_strides_[d] == left_strides_.back() * inner && right_strides_[d] == right_strides_.back() * inner;
      if (sizes_[d] != 1 && !joins) break;
      sizes_.back() *= sizes_[d];
      sizes_[d] = 1;
    }
    rows_ = checked_product(std::span(sizes_).first(kMostDimensions - 1));
  }

  void run(const RunState& state) const override {
    const int64_t inner = sizes_.back();
    // A row may be short (a broadcast gate) or the whole array (equal shapes): cut long ones, join short ones.
    const int64_t cuts = ceil_div(inner, kChunk);
    const int64_t rows_per_unit = std::max<int64_t>(1, kChunk / inner);
    state.pool->parallel_for(ceil_div(rows_, rows_per_unit) * cuts, [&](int64_t unit, int) {
      const int64_t first = unit % cuts * kChunk;
      const int64_t count = std::min(kChunk, inner - first);
      const int64_t first_row = unit / cuts * rows_per_unit;
      for (int64_t row = first_row; row < std::min(first_row + rows_per_unit, rows_); ++row) {
        run_row(state, row, first, count);
      }
    });
  }

 private:
  using Dimensions = std::array<int64_t, kMostDimensions>;

  Dimensions strides_of(const Shape& shape) const {
    Dimensions strides{};
    int64_t stride = 1;
    for (size_t back = 0; back < shape.size(); ++back) {
      const int64_t size = shape[shape.size() - 1 - back];
      const size_t d = kMostDimensions - 1 - back;
      if (size != 1 && size != sizes_[d]) throw Error("layer '" + name() + "': its inputs do not broadcast");
      strides[d] = size == 1 ? 0 : stride;
      stride *= size;
    }
    return strides;
  }

  void run_row(const RunState& state, int64_t row, int64_t first, int64_t count) const {
    const float* left = state.values[left_] + first * left_strides_.back();
    const float* right = state.values[right_] + first * right_strides_.back();
    float* out = state.values[output_] + row * sizes_.back() + first;
    for (int64_t d = kMostDimensions - 2; d >= 0; --d) {
      left += row % sizes_[d] * left_strides_[d];
      right += row % sizes_[d] * right_strides_[d];
      row /= sizes_[d];
    }
    const int64_t left_step = left_strides_.back();
    const int64_t right_step = right_strides_.back();
    if (multiply_) {
      for (int64_t i = 0; i < count; ++i) out[i] = left[i * left_step] * right[i * right_step];
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = left[i * left_step] + right[i * right_step];
    }
  }

  bool multiply_;
  ValueId left_, right_, output_;
  Dimensions sizes_{1, 1, 1, 1, 1, 1};
  Dimensions left_strides_{}, right_strides_{};
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<Step> plan_activation(const Layer& layer, const PlanContext& context) {
  return std::make_unique<ActivationStep>(layer, context, *activation_of(layer.node->op));
}

std::unique_ptr<Step> plan_affine(const Layer& layer, const PlanContext& context) {
  return std::make_unique<AffineStep>(layer, context);
}

std::unique_ptr<Step> plan_binary(const Layer& layer, const PlanContext& context) {
  return std::make_unique<BinaryStep>(layer, context);
}

}  // namespace pyquant
