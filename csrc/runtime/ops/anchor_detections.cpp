// Detections of a network of one stage (Lin et al., RetinaNet, 2017): the best classes of anchors that lie apart.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/sizes.h"
#include "runtime/anchors.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class AnchorDetectionsStep : public Step {
 public:
  AnchorDetectionsStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "boxes"),
        coder_(*layer.node),
        keep_(layer.node->attribute<int64_t>("keep")),
        max_overlap_(layer.node->attribute<double>("max_overlap")),
        min_score_(static_cast<float>(layer.node->attribute<double>("min_score"))),
        min_side_(static_cast<float>(layer.node->attribute<double>("min_side"))),
        sizes_(layer.inputs[1]),
        output_(layer.output),
        images_(context.shapes[sizes_].at(0)),
        levels_(anchor_levels(layer, context.shapes)),
        classes_(context.shapes[levels_[0].scores].at(1) / levels_[0].num_anchors()) {
    int64_t most = 0;
    for (const AnchorLevel& level : levels_) {
      most = std::max(most, checked_product(std::span(context.shapes[level.scores]).subspan(1)));
    }
    slots_ = std::min(most, layer.node->attribute<int64_t>("best"));
    const int64_t numbered = checked_multiply(checked_multiply(num_levels(), slots_), classes_);
    if (std::max(most, numbered) > std::numeric_limits<int32_t>::max()) {
      throw Error("layer '" + name() + "' (anchor_detections): too many boxes and classes");
    }
  }

  int64_t shared_floats() const override { return Survivors::floats(groups(), slots_); }

  void run(const RunState& state) const override {
    Survivors survivors(state.shared, groups(), slots_);
    state.pool->parallel_for(groups(), [&](int64_t group, int) {
      const std::span<Candidate> slots{survivors.slots + group * slots_, static_cast<size_t>(slots_)};
      survivors.counts[group] =
          static_cast<int32_t>(choose_boxes(state, group / num_levels(), group % num_levels(), slots));
    });
    for (int64_t image = 0; image < images_; ++image) {
      const std::span<Candidate> found = survivors.best(image * num_levels(), num_levels(), num_levels() * slots_);
      write_detections(found.first(suppress_by_class(found, classes_, max_overlap_, keep_)), image, classes_, keep_,
                       state.values[output_] + image * keep_ * kDetectionColumns);
    }
  }

 private:
  int64_t num_levels() const { return static_cast<int64_t>(levels_.size()); }
  int64_t groups() const { return images_ * num_levels(); }

  // Fill `slots` with the boxes of one level that score most, best first; returns how many.
  int64_t choose_boxes(const RunState& state, int64_t image, int64_t l, std::span<Candidate> slots) const {
    const AnchorLevel& level = levels_[l];
    const float* size = state.values[sizes_] + image * 2;
    int64_t kept = 0;
    for (const Candidate& c : slots.first(choose_best(state, image, level, slots))) {
      const int64_t place = c.index / classes_;
      const Box decoded = level.decoded(state, coder_, image, place / level.num_anchors(), place % level.num_anchors());
      const Box box = clipped(decoded, size[0], size[1]);
      if (!box.has_sides(min_side_)) continue;
      const int64_t rank = l * slots_ + kept;
      slots[kept++] = {.box = box, .score = score_of(c.score), .index = index_of(rank, c.index % classes_)};
    }
    return kept;
  }

  // Fill `slots` with the highest logits of a level whose scores are enough, highest first; returns how many.
  int64_t choose_best(const RunState& state, int64_t image, const AnchorLevel& level,
                      std::span<Candidate> slots) const {
    const int64_t plane = level.plane();
    const int64_t num_planes = level.num_anchors() * classes_;
    const float* logits = state.values[level.scores] + image * num_planes * plane;
    const float bound = logit_bound();
    const auto begin = slots.begin();
    auto end = begin;  // a heap, the worst on top
    for (int64_t p = 0; p < num_planes; ++p) {
      for (int64_t pixel = 0; pixel < plane; ++pixel) {
        const float logit = logits[p * plane + pixel];
        // Hardly any passes the first test, which takes no exponential; none that is not a number does.
        if (!(logit > bound) || !(score_of(logit) > min_score_)) continue;
        const Candidate c{.box = {}, .score = logit, .index = static_cast<int32_t>(pixel * num_planes + p)};
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

  static float score_of(float logit) { return 1 / (1 + std::exp(-logit)); }
  int32_t index_of(int64_t rank, int64_t label) const { return static_cast<int32_t>(rank * classes_ + label); }

  // A logit that is too low for the score that is asked for, or nearly.
  float logit_bound() const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (!(min_score_ > 0)) return -kInfinity;
    if (!(min_score_ < 1)) return kInfinity;
    return std::log(min_score_ / (1 - min_score_)) - 0.01f;
  }

  BoxCoder coder_;
  int64_t keep_;
  int64_t slots_ = 0;  // boxes of a level that are kept at a time
  double max_overlap_;
  float min_score_, min_side_;
  ValueId sizes_, output_;
  int64_t images_;
  std::vector<AnchorLevel> levels_;
  int64_t classes_;
};

}  // namespace

std::unique_ptr<Step> plan_anchor_detections(const Layer& layer, const PlanContext& context) {
  return std::make_unique<AnchorDetectionsStep>(layer, context);
}

}  // namespace pyquant
