#include "runtime/anchors.h"

namespace pyquant {

Box AnchorLevel::decoded(const RunState& state, const BoxCoder& coder, int64_t image, int64_t pixel,
                         int64_t anchor) const {
  const float* at = state.values[numbers] + (image * num_anchors() + anchor) * 4 * plane() + pixel;
  const float x = static_cast<float>(pixel % columns) * stride_x;
  const float y = static_cast<float>(pixel / columns) * stride_y;
  const Box& box = anchors[anchor];
  return coder.decode({at[0], at[plane()], at[2 * plane()], at[3 * plane()]},
                      {x + box.left, y + box.top, x + box.right, y + box.bottom});
}

std::vector<AnchorLevel> anchor_levels(const Layer& layer, const std::vector<Shape>& shapes) {
  const Shape& images = shapes[layer.inputs[0]];
  const auto& corners = layer.node->attribute<std::vector<double>>("anchors");
  const size_t num_levels = (layer.inputs.size() - 2) / 2;
  std::vector<AnchorLevel> levels;
  const double* corner = corners.data();
  for (size_t l = 0; l < num_levels; ++l) {
    AnchorLevel level{.scores = layer.inputs[2 + l], .numbers = layer.inputs[2 + num_levels + l]};
    const Shape& shape = shapes[level.numbers];
    level.rows = shape.at(2);
    level.columns = shape.at(3);
    level.stride_y = static_cast<float>(images.at(2) / level.rows);
    level.stride_x = static_cast<float>(images.at(3) / level.columns);
    for (int64_t a = 0; a < shape.at(1) / 4; ++a, corner += 4) {
      const auto at = [&](int i) { return static_cast<float>(corner[i]); };
      level.anchors.push_back({at(0), at(1), at(2), at(3)});
    }
    levels.push_back(std::move(level));
  }
  return levels;
}

}  // namespace pyquant
