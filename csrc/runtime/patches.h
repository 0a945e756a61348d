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

class Patches {
 public:
  // Floats between the rows of two channels of one image must be height * width.
  Patches(const ConvGeometry& geometry, const Weight& weight);

  // Rows of a panel: the weight's depth.
  int64_t depth() const { return static_cast<int64_t>(rows_.size()); }

  // Write panel[k][p] = the input of the k-th weight for pixel first + p, p < count <= kMostTilePixels; zero outside
  // the picture and for the padding of tail blocks. Rows are `pitch` floats apart; up to kRunOver floats behind the
  // last one may be written, and input is read up to kRunOver floats beyond its end.
  void pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, float* panel) const;

  static constexpr int64_t kRunOver = 16;

 private:
  struct Row {
    int64_t channel;  // within the group; -1: padding of a tail block
    int64_t y, x;     // offset from a pixel's top left input
  };

  // out[i] = in[x + i * stride] for i < size, zero where that lies outside the input row.
  void unfold_row(const float* in, int64_t x, int64_t size, float* out) const;

  ConvGeometry geometry_;
  std::vector<Row> rows_;
};

}  // namespace pyquant
