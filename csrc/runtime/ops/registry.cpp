// The registry itself: which function plans each operation.
#include <map>

#include "runtime/ops/ops.h"

namespace pyquant {

PlanFn planner_for(const std::string& op) {
  static const std::map<std::string, PlanFn> kPlanners = {
      {"conv2d", &plan_convolution},
      {"linear", &plan_convolution},
      {"affine", &plan_affine},
      {"relu", &plan_activation},
      {"relu6", &plan_activation},
      {"silu", &plan_activation},
      {"hardswish", &plan_activation},
      {"hardsigmoid", &plan_activation},
      {"sigmoid", &plan_activation},
      {"add", &plan_binary},
      {"mul", &plan_binary},
      {"concat", &plan_concat},
      {"max_pool2d", &plan_pool},
      {"avg_pool2d", &plan_pool},
      {"adaptive_avg_pool2d", &plan_adaptive_pool},
      {"upsample", &plan_upsample},
      {"upsample_like", &plan_upsample},
      {"pixel_shuffle", &plan_pixel_shuffle},
      {"proposals", &plan_proposals},
      {"roi_align", &plan_roi_align},
      {"anchor_detections", &plan_anchor_detections},
      {"detections", &plan_detections},
      {"select_masks", &plan_select_masks},
  };
  const auto found = kPlanners.find(op);
  if (found != kPlanners.end()) return found->second;
  std::string known;
  for (const auto& [name, planner] : kPlanners) known += (known.empty() ? "" : ", ") + name;
  throw Error("unknown operation '" + op + "'; the runtime knows " + known);
}

}  // namespace pyquant
