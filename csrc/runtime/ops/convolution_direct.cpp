// The direct path: panels of unfolded inputs are multiplied with weights, a few outputs at a time.
//
// Weights are read from the codebook by way of their codes while they are multiplied. Only what has too many additive
// codebooks for that is decoded first, a few rows at a time.
#include <algorithm>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// Decoding one weight, in vector multiply-adds.
constexpr double kDecodeCost = 0.3;

Tiling tile(const Convolution& c, int threads) {
  return Tiling(c, c.geometry.pixels(), c.patches.depth() * static_cast<int64_t>(sizeof(float)), threads);
}

class DirectStep : public Step {
 public:
  DirectStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "direct"),
        c_(convolution),
        t_(tile(convolution, context.threads)),
        row_tiles_(ceil_div(t_.group_outputs, t_.tile_rows)) {
    const int64_t depth = c_.patches.depth();
    panel_floats_ = round_up(depth * t_.pitch, 16);
    const Weight& weight = *c_.weight;
    if (has_joint_codebook(weight)) {
      codes_ = joint_codes(weight, c_.geometry.groups, t_.tile_rows);
      if (weight.codebooks > 1) codebook_ = joint_codebook(weight);
      return;
    }
    // Rows of a matrix are their own codebook: see gemm_tile.
    codes_ = AlignedBuffer<uint16_t>(row_tiles_ * t_.tile_rows);
    for (int64_t row = 0; row < codes_.size(); ++row) {
      codes_[row] = static_cast<uint16_t>(row < t_.group_outputs ? row % t_.tile_rows : 0);
    }
    if (!weight.is_dense()) weights_floats_ = round_up(t_.tile_rows * depth + kSlackBytes / 4, 16);
  }

  int64_t scratch_floats() const override {
    const int64_t panels = t_.shared ? 0 : t_.tiles_per_block() * panel_floats_;
    return panels + weights_floats_ + t_.tile_rows * c_.kernels->tile_pixels;
  }

  int64_t shared_floats() const override { return t_.shared ? c_.geometry.groups * t_.num_tiles * panel_floats_ : 0; }

  void run(const RunState& state) const override {
    const int64_t groups = c_.geometry.groups;
    if (!t_.shared) {
      state.pool->parallel_for(groups * t_.num_blocks, [&](int64_t unit, int worker) {
        const int64_t group = unit / t_.num_blocks;
        const int64_t block = unit % t_.num_blocks;
        float* const panels = state.scratch[worker];
        for (int64_t tile = t_.first_tile(block); tile < t_.first_tile(block + 1); ++tile) {
          pack(state, group, tile, panels + (tile - t_.first_tile(block)) * panel_floats_, 0, 1);
        }
        multiply(group, block, 0, panels, state, panels + t_.tiles_per_block() * panel_floats_);
      });
      return;
    }
    const int64_t parts = t_.ranges;
    const auto panel = [&](int64_t group, int64_t tile) {
      return state.shared + (group * t_.num_tiles + tile) * panel_floats_;
    };
    state.pool->parallel_for(groups * t_.num_tiles * parts, [&](int64_t unit, int) {
      const int64_t group = unit / parts / t_.num_tiles;
      const int64_t tile = unit / parts % t_.num_tiles;
      pack(state, group, tile, panel(group, tile), unit % parts, parts);
    });
    state.pool->parallel_for(groups * t_.ranges, [&](int64_t unit, int worker) {
      const int64_t group = unit / t_.ranges;
      for (int64_t block = 0; block < t_.num_blocks; ++block) {
        multiply(group, block, unit % t_.ranges, panel(group, t_.first_tile(block)), state, state.scratch[worker]);
      }
    });
  }

 private:
  // The weights of a tile of output rows, as gemm_tile takes them.
  struct Rows {
    const uint16_t* codes;
    const float* codebook;
    int64_t dim;
    int64_t blocks;
  };

  void pack(const RunState& state, int64_t group, int64_t tile, float* panel, int64_t part, int64_t parts) const {
    c_.patches.pack(state.values[c_.input], group, t_.begin(tile), t_.lanes_of(tile), t_.pitch, panel, part, parts);
  }

  // Compute a range of a group's outputs for a block of tiles, whose panels follow each other.
  void multiply(int64_t group, int64_t block, int64_t range, const float* panels, const RunState& state,
                float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    float* const sums = scratch + weights_floats_;
    const int64_t last = t_.first_output(range + 1);
    for (int64_t row = t_.first_output(range); row < last; row += t_.tile_rows) {
      const int64_t output = group * t_.group_outputs + row;
      const int64_t count = std::min(t_.tile_rows, last - row);
      const Rows rows = rows_from(output, count, scratch);
      for (int64_t tile = t_.first_tile(block); tile < t_.first_tile(block + 1); ++tile) {
        kernels.gemm_tile(rows.codes, rows.codebook, rows.dim, rows.blocks,
                          panels + (tile - t_.first_tile(block)) * panel_floats_, t_.pitch, sums, kernels.tile_pixels,
                          t_.lanes_of(tile));
        c_.finish(sums, kernels.tile_pixels, output, count, t_.begin(tile), t_.lanes_of(tile), state);
      }
    }
  }

  // The weights of `count` outputs from `output` on, the first of a row tile; decoded into `scratch` where they must
  // be.
  Rows rows_from(int64_t output, int64_t count, float* scratch) const {
    const Weight& weight = *c_.weight;
    const int64_t row_tile = output % t_.group_outputs / t_.tile_rows;
    const int64_t depth = weight.depth();
    const int64_t blocks = weight.blocks_per_row();
    const int64_t dim = weight.block.dim();
    if (has_joint_codebook(weight)) {
      const int64_t tile = output / t_.group_outputs * row_tiles_ + row_tile;
      return {.codes = codes_.data() + tile * blocks * t_.tile_rows,
              .codebook = codebook_.empty() ? weight.codebook.data() : codebook_.data(),
              .dim = dim,
              .blocks = blocks};
    }
    const uint16_t* codes = codes_.data() + row_tile * t_.tile_rows;
    if (weight.is_dense()) {
      return {.codes = codes, .codebook = weight.dense.data() + output * depth, .dim = depth, .blocks = 1};
    }
    c_.decode(output, count, scratch, depth);
    return {.codes = codes, .codebook = scratch, .dim = depth, .blocks = 1};
  }

  Convolution c_;
  Tiling t_;
  int64_t row_tiles_;  // of a group
  AlignedBuffer<uint16_t> codes_;
  AlignedBuffer<float> codebook_;  // the joint one; empty: the weight's own
  int64_t panel_floats_ = 0;       // of one tile
  int64_t weights_floats_ = 0;     // of a row tile that has to be decoded
};

double cost(const Convolution& c, int threads) {
  const Tiling t = tile(c, threads);
  const auto tiles = static_cast<double>(t.num_tiles);
  // Below one vector, loads of weights are what takes time.
  const double width = static_cast<double>(t.halves) / 2 / tiles;
  const double vectors = tiles * std::max(width, 1.0);
  const auto weights = static_cast<double>(c.weight->outputs * c.patches.depth());
  const double found = has_joint_codebook(*c.weight) ? kFindCost * tiles
                       : c.weight->is_dense() ? 0.0
                                              : kDecodeCost * static_cast<double>(t.num_blocks * c.weight->codebooks);
  return weights * (vectors + found) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<DirectStep>(layer, convolution, context);
}

}  // namespace

Path direct_path() { return {.kernel = "direct", .cost = &cost, .make = &make}; }

}  // namespace pyquant
