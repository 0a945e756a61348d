// Region proposals: anchors moved by a head's numbers, the best of each level, and of these those that lie apart.
#include <algorithm>
#include <cmath>

#include "runtime/boxes.h"
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
        output_(layer.output) {
    const Shape& images = context.shapes[layer.inputs[0]];
    const auto& anchors = layer.node->attribute<std::vector<double>>("anchors");
    images_ = images.at(0);
    const size_t num_levels = (layer.inputs.size() - 2) / 2;
    for (size_t l = 0; l < num_levels; ++l) {
      Level level{.objectness = layer.inputs[2 + l], .numbers = layer.inputs[2 + num_levels + l]};
      const Shape& shape = context.shapes[level.objectness];
      const int64_t num_anchors = shape.at(1);
      level.rows = shape.at(2);
      level.columns = shape.at(3);
      level.stride_y = static_cast<float>(images.at(2) / level.rows);
      level.stride_x = static_cast<float>(images.at(3) / level.columns);
      for (int64_t a = 0; a < num_anchors; ++a) {
        const double* corner = anchors.data() + (static_cast<int64_t>(l) * num_anchors + a) * 4;
        const auto at = [&](int i) { return static_cast<float>(corner[i]); };
        level.anchors.push_back({at(0), at(1), at(2), at(3)});
      }
      slots_ = std::max(slots_, level.rows * level.columns * num_anchors);
      levels_.push_back(std::move(level));
    }
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
  struct Level {
    ValueId objectness;  // [N, A, rows, columns]
    ValueId numbers;     // [N, A * 4, rows, columns]
    int64_t rows = 0;
    int64_t columns = 0;
    float stride_y = 0;  // pixels of the picture
    float stride_x = 0;
    std::vector<Box> anchors = {};  // [A], around the origin
  };

  int64_t groups() const { return images_ * static_cast<int64_t>(levels_.size()); }

  // Fill `slots` with the boxes of one level that remain, best first; returns how many.
  int64_t choose_boxes(const RunState& state, int64_t image, const Level& level, std::span<Candidate> slots) const {
    const float* size = state.values[sizes_] + image * 2;
    int64_t kept = 0;
    for (const Candidate& c : slots.first(choose_best(state, image, level, slots))) {
      const float score = 1 / (1 + std::exp(-c.score));
      const Box box = clipped(decoded(state, image, level, c.index), size[0], size[1]);
      if (!box.has_sides(min_side_) || score < min_score_) continue;
      slots[kept] = {.box = box, .score = score, .index = static_cast<int32_t>(kept)};
      ++kept;
    }
    return suppress(slots.first(kept), max_overlap_, keep_);
  }

  // Fill `slots` with the places of the highest objectness, highest first; returns how many. What is not a number is
  // passed over.
  int64_t choose_best(const RunState& state, int64_t image, const Level& level, std::span<Candidate> slots) const {
    const auto num_anchors = static_cast<int64_t>(level.anchors.size());
    const int64_t plane = level.rows * level.columns;
    const float* objectness = state.values[level.objectness] + image * num_anchors * plane;
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

  Box decoded(const RunState& state, int64_t image, const Level& level, int64_t index) const {
    const auto num_anchors = static_cast<int64_t>(level.anchors.size());
    const int64_t plane = level.rows * level.columns;
    const int64_t a = index % num_anchors;
    const int64_t pixel = index / num_anchors;
    const float* at = state.values[level.numbers] + (image * num_anchors + a) * 4 * plane + pixel;
    const float x = static_cast<float>(pixel % level.columns) * level.stride_x;
    const float y = static_cast<float>(pixel / level.columns) * level.stride_y;
    const Box& anchor = level.anchors[a];
    return coder_.decode({at[0], at[plane], at[2 * plane], at[3 * plane]},
                         {x + anchor.left, y + anchor.top, x + anchor.right, y + anchor.bottom});
  }

  BoxCoder coder_;
  int64_t best_, keep_;
  int64_t slots_ = 0;  // boxes of a level that are kept at a time
  double max_overlap_;
  float min_score_, min_side_;
  ValueId sizes_, output_;
  int64_t images_;
  std::vector<Level> levels_;
};

}  // namespace

std::unique_ptr<Step> plan_proposals(const Layer& layer, const PlanContext& context) {
  return std::make_unique<ProposalsStep>(layer, context);
}

}  // namespace pyquant
