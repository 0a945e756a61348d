#include "runtime/planes.h"

#include <algorithm>

namespace pyquant {

Planes::Planes(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels)
    : geometry_(geometry), kernels_(kernels), channels_(geometry.channels / geometry.groups) {
  const ConvGeometry& g = geometry_;
  rows_ = g.out_height + (order.kernel_rows - 1) * g.dilation_y / g.stride_y;
  pitch_ = g.out_width + (order.kernel_columns - 1) * g.dilation_x / g.stride_x;
  plane_ = checked_multiply(rows_, pitch_);
  for_weights(order, [&](int64_t c, int64_t y, int64_t x) {
    const bool inside = c < order.channels && y < order.kernel_rows && x < order.kernel_columns;
    if (!inside) {
      offsets_.push_back(0);  // of a weight that is zero
      return;
    }
    const int64_t down = y * g.dilation_y, across = x * g.dilation_x;
    const auto phase = static_cast<int64_t>(phase_of(down % g.stride_y, across % g.stride_x));
    offsets_.push_back(
        checked_offset((phase * channels_ + c) * plane_ + down / g.stride_y * pitch_ + across / g.stride_x));
  });
  for (Phase& phase : phases_) phase.runs = runs_of(phase);
  for (int64_t c = 0; c < channels_; ++c) panel_rows_.push_back({.row = c, .channel = c});
}

double Planes::most_floats(const ConvGeometry& g, const WeightOrder& order) {
  const auto along = [](int64_t outputs, int64_t kernel, int64_t dilation, int64_t stride) {
    return static_cast<double>(std::min(stride, kernel)) *
           static_cast<double>(outputs + (kernel - 1) * dilation / stride);
  };
  return static_cast<double>(g.channels / g.groups) * along(g.out_height, order.kernel_rows, g.dilation_y, g.stride_y) *
         along(g.out_width, order.kernel_columns, g.dilation_x, g.stride_x);
}

size_t Planes::phase_of(int64_t y, int64_t x) {
  const auto found = std::find_if(phases_.begin(), phases_.end(), [&](const Phase& p) { return p.y == y && p.x == x; });
  if (found != phases_.end()) return static_cast<size_t>(found - phases_.begin());
  phases_.push_back({.y = y, .x = x, .runs = {}});
  return phases_.size() - 1;
}

std::vector<PanelRun> Planes::runs_of(const Phase& phase) const {
  const ConvGeometry& g = geometry_;
  std::vector<PanelRun> runs;
  const auto outside = [&](int64_t to, int64_t size) {
    if (size == 0) return;
    if (!runs.empty() && runs.back().from == PanelRun::kOutside && runs.back().to + runs.back().size == to) {
      runs.back().size += size;
    } else {
      runs.push_back({.to = to, .size = size, .from = PanelRun::kOutside});
    }
  };
  // Columns [begin, end) have their input inside the picture.
  const int64_t left = phase.x - g.pad_left;
  const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(-left, 0), g.stride_x), 0, pitch_);
  const int64_t end = left >= g.width ? begin : std::clamp(ceil_div(g.width - left, g.stride_x), begin, pitch_);
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t y = row * g.stride_y + phase.y - g.pad_top;
    const int64_t to = row * pitch_;
    if (y < 0 || y >= g.height || begin == end) {
      outside(to, pitch_);
      continue;
    }
    outside(to, begin);
    runs.push_back({.to = to + begin, .size = end - begin, .from = g.row(0, y) + left + begin * g.stride_x});
    outside(to + end, pitch_ - end);
  }
  return runs;
}

void Planes::pack(const float* input, int64_t image, int64_t group, float* planes) const {
  const float* const in = input + geometry_.row(image, 0) + group * channels_ * geometry_.plane();
  for (const Phase& phase : phases_) {
    kernels_->pack_rows(phase.runs.data(), static_cast<int64_t>(phase.runs.size()), geometry_.stride_x, in,
                        geometry_.plane(), panel_rows_.data(), channels_, 0, planes, plane_);
    planes += channels_ * plane_;
  }
}

}  // namespace pyquant
