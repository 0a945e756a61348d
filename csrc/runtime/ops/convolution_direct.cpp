// The direct path: panels of unfolded inputs are multiplied with weights, a few outputs at a time.
//
// Weights are read from the codebook by way of their codes while they are multiplied. Bytes, and what has too many
// additive codebooks for that, are decoded first, a few rows at a time, unless memory is granted to keep them.
#include <algorithm>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"
#include "runtime/ops/panels.h"

namespace pyquant {
namespace {

double cost_of_rows(const Weight& weight) { return has_joint_codebook(weight) ? 0.0 : decode_cost(weight); }

Panels panels_of(const Convolution& c, int threads) {
  return Panels(c.geometry, *c.weight, *c.kernels, c.kernels->tile, c.group_outputs(), cost_of_rows(*c.weight),
                threads);
}

class DirectStep : public Step {
 public:
  DirectStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "direct"), c_(convolution), panels_(panels_of(convolution, context.threads)) {
    const Weight& weight = *c_.weight;
    if (has_joint_codebook(weight)) {
      at_ = joint_codes(weight, c_.geometry.groups, t_.tile_rows, weight.block.dim());
      if (weight.codebooks > 1) codebook_ = joint_codebook(weight, weight.codebook);
      panels_.vary_steps(weight.block.dim(), at_);
      return;
    }
    if (weight.dense.empty()) kept_ = c_.kept_rows(context);
    weights_floats_ = round_up(t_.tile_rows * weight.depth() + kSlackBytes / 4, 16);
  }

  int64_t scratch_floats() const override {
    return t_.own_panel_floats() + weights_floats_ + t_.tile_rows * c_.kernels->tile.pixels;
  }

  int64_t shared_floats() const override { return t_.shared_floats(); }

  void run(const RunState& state) const override {
    panels_.run(state, state.values[c_.input], 0,
                [&](const TiledWork& work, float* scratch) { multiply(work, state, scratch); });
  }

 private:
  // The weights of a tile of output rows, as gemm_tile takes them.
  struct Rows {
    const uint16_t* at;
    const float* codebook;
    int64_t dim;
    int64_t blocks;
  };

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const Panels::Unit unit = panels_.unit(work.group);
    float* const sums = scratch + weights_floats_;
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const int64_t output = unit.group * t_.outputs + row;
      const int64_t count = std::min(t_.tile_rows, work.last_output - row);
      const Rows rows = rows_from(output, count, scratch);
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
        const int64_t pixel = unit.first_pixel + t_.begin(tile);
        const int64_t pixels = t_.lanes_of(tile);
        if (c_.expects_residual) c_.expect(output, count, pixel, pixels, state);
        kernels.gemm_tile(rows.at, rows.codebook, rows.dim, rows.blocks, work.panel(t_, tile), panels_.rows.data(),
                          sums, kernels.tile.pixels, pixels);
        c_.finish(sums, kernels.tile.pixels, output, count, pixel, pixels, state);
      }
    }
  }

  // The weights of `count` outputs from `output` on, the first of a row tile; written to `scratch` where they must be.
  Rows rows_from(int64_t output, int64_t count, float* scratch) const {
    const Weight& weight = *c_.weight;
    const int64_t depth = weight.depth();
    const int64_t blocks = weight.blocks_per_row();
    const int64_t dim = weight.block.dim();
    if (has_joint_codebook(weight)) {
      const int64_t tile = output / t_.outputs * t_.row_tiles() + output % t_.outputs / t_.tile_rows;
      return {.at = at_.data() + tile * blocks * t_.tile_rows,
              .codebook = codebook_.empty() ? weight.codebook.data() : codebook_.data(),
              .dim = dim,
              .blocks = blocks};
    }
    const float* rows = scratch;
    const AlignedBuffer<float>* const whole = weight.dense.empty() ? kept_.get() : &weight.dense;
    if (whole == nullptr) {
      c_.decode(output, count, scratch, depth);
    } else if (count == t_.tile_rows) {
      rows = whole->data() + output * depth;
    } else {  // gemm_tile reads all rows of a tile, also where there are fewer
      std::copy_n(whole->data() + output * depth, count * depth, scratch);
    }
    return {.at = nullptr, .codebook = rows, .dim = depth, .blocks = 1};
  }

  Convolution c_;
  Panels panels_;
  const Tiling& t_ = panels_.tiling;
  AlignedBuffer<uint16_t> at_;       // where a tile's rows are found in a codebook
  AlignedBuffer<float> codebook_;    // the joint one; empty: the weight's own
  KeptWeights::Values<float> kept_;  // null: decoded in each run
  int64_t weights_floats_ = 0;       // of a row tile that is not read where it lies
};

double cost(const Convolution& c, int threads) {
  const Panels panels = panels_of(c, threads);
  const Tiling& t = panels.tiling;
  const double decoded = cost_of_rows(*c.weight) * static_cast<double>(t.num_blocks);
  const auto weights = static_cast<double>(t.computed_rows() * static_cast<int64_t>(panels.rows.size()));
  return weights * (t.vectors(has_joint_codebook(*c.weight)) + decoded) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<DirectStep>(layer, convolution, context);
}

}  // namespace

Path direct_path() { return {.kernel = "direct", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
