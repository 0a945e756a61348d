// Region proposals: anchors moved by a head's numbers, the best of each level, and of these those that lie apart.
#include <algorithm>
#include <cmath>

#include "runtime/anchors.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class ProposalsStep : public Step {
 public:
  ProposalsStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "boxes"),
        coder_(*layer.node),
        best_(layer.node->attribute<int64_t>("best")),
        keep_(layer.node->attribute<int64_t>("keep")),
        max_overlap_(layer.node->attribute<double>("max_overlap")),
        min_score_(static_cast<float>(layer.node->attribute<double>("min_score"))),
        min_side_(static_cast<float>(layer.node->attribute<double>("min_side"))),
        sizes_(layer.inputs[1]),
        output_(layer.output),
        images_(context.shapes[sizes_].at(0)),
        levels_(anchor_levels(layer, context.shapes)) {
    for (const AnchorLevel& level : levels_) slots_ = std::max(slots_, level.plane() * level.num_anchors());
    slots_ = std::min(slots_, best_);
  }

  int64_t shared_floats() const override { return Survivors::floats(groups(), slots_); }

  void run(const RunState& state) const override {
    Survivors survivors(state.shared, groups(), slots_);
    const auto num_levels = static_cast<int64_t>(levels_.size());
    state.pool->parallel_for(groups(), [&](int64_t group, int) {
      const int64_t image = group / num_levels;
      const int64_t level = group % num_levels;
      const std::span<Candidate> slots{survivors.slots + group * slots_, static_cast<size_t>(slots_)};
      const int64_t count = choose_boxes(state, image, levels_[level], slots);
      // Ranks within levels become ranks among all.
      for (int64_t i = 0; i < count; ++i) slots[i].index += static_cast<int32_t>(level * slots_);
      survivors.counts[group] = static_cast<int32_t>(count);
    });
    std::fill_n(state.values[output_], images_ * keep_ * kBoxColumns, 0.0f);
    for (int64_t image = 0; image < images_; ++image) {
      float* row = state.values[output_] + image * keep_ * kBoxColumns;
      for (const Candidate& c : survivors.best(image * num_levels, num_levels, keep_)) {
        const float columns[] = {static_cast<float>(image), c.box.left, c.box.top, c.box.right, c.box.bottom};
        row = std::copy_n(columns, kBoxColumns, row);
      }
      for (; row < state.values[output_] + (image + 1) * keep_ * kBoxColumns; row += kBoxColumns) *row = -1;
    }
  }

 private:
  int64_t groups() const { return images_ * static_cast<int64_t>(levels_.size()); }

  // Fill `slots` with the boxes of one level that remain, best first; returns how many.
  int64_t choose_boxes(const RunState& state, int64_t image, const AnchorLevel& level,
                       std::span<Candidate> slots) const {
    const float* size = state.values[sizes_] + image * 2;
    int64_t kept = 0;
    for (const Candidate& c : slots.first(choose_best(state, image, level, slots))) {
      const float score = 1 / (1 + std::exp(-c.score));
      const Box decoded =
          level.decoded(state, coder_, image, c.index / level.num_anchors(), c.index % level.num_anchors());
      const Box box = clipped(decoded, size[0], size[1]);
      if (!box.has_sides(min_side_) || score < min_score_) continue;
      slots[kept] = {.box = box, .score = score, .index = static_cast<int32_t>(kept)};
      ++kept;
    }
    return suppress(slots.first(kept), max_overlap_, keep_);
  }

  // Fill `slots` with the places of the highest objectness, highest first; returns how many. What is not a number is
  // passed over.
  int64_t choose_best(const RunState& state, int64_t image, const AnchorLevel& level,
                      std::span<Candidate> slots) const {
    const int64_t num_anchors = level.num_anchors();
    const int64_t plane = level.plane();
    const float* objectness = state.values[level.scores] + image * num_anchors * plane;
    const auto begin = slots.begin();
    auto end = begin;  // a heap, the worst on top
    for (int64_t pixel = 0; pixel < plane; ++pixel) {
      for (int64_t a = 0; a < num_anchors; ++a) {
        const Candidate c{
            .box = {}, .score = objectness[a * plane + pixel], .index = static_cast<int32_t>(pixel * num_anchors + a)};
        if (std::isnan(c.score)) continue;
        if (end == slots.end()) {
          if (!is_better(c, *begin)) continue;
          std::pop_heap(begin, end--, &is_better);
        }
        *end++ = c;
        std::push_heap(begin, end, &is_better);
      }
    }
    std::sort_heap(begin, end, &is_better);
    return end - begin;
  }

  BoxCoder coder_;
  int64_t best_, keep_;
  int64_t slots_ = 0;  // boxes of a level that are kept at a time
  double max_overlap_;
  float min_score_, min_side_;
  ValueId sizes_, output_;
  int64_t images_;
  std::vector<AnchorLevel> levels_;
};

}  // namespace

std::unique_ptr<Step> plan_proposals(const Layer& layer, const PlanContext& context) {
  return std::make_unique<ProposalsStep>(layer, context);
}

}  // namespace pyquant
