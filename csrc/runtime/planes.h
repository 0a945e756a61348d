// Planes: the inputs of a group with zeros around them, in which each weight finds those of all pixels further on.
//
// Pixels are numbered as a plane is wide: behind each row of them are lanes that mean nothing. With strides, inputs
// that are as far apart lie side by side, in a plane for each place that they have between two of these.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/patches.h"

namespace pyquant {

class Planes {
 public:
  Planes(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels);

  // How many values the planes of a group have, at most: to be asked before there are any.
  static double most_floats(const ConvGeometry& geometry, const WeightOrder& order);

  // Write the planes of a group of an image [N, C, H, W].
  void pack(const float* input, int64_t image, int64_t group, float* planes) const;

  // Values of all planes of a group.
  int64_t floats() const { return static_cast<int64_t>(phases_.size()) * channels_ * plane_; }

  // Lanes of an image: its pixels, and what lies between their rows.
  int64_t lanes() const { return geometry_.out_height * pitch_ - (pitch_ - geometry_.out_width); }

  // From a row of pixels to the next one.
  int64_t pitch() const { return pitch_; }

  // By weight of a row: where the inputs of all lanes begin.
  const std::vector<int32_t>& offsets() const { return offsets_; }

 private:
  // The places of inputs within a stride that some weights have, and the pieces that their planes are made of.
  struct Phase {
    int64_t y, x;
    std::vector<PanelRun> runs;
  };

  size_t phase_of(int64_t y, int64_t x);
  std::vector<PanelRun> runs_of(const Phase& phase) const;

  ConvGeometry geometry_;
  const KernelTable* kernels_;
  int64_t channels_;  // of a group
  int64_t rows_ = 0, pitch_ = 0, plane_ = 0;
  std::vector<Phase> phases_;
  std::vector<PanelRow> panel_rows_;
  std::vector<int32_t> offsets_;
};

}  // namespace pyquant
