// The table path: the products of a block's inputs with every centroid are tabulated, and outputs add up table rows.
//
// Additive codebooks are tabulated side by side: position q = j * M + m of an output's sum is the m-th code of block j.
#include <algorithm>
#include <limits>

#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// One multiply-add of building a table and one load-and-add of summing, in vector multiply-adds of the decode path.
constexpr double kBuildCost = 1.1;
constexpr double kSumCost = 1.2;
constexpr double kFarSumCost = 1.6;  // where tables lie in the second-level cache

// Tables of one pass over the outputs: together they should stay in half of the first-level cache.
constexpr int64_t kTableBytes = 16 * 1024;

// Where the table of one position alone is larger, passes are as short as the loads and stores of sums permit.
constexpr int64_t kFewestPositions = 4;

int64_t table_bytes(const Convolution& c) {
  return c.weight->centroids * c.kernels->table_pixels * static_cast<int64_t>(sizeof(float));
}

int64_t positions_of(const Convolution& c) { return c.weight->blocks_per_row() * c.weight->codebooks; }

int64_t positions_per_pass(const Convolution& c) {
  return std::min(positions_of(c), std::max(kFewestPositions, kTableBytes / table_bytes(c)));
}

int64_t num_tiles(const Convolution& c) { return ceil_div(c.geometry.pixels(), c.kernels->table_pixels); }

class TableStep : public Step {
 public:
  TableStep(const Layer& layer, const Convolution& convolution)
      : Step(layer.node->name, layer.op, "table"),
        c_(convolution),
        num_tiles_(num_tiles(c_)),
        positions_(positions_of(c_)),
        per_pass_(positions_per_pass(c_)) {
    const Weight& weight = *c_.weight;
    codes_ = AlignedBuffer<uint16_t>(weight.outputs * positions_);
    uint16_t* code = codes_.data();
    for (int64_t first = 0; first < positions_; first += per_pass_) {
      for (int64_t o = 0; o < weight.outputs; ++o) {
        for (int64_t q = first; q < std::min(first + per_pass_, positions_); ++q) {
          const int64_t row = q % weight.codebooks * weight.outputs + o;
          *code++ = weight.codes[row * weight.blocks_per_row() + q / weight.codebooks];
        }
      }
    }
    panel_floats_ = round_up(c_.patches.depth() * c_.kernels->table_pixels, 16);
    table_floats_ = weight.centroids * c_.kernels->table_pixels;
  }

  int64_t scratch_floats() const override {
    return panel_floats_ + per_pass_ * table_floats_ + c_.group_outputs() * c_.kernels->table_pixels;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(c_.geometry.groups * num_tiles_, [&](int64_t unit, int worker) {
      run_unit(unit / num_tiles_, unit % num_tiles_, state, state.scratch[worker]);
    });
  }

 private:
  void run_unit(int64_t group, int64_t tile, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const Weight& weight = *c_.weight;
    const int64_t pixel = tile * kernels.table_pixels;
    const int64_t pixels = std::min(kernels.table_pixels, c_.geometry.pixels() - pixel);
    const int64_t dim = weight.block.dim();
    float* const tables = scratch;
    float* const sums = tables + per_pass_ * table_floats_;
    float* const panel = sums + c_.group_outputs() * kernels.table_pixels;

    c_.patches.pack(state.values[c_.input], group, pixel, pixels, kernels.table_pixels, panel);
    for (int64_t first = 0; first < positions_; first += per_pass_) {
      const int64_t count = std::min(per_pass_, positions_ - first);
      for (int64_t q = first; q < first + count; ++q) {
        kernels.table_build(weight.codebook.data() + q % weight.codebooks * weight.centroids * dim, weight.centroids,
                            dim, panel + q / weight.codebooks * dim * kernels.table_pixels, pixels,
                            tables + (q - first) * table_floats_);
      }
      const uint16_t* codes = codes_.data() + first * weight.outputs + group * c_.group_outputs() * count;
      kernels.table_sum(codes, count, tables, weight.centroids, sums, c_.group_outputs(), pixels, first > 0);
    }
    c_.finish(sums, kernels.table_pixels, group * c_.group_outputs(), c_.group_outputs(), pixel, pixels, state);
  }

  Convolution c_;
  int64_t num_tiles_;
  int64_t positions_;
  int64_t per_pass_;
  AlignedBuffer<uint16_t> codes_;  // of each pass [O, positions of the pass]
  int64_t panel_floats_ = 0;
  int64_t table_floats_ = 0;  // of one position
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (weight.is_dense()) return std::numeric_limits<double>::infinity();
  const int64_t units = num_tiles(c) * c.geometry.groups;
  const auto vectors = static_cast<double>(c.kernels->table_pixels / c.kernels->lanes);
  const auto build = static_cast<double>(weight.codebooks * weight.centroids * c.patches.depth());
  const auto sum = static_cast<double>(c.group_outputs() * positions_of(c));
  const double sum_cost = positions_per_pass(c) * table_bytes(c) <= kTableBytes ? kSumCost : kFarSumCost;
  return static_cast<double>(ceil_div(units, threads)) * vectors * (kBuildCost * build + sum_cost * sum);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext&) {
  return std::make_unique<TableStep>(layer, convolution);
}

}  // namespace

Path table_path() { return {.kernel = "table", .cost = &cost, .make = &make}; }

}  // namespace pyquant
