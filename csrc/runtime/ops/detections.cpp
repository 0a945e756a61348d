// Detections: of each class the boxes that score enough and lie apart, of all classes the best, and their masks.
#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/boxes.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

class DetectionsStep : public Step {
 public:
  DetectionsStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "boxes"),
        coder_(*layer.node),
        keep_(layer.node->attribute<int64_t>("keep")),
        max_overlap_(layer.node->attribute<double>("max_overlap")),
        min_score_(static_cast<float>(layer.node->attribute<double>("min_score"))),
        min_side_(static_cast<float>(layer.node->attribute<double>("min_side"))),
        sizes_(layer.inputs[0]),
        boxes_(layer.inputs[1]),
        logits_(layer.inputs[2]),
        numbers_(layer.inputs[3]),
        output_(layer.output),
        images_(context.shapes[sizes_].at(0)),
        rows_(context.shapes[boxes_].at(0) / images_),
        slots_(std::min(keep_, rows_)),
        row_columns_(context.shapes[boxes_].at(1)),
        classes_(context.shapes[logits_].at(1)) {
    if (checked_multiply(rows_, classes_) > std::numeric_limits<int32_t>::max()) {
      throw Error("layer '" + name() + "' (detections): too many boxes and classes");
    }
  }

  int64_t scratch_floats() const override { return rows_ * kCandidateFloats; }
  int64_t shared_floats() const override { return Survivors::floats(groups(), slots_) + images_ * rows_ * 2; }

  void run(const RunState& state) const override {
    Survivors survivors(state.shared, groups(), slots_);
    float* softmax = state.shared + Survivors::floats(groups(), slots_);  // [N * rows, 2]: largest logit, sum
    state.pool->parallel_for(images_ * rows_, [&](int64_t row, int) {
      const std::span logits{state.values[logits_] + row * classes_, static_cast<size_t>(classes_)};
      const float largest = *std::max_element(logits.begin(), logits.end());
      float sum = 0;
      for (const float logit : logits) sum += std::exp(logit - largest);
      softmax[row * 2] = largest;
      softmax[row * 2 + 1] = sum;
    });
    state.pool->parallel_for(groups(), [&](int64_t group, int worker) {
      const int64_t image = group / (classes_ - 1);
      const int64_t label = group % (classes_ - 1) + 1;  // 0 is the background
      auto* candidates = reinterpret_cast<Candidate*>(state.scratch[worker]);
      const int64_t count = candidates_of(state, image, label, softmax, candidates);
      std::sort(candidates, candidates + count, &is_better);
      const int64_t kept = suppress({candidates, static_cast<size_t>(count)}, max_overlap_, slots_);
      std::copy_n(candidates, kept, survivors.slots + group * slots_);
      survivors.counts[group] = static_cast<int32_t>(kept);
    });
    for (int64_t image = 0; image < images_; ++image) {
      write_detections(survivors.best(image * (classes_ - 1), classes_ - 1, keep_), image, classes_, keep_,
                       state.values[output_] + image * keep_ * kDetectionColumns);
    }
  }

 private:
  int64_t groups() const { return images_ * (classes_ - 1); }

  int64_t candidates_of(const RunState& state, int64_t image, int64_t label, const float* softmax,
                        Candidate* candidates) const {
    const float* size = state.values[sizes_] + image * 2;
    int64_t count = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      const int64_t row = image * rows_ + i;
      const float* from = state.values[boxes_] + row * row_columns_;
      if (from[0] != static_cast<float>(image)) continue;
      const float logit = state.values[logits_][row * classes_ + label];
      const float score = std::exp(logit - softmax[row * 2]) / softmax[row * 2 + 1];
      if (!(score > min_score_)) continue;
      const float* at = state.values[numbers_] + (row * classes_ + label) * 4;
      const Box decoded = coder_.decode({at[0], at[1], at[2], at[3]}, {from[1], from[2], from[3], from[4]});
      const Box box = clipped(decoded, size[0], size[1]);
      if (!box.has_sides(min_side_)) continue;
      candidates[count++] = {.box = box, .score = score, .index = static_cast<int32_t>(i * classes_ + label)};
    }
    return count;
  }

  BoxCoder coder_;
  int64_t keep_;
  double max_overlap_;
  float min_score_, min_side_;
  ValueId sizes_, boxes_, logits_, numbers_, output_;
  int64_t images_;
  int64_t rows_;   // of boxes, per image
  int64_t slots_;  // of a class
  int64_t row_columns_;
  int64_t classes_;  // the background among them
};

// Of each detection's masks, the one of its class, as probabilities.
class SelectMasksStep : public Step {
 public:
  SelectMasksStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "copy"),
        logits_(layer.inputs[0]),
        detections_(layer.inputs[1]),
        output_(layer.output),
        rows_(context.shapes[logits_].at(0)),
        classes_(context.shapes[logits_].at(1)),
        plane_(context.shapes[logits_].at(2) * context.shapes[logits_].at(3)) {}

  void run(const RunState& state) const override {
    state.pool->parallel_for(rows_, [&](int64_t row, int) {
      const float* detection = state.values[detections_] + row * kDetectionColumns;
      const float label = detection[kDetectionColumns - 1];
      float* out = state.values[output_] + row * plane_;
      std::fill_n(out, plane_, 0.0f);
      if (!(detection[0] >= 0 && label >= 0 && label < static_cast<float>(classes_))) return;
      const float* in = state.values[logits_] + (row * classes_ + static_cast<int64_t>(label)) * plane_;
      for (int64_t i = 0; i < plane_; ++i) out[i] = 1 / (1 + std::exp(-in[i]));
    });
  }

 private:
  ValueId logits_, detections_, output_;
  int64_t rows_, classes_, plane_;
};

}  // namespace

std::unique_ptr<Step> plan_detections(const Layer& layer, const PlanContext& context) {
  return std::make_unique<DetectionsStep>(layer, context);
}

std::unique_ptr<Step> plan_select_masks(const Layer& layer, const PlanContext& context) {
  return std::make_unique<SelectMasksStep>(layer, context);
}

}  // namespace pyquant
