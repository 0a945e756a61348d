// The registry of operations: how a step is planned for each. A new operation is a file and a line in registry.cpp.
#pragma once

#include <memory>

#include "runtime/step.h"

namespace pyquant {

using PlanFn = std::unique_ptr<Step> (*)(const Layer& layer, const PlanContext& context);

// The planning function of operation `op`; throws Error, naming the known ones, for any other.
PlanFn planner_for(const std::string& op);

std::unique_ptr<Step> plan_convolution(const Layer& layer, const PlanContext& context);  // conv2d and linear

// The kernels among which plan_convolution() chooses, those in integers only if `fast`.
std::vector<std::string> kernel_names(bool fast);

// Whether it chooses one that reads its input in bytes.
bool reads_bytes(const Layer& layer, const PlanContext& context);

std::unique_ptr<Step> plan_affine(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_activation(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_binary(const Layer& layer, const PlanContext& context);  // add and mul
std::unique_ptr<Step> plan_concat(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_pool(const Layer& layer, const PlanContext& context);  // max_pool2d and avg_pool2d
std::unique_ptr<Step> plan_adaptive_pool(const Layer& layer, const PlanContext& context);
// Between formats: the one of the input is the opposite of the output's.
std::unique_ptr<Step> plan_conversion(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_upsample(const Layer& layer, const PlanContext& context);  // and upsample_like

// Whether one of these copies pixels, as they are.
bool is_nearest(const Node& node);

std::unique_ptr<Step> plan_pixel_shuffle(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_proposals(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_roi_align(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_anchor_detections(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_detections(const Layer& layer, const PlanContext& context);
std::unique_ptr<Step> plan_select_masks(const Layer& layer, const PlanContext& context);

}  // namespace pyquant
