// The dot path: where a layer has few pixels and a pixel's inputs lie side by side, lanes are inputs.
//
// That is a linear layer, or a 1x1 convolution of planes of one pixel, for few images: a vector of pixels would be
// nearly empty. Weights are decoded a few outputs at a time, and each row is multiplied with each pixel.
#include <algorithm>
#include <limits>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// Outputs whose weights are decoded together: few enough to stay in the first-level cache.
constexpr int64_t kRows = 8;

// Multiplying a vector of weights, and decoding a block, in vector multiply-adds.
constexpr double kDotCost = 1.3;
constexpr double kBlockCost = 5;

class DotStep : public Step {
 public:
  DotStep(const Layer& layer, const Convolution& convolution)
      : Step(layer.node->name, layer.op, "dot"), c_(convolution), row_floats_(round_up(c_.weight->depth(), 16)) {}

  int64_t scratch_floats() const override {
    return sums_floats() + (c_.weight->dense.empty() ? kRows * row_floats_ + kSlackBytes / 4 : 0);
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(ceil_div(c_.weight->outputs, kRows), [&](int64_t unit, int worker) {
      run_rows(unit * kRows, std::min(kRows, c_.weight->outputs - unit * kRows), state, state.scratch[worker]);
    });
  }

 private:
  int64_t sums_floats() const { return round_up(kRows * c_.geometry.images, 16); }

  void run_rows(int64_t output, int64_t count, const RunState& state, float* scratch) const {
    const Weight& weight = *c_.weight;
    const int64_t images = c_.geometry.images;
    const int64_t pitch = weight.dense.empty() ? row_floats_ : weight.depth();
    const float* rows = scratch + sums_floats();
    if (weight.dense.empty()) {
      c_.decode(output, count, scratch + sums_floats(), pitch);
    } else {
      rows = weight.dense.data() + output * pitch;
    }
    // Blocks of 1x1 kernels follow the channels: a tail block's padding lies behind the last of them.
    c_.kernels->dot_rows(rows, pitch, state.values[c_.input], weight.channels, scratch, images, count, images,
                         weight.channels);
    c_.finish(scratch, images, output, count, 0, images, state);
  }

  Convolution c_;
  int64_t row_floats_;  // of a decoded row
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (!c.is_vector()) return std::numeric_limits<double>::infinity();
  const auto weights = static_cast<double>(weight.outputs * weight.depth());
  const auto blocks = static_cast<double>(weight.outputs * weight.blocks_per_row() * weight.codebooks);
  const double decoded = weight.has_codes() ? kBlockCost * blocks : decode_cost(weight) * weights;
  const double multiplied = kDotCost * static_cast<double>(c.geometry.images) / static_cast<double>(c.kernels->lanes);
  return (decoded + multiplied * weights) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext&) {
  return std::make_unique<DotStep>(layer, convolution);
}

}  // namespace

Path dot_path() { return {.kernel = "dot", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
