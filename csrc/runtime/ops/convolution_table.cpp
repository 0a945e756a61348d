// The table path: the products of a block's inputs with every centroid are tabulated, and outputs add up table rows.
#include <algorithm>
#include <limits>

#include "runtime/ops/convolution.h"
#include "runtime/ops/table_shares.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

// One multiply-add of building a table and one load-and-add of summing, in vector multiply-adds of the decode path.
constexpr double kBuildCost = 1.1;
constexpr double kSumCost = 1.2;
constexpr double kFarSumCost = 1.6;  // where tables lie in the second-level cache

// Where fewer of one pass take more than that, tables lie in the second-level cache in any case: so many positions load
// and store sums less often.
constexpr int64_t kFarPositions = 8;

// Outputs that a pass adds up together, and the last one writes while their sums are in the first-level cache.
constexpr int64_t kTogether = 64;

int64_t row_bytes(const Convolution& c) { return c.kernels->table_pixels * static_cast<int64_t>(sizeof(float)); }

bool are_near(const TablePasses& passes) { return passes.per_pass * passes.table_bytes <= near_table_bytes(); }

TablePasses passes_of(const Convolution& c) {
  const TablePasses passes{*c.weight, row_bytes(c), near_table_bytes()};
  const TablePasses longer{*c.weight, row_bytes(c), kFarPositions * passes.table_bytes};
  return are_near(passes) || !longer.fit() ? passes : longer;
}

// Of a group. Where there are several, threads share out the tiles of all.
TableShares shares_of(const Convolution& c, int threads) {
  return {c, c.kernels->table_pixels, c.kernels->lanes, 1, c.geometry.groups == 1 ? threads : 1};
}

class TableStep : public Step {
 public:
  TableStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "table"),
        c_(convolution),
        units_(shares_of(c_, context.threads).units()),
        passes_(passes_of(c_)),
        rows_(table_rows(*c_.weight, passes_, row_bytes(c_))) {
    panel_floats_ = round_up(c_.patches.rows() * c_.kernels->table_pixels, 16);
    table_floats_ = c_.weight->centroids * c_.kernels->table_pixels;
  }

  int64_t scratch_floats() const override {
    return panel_floats_ + passes_.per_pass * table_floats_ + c_.group_outputs() * c_.kernels->table_pixels;
  }

  void run(const RunState& state) const override {
    const auto units = static_cast<int64_t>(units_.size());
    state.pool->parallel_for(c_.geometry.groups * units, [&](int64_t unit, int worker) {
      run_unit(unit / units, units_[unit % units], state, state.scratch[worker]);
    });
  }

 private:
  void run_unit(int64_t group, const TableUnit& unit, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const Weight& weight = *c_.weight;
    const int64_t dim = weight.block.dim();
    float* const tables = scratch;
    float* const sums = tables + passes_.per_pass * table_floats_;
    float* const panel = sums + c_.group_outputs() * kernels.table_pixels;

    c_.patches.pack(state.values[c_.input], group, unit.pixel, unit.pixels, kernels.table_pixels, 0, panel);
    passes_.for_each([&](int64_t first, int64_t count) {
      for (int64_t q = first; q < first + count; ++q) {
        kernels.table_build(weight.codebook.data() + q % weight.codebooks * weight.centroids * dim, weight.centroids,
                            dim, panel + q / weight.codebooks * dim * kernels.table_pixels, unit.pixels,
                            tables + (q - first) * table_floats_);
      }
      add(first, count, tables, sums, group, unit, state);
    });
  }

  // Add some positions to the sums of a unit's outputs, kTogether at a time; the last pass also writes these. Each pass
  // asks for its share of the memory that they will be written to, if a residual may lie elsewhere.
  void add(int64_t first, int64_t count, const float* tables, float* sums, int64_t group, const TableUnit& unit,
           const RunState& state) const {
    const int64_t pass = first / passes_.per_pass;
    const int64_t passes = passes_.num_passes();
    const int64_t begin = group * c_.group_outputs() + unit.output;
    const int64_t end = begin + unit.outputs;
    for (int64_t output = begin; output < end; output += kTogether) {
      const int64_t outputs = std::min(kTogether, end - output);
      if (c_.expects_residual) {
        const int64_t asked = outputs * pass / passes;
        c_.expect(output + asked, outputs * (pass + 1) / passes - asked, unit.pixel, unit.pixels, state);
      }
      const uint16_t* rows = rows_.data() + first * c_.weight->outputs + output * count;
      c_.kernels->table_sum(rows, count, tables, sums, outputs, unit.pixels, first > 0);
      if (pass + 1 == passes) {
        c_.finish(sums, c_.kernels->table_pixels, output, outputs, unit.pixel, unit.pixels, state);
      }
      sums += outputs * c_.kernels->table_pixels;
    }
  }

  Convolution c_;
  std::vector<TableUnit> units_;
  TablePasses passes_;
  AlignedBuffer<uint16_t> rows_;
  int64_t panel_floats_ = 0;
  int64_t table_floats_ = 0;  // of one position
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (!weight.has_codes()) return std::numeric_limits<double>::infinity();
  const TablePasses passes = passes_of(c);
  if (!passes.fit()) return std::numeric_limits<double>::infinity();
  const auto build = static_cast<double>(weight.codebooks * weight.centroids * c.patches.rows());
  const double sum = (are_near(passes) ? kSumCost : kFarSumCost) * static_cast<double>(passes.positions);
  const double group = shares_of(c, threads).cost([&](int64_t pixels, int64_t outputs) {
    const auto vectors = static_cast<double>(ceil_div(pixels, c.kernels->lanes));
    return vectors * (kBuildCost * build + sum * static_cast<double>(outputs));
  });
  if (c.geometry.groups == 1) return c.kernels->table_cost() * group;
  const int64_t tiles = ceil_div(c.geometry.pixels(), c.kernels->table_pixels);
  const auto slowest = static_cast<double>(ceil_div(c.geometry.groups * tiles, threads));
  return c.kernels->table_cost() * group * slowest / static_cast<double>(tiles);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<TableStep>(layer, convolution, context);
}

}  // namespace

Path table_path() { return {.kernel = "table", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
