// Parts: which values of a plan lie in memory in a part for each thread.
//
// Threads share out the pixels of a picture. Of [C, P] numbers each thread has then a piece of every row, and where
// these do not end with a cache line, two threads write one line; what is fetched ahead of a piece, another thread has
// written. As [parts, C, P / parts] each thread's numbers lie together.
#pragma once

#include <vector>

#include "runtime/step.h"

namespace pyquant {

// Let convolutions write and read values in parts, where these are all that does: values of one picture whose rows can
// be shared out evenly. `outputs` are those of the graph.
void assign_parts(const std::vector<Layer>& layers, const std::vector<ValueId>& outputs, PlanContext& context);

}  // namespace pyquant
