// The sparse path: of weights of which most are zero, the others are multiplied, one output at a time.
//
// A weight that is left out saves a multiply-add, but one that is not costs more than in the direct path: its inputs
// are loaded for it alone.
#include <limits>

#include "runtime/ops/convolution.h"
#include "runtime/ops/sparse_tiling.h"

namespace pyquant {
namespace {

class SparseStep : public Step {
 public:
  SparseStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "sparse"),
        c_(convolution),
        tiling_(convolution, context.threads),
        rows_(c_.sparse_rows(rows_apart(c_.weight->depth(), kSparsePixels))) {}

  int64_t scratch_floats() const override {
    return SparseTiling::kSumsFloats + c_.patches.rows() * kSparsePixels + kSlackBytes / 4;
  }

  void run(const RunState& state) const override {
    tiling_.run(
        state,
        [&](int64_t group, int64_t pixel, int64_t pixels, float* panel) {
          c_.patches.pack(state.values[c_.input], group, pixel, pixels, kSparsePixels, 0, panel);
        },
        [&](int64_t output, int64_t outputs, int64_t pixel, int64_t pixels, const float* panel, float* sums) {
          for (int64_t pass = 0; pass < rows_.passes; ++pass) {
            c_.kernels->sparse_sum(rows_.weights.data(), rows_.begin_of(pass, output), panel, sums, outputs, pixels,
                                   pass > 0);
          }
          c_.finish(sums, kSparsePixels, output, outputs, pixel, pixels, state);
        });
  }

 private:
  Convolution c_;
  SparseTiling tiling_;
  SparseRows<float> rows_;
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (weight.has_codes() || !can_pay(weight.nonzero, weight.outputs * weight.depth())) {
    return std::numeric_limits<double>::infinity();
  }
  return SparseTiling(c, threads).cost(weight.nonzero, weight.depth(), c.kernels->lanes, threads);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<SparseStep>(layer, convolution, context);
}

}  // namespace

Path sparse_path() { return {.kernel = "sparse", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
