// The sparse path in integers: quads of weights that are not all zero are multiplied, one output at a time.
//
// Only zeros that lie side by side make such quads: four channels at one place of the kernel.
#include <limits>

#include "runtime/ops/byte_convolution.h"
#include "runtime/ops/sparse_tiling.h"

namespace pyquant {
namespace {

class Sparse8Step : public Step {
 public:
  Sparse8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "sparse8"),
        b_(convolution, context),
        tiling_(convolution, context.threads),
        patches_(in_quads(convolution.geometry), quad_order(*convolution.weight, QuadSource::kStored),
                 convolution.kernels),
        rows_(b_.take_dense_rows().data(), b_.c.weight->outputs, patches_.rows(),
              rows_apart(patches_.rows(), kSparsePixels)) {
    b_.settle(0, context);
  }

  int64_t scratch_floats() const override {
    return SparseTiling::kSumsFloats + panel_floats() + b_.finish_floats(kSparsePixels);
  }

  int64_t shared_floats() const override { return b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(state, state.shared);
    const uint32_t outside = state.quantization[b_.c.input].zeros();
    tiling_.run(
        state,
        [&](int64_t group, int64_t pixel, int64_t pixels, float* panel) {
          patches_.pack(state.values[b_.c.input], group, pixel, pixels, kSparsePixels, outside, panel);
        },
        [&](int64_t output, int64_t outputs, int64_t pixel, int64_t pixels, float* panel, float* floats) {
          auto* const sums = reinterpret_cast<int32_t*>(floats);
          for (int64_t pass = 0; pass < rows_.passes; ++pass) {
            b_.c.kernels->sparse_sum8(rows_.weights.data(), rows_.begin_of(pass, output),
                                      reinterpret_cast<const uint32_t*>(panel), sums, outputs, pixels, pass > 0);
          }
          b_.finish(sums, kSparsePixels, output, outputs, pixel, pixels, state.shared, state, panel + panel_floats());
        });
  }

 private:
  int64_t panel_floats() const { return patches_.rows() * kSparsePixels + kSlackBytes / 4; }

  ByteConvolution b_;
  SparseTiling tiling_;
  Patches patches_;
  SparseRows<uint32_t> rows_;
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (weight.has_codes() || quad_source(weight, c.geometry.groups) == QuadSource::kNone) {
    return std::numeric_limits<double>::infinity();
  }
  const int64_t depth = quad_order(weight, QuadSource::kStored).depth();
  if (!can_pay(weight.nonzero_quads, weight.outputs * depth)) return std::numeric_limits<double>::infinity();
  return c.kernels->tile8.step_cost *
         SparseTiling(c, threads).cost(weight.nonzero_quads, depth, c.kernels->lanes, threads);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Sparse8Step>(layer, convolution, context);
}

}  // namespace

Path sparse8_path() { return {.kernel = "sparse8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
