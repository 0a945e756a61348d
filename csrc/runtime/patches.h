// Unfolding: the inputs of output pixels as a panel, so that each weight finds those of all pixels in one row.
//
// Rows are in the order in which weights are stored. Or only columns of the kernel are unfolded, and a weight finds its
// inputs so many lanes further on as there are pixels in the rows of pixels between: with stride 1, a kernel of 3 x 3
// has 3 rows for each channel in place of 9. With stride s, kernel rows that are s apart share panel rows.
//
// Dimensions: N images · C channels · H, W rows and columns of a plane · P output pixels of an image (OH * OW)
#pragma once

#include <algorithm>
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

  int64_t parts = 1;          // that each image of the input lies in, as parts.h has it
  int64_t written_parts = 1;  // that each picture's output is written in, whose parts may be images here
  int64_t written_plane = 1;  // pixels of one of these

  // From a channel to the next one.
  int64_t plane() const { return height / parts * width; }
  int64_t out_plane() const { return out_height * out_width; }
  int64_t pixels() const { return images * out_plane(); }

  // Where a row of an image's first channel begins.
  int64_t row(int64_t image, int64_t y) const {
    if (parts == 1) return image * channels * plane() + y * width;
    const int64_t part_height = height / parts;
    return (image * parts + y / part_height) * channels * plane() + y % part_height * width;
  }

  // Call body(plane, first, run) for each plane of a channel that some pixels are written to, of an image or a part of
  // it: `run` of them, from its pixel `first` on.
  template <typename Body>
  void for_written(int64_t pixel, int64_t count, const Body& body) const {
    if (pixels() == written_plane) return body(0, pixel, count);  // a division takes as long as some of what is called
    while (count > 0) {
      const int64_t plane = pixel / written_plane;
      const int64_t first = pixel - plane * written_plane;
      const int64_t run = std::min(count, written_plane - first);
      body(plane, first, run);
      pixel += run;
      count -= run;
    }
  }
};

// Whether the only input of a pixel is the pixel itself.
bool is_pointwise(const ConvGeometry& geometry, const WeightOrder& order);

// Call body(channel, row, column) for each weight of a row; in the padding of tail blocks, these lie outside the
// kernel.
template <typename Body>
void for_weights(const WeightOrder& order, const Body& body) {
  const Block& block = order.block;
  for (int64_t c = 0; c < order.channels; c += block.channels) {
    for (int64_t y = 0; y < order.kernel_rows; y += block.rows) {
      for (int64_t x = 0; x < order.kernel_columns; x += block.columns) {
        for (int64_t i = 0; i < block.dim(); ++i) {
          body(c + i / (block.rows * block.columns), y + i / block.columns % block.rows, x + i % block.columns);
        }
      }
    }
  }
}

// Channels hold values of four bytes: a float, or a quad, which stands for four channels.
class Patches {
 public:
  Patches(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels, bool by_columns = false);

  // Whether columns can be unfolded alone, and may then be fewer values than all weights' inputs.
  static bool apply_by_columns(const ConvGeometry& geometry, const WeightOrder& order);

  // Rows of a panel: the weight's depth, unless it is by columns.
  int64_t rows() const { return rows_; }

  // By columns, lanes behind those of the pixels that have inputs too.
  int64_t behind() const { return behind_; }
  static constexpr int64_t kNone = -1;  // not by columns

  // Where the inputs of each weight of a row begin in a panel whose rows are `pitch` values apart.
  std::vector<int32_t> offsets(int64_t pitch) const;

  // Neighbouring rows of a panel that all of one row of the kernel find its inputs in, `lane` lanes further on.
  struct Run {
    int64_t first, count, lane;
  };
  // By columns, one for each row of the kernel; else all rows.
  const std::vector<Run>& runs() const { return runs_; }

  // Where each weight of a row finds the input of the first pixel: in which row of which run.
  struct Place {
    int64_t run, row;
  };
  const std::vector<Place>& places() const { return places_; }

  // Whether the rows of a panel of all pixels of an image are the input as it lies in memory.
  bool are_input() const { return are_input_; }

  // Write panel[k][p] = the input of the k-th row for pixel first + p, p < count; `outside` for what lies outside the
  // picture and for the padding of tail blocks. Rows are `pitch` values apart; what lies behind their `count` stays. Of
  // `parts` equal parts of a group's channels only `part` is written, so that threads can share the work. Groups count
  // on from image to image, for those whose pixels are to be counted from the first of an image; by columns, all are.
  void pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, uint32_t outside,
            float* panel, int64_t part = 0, int64_t parts = 1) const;

 private:
  // The panel rows whose inputs lie at one offset from a pixel's top left input: one for each channel, in order.
  struct Tap {
    int64_t y, x;
    std::vector<PanelRow> rows;
  };

  // One for each column of the kernel, for the row that lies `y` rows down.
  void add_taps(const WeightOrder& order, int64_t y);
  void unfold_columns(const WeightOrder& order);

  // Of at most kMostTilePixels of them.
  void pack_some(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, uint32_t outside,
                 float* panel, int64_t part, int64_t parts) const;

  ConvGeometry geometry_;  // by columns, with the output rows that pixels find inputs behind the last one in
  const KernelTable* kernels_;
  int64_t rows_;
  int64_t behind_ = kNone;
  bool are_input_ = false;
  std::vector<Tap> taps_;
  std::vector<Place> places_;  // of each weight of a row
  std::vector<Run> runs_;
  std::vector<PanelRow> padding_;  // the rows of padded tail blocks
};

}  // namespace pyquant
