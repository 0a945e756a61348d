// Anchors: the boxes of a pyramid level that a head's numbers move, some at every pixel.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/boxes.h"
#include "runtime/step.h"

namespace pyquant {

struct AnchorLevel {
  ValueId scores;   // [N, anchors * classes, rows, columns]
  ValueId numbers;  // [N, anchors * 4, rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;
  float stride_y = 0;  // pixels of the picture
  float stride_x = 0;
  std::vector<Box> anchors = {};  // around the origin

  int64_t num_anchors() const { return static_cast<int64_t>(anchors.size()); }
  int64_t plane() const { return rows * columns; }

  // The box that the numbers of an image make of one anchor of a pixel.
  Box decoded(const RunState& state, const BoxCoder& coder, int64_t image, int64_t pixel, int64_t anchor) const;
};

// The levels of an operation whose inputs are images, sizes, of each level the scores, then of each the numbers.
std::vector<AnchorLevel> anchor_levels(const Layer& layer, const std::vector<Shape>& shapes);

}  // namespace pyquant
