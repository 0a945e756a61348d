// Concatenation along one dimension.
#include <algorithm>
#include <cstring>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class ConcatStep : public Step {
 public:
  ConcatStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "copy"), output_(layer.output) {
    const auto axis = static_cast<size_t>(layer.node->attribute<int64_t>("axis"));
    const std::span<const int64_t> out = context.shapes[output_];
    outer_ = checked_product(out.first(axis));
    for (const ValueId input : layer.inputs) {
      const std::span<const int64_t> shape = context.shapes[input];
      pieces_.push_back({.input = input, .offset = row_, .size = checked_product(shape.subspan(axis))});
      row_ += pieces_.back().size;
    }
  }

  void run(const RunState& state) const override {
    const auto pieces = static_cast<int64_t>(pieces_.size());
    state.pool->parallel_for(outer_ * pieces, [&](int64_t unit, int) {
      const Piece& piece = pieces_[unit % pieces];
      const int64_t row = unit / pieces;
      std::memcpy(state.values[output_] + row * row_ + piece.offset, state.values[piece.input] + row * piece.size,
                  piece.size * sizeof(float));
    });
  }

 private:
  struct Piece {
    ValueId input;
    int64_t offset;  // in an output row
    int64_t size;
  };

  ValueId output_;
  std::vector<Piece> pieces_;
  int64_t outer_ = 0;
  int64_t row_ = 0;  // floats of an output row: all pieces
};

}  // namespace

std::unique_ptr<Step> plan_concat(const Layer& layer, const PlanContext& context) {
  return std::make_unique<ConcatStep>(layer, context);
}

}  // namespace pyquant
