// Unfolding: the inputs of a tile of output pixels as a panel, in the order in which weights are stored.
//
// Dimensions: N images · C channels · H, W rows and columns of a plane · P output pixels of an image (OH * OW)
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/graph.h"

namespace pyquant {

// The sizes of a convolution. Pixels of all images are numbered in one sequence: pixel = image * P + y * OW + x.
struct ConvGeometry {
  int64_t images = 1;
  int64_t channels = 0;  // of the input, all groups
  int64_t height = 1;
  int64_t width = 1;
  int64_t out_height = 1;
  int64_t out_width = 1;
  int64_t groups = 1;
  int64_t stride_y = 1, stride_x = 1;
  int64_t dilation_y = 1, dilation_x = 1;
  int64_t pad_top = 0, pad_left = 0;

  int64_t plane() const { return height * width; }
  int64_t out_plane() const { return out_height * out_width; }
  int64_t pixels() const { return images * out_plane(); }
};

// Channels hold values of four bytes: a float, or a quad, which stands for four channels.
class Patches {
 public:
  // Values between the rows of two channels of one image must be height * width.
  Patches(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels);

  // Rows of a panel: the weight's depth.
  int64_t depth() const { return depth_; }

  // Whether the rows of a panel of all pixels are the input as it lies in memory.
  bool are_input() const { return are_input_; }

  // Write panel[k][p] = the input of the k-th weight for pixel first + p, p < count <= kMostTilePixels; `outside` for
  // what lies outside the picture and for the padding of tail blocks. Rows are `pitch` values apart; what lies behind
  // their `count` stays. Of `parts` equal parts of a group's channels only `part` is written, so that threads can share
  // the work.
  void pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, uint32_t outside,
            float* panel, int64_t part = 0, int64_t parts = 1) const;

 private:
  // The panel rows whose inputs lie at one offset from a pixel's top left input: one for each channel, in order.
  struct Tap {
    int64_t y, x;
    std::vector<PanelRow> rows;
  };

  ConvGeometry geometry_;
  const KernelTable* kernels_;
  int64_t depth_;
  bool are_input_ = false;
  std::vector<Tap> taps_;
  std::vector<PanelRow> padding_;  // the rows of padded tail blocks
};

}  // namespace pyquant
