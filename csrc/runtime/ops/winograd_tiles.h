// Where the inputs and outputs of Winograd's tiles of m x m outputs lie: what the paths in floats and integers share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/patches.h"

namespace pyquant {

struct WinogradTiles {
  // Of a kernel of 3 x 3, without strides.
  ConvGeometry geometry;
  int64_t m;

  int64_t side() const { return m + 2; }
  int64_t columns() const { return ceil_div(geometry.out_width, m); }
  int64_t in_image() const { return ceil_div(geometry.out_height, m) * columns(); }
  int64_t count() const { return geometry.images * in_image(); }

  // Tiles that lie side by side in one image.
  struct Segment {
    int64_t at;    // among those that are asked for
    int64_t size;  // tiles
    int64_t image;
    int64_t y, x;  // their first output
  };

  // Call body(segment) for all segments of `count` tiles from the `first` on.
  template <typename Body>
  void for_segments(int64_t first, int64_t count, const Body& body) const {
    for (int64_t at = 0; at < count;) {
      const int64_t index = first + at;
      const int64_t column = index % columns();
      const int64_t size = std::min(columns() - column, count - at);
      body(Segment{.at = at,
                   .size = size,
                   .image = index / in_image(),
                   .y = index % in_image() / columns() * m,
                   .x = column * m});
      at += size;
    }
  }

  // Call body(line, first, pixel, count) for the outputs of a segment, in line y of m its outputs from the `first` on:
  // where they are written, and how many.
  template <typename Body>
  void for_outputs(const Segment& s, const Body& body) const {
    const ConvGeometry& g = geometry;
    for (int64_t line = 0; line < std::min(m, g.out_height - s.y); ++line) {
      body(line, m * s.at, s.image * g.out_plane() + (s.y + line) * g.out_width + s.x,
           std::min(m * s.size, g.out_width - s.x));
    }
  }

  // Where the inputs of `count` tiles from the `first` on lie, as kernels take it: as many runs at most. Returns how
  // many.
  int64_t find_runs(int64_t first, int64_t count, WinogradRun* runs) const {
    const ConvGeometry& g = geometry;
    int64_t num_runs = 0;
    for_segments(first, count, [&](const Segment& s) {
      const int64_t left = s.x - g.pad_left;
      WinogradRun& run = runs[num_runs++];
      run = {.tile = s.at, .size = s.size, .from = {}, .begin = -left, .end = g.width - left};
      for (int64_t line = 0; line < side(); ++line) {
        const int64_t y = s.y - g.pad_top + line;
        run.from[line] = y < 0 || y >= g.height ? WinogradRun::kOutside : g.row(s.image, y) + left;
      }
    });
    return num_runs;
  }
};

// Whether a convolution has the kernel and steps that Winograd's transforms are for.
inline bool winograd_fits(const ConvGeometry& g, const WeightOrder& weight) {
  return weight.kernel_rows == 3 && weight.kernel_columns == 3 && g.stride_y == 1 && g.stride_x == 1 &&
         g.dilation_y == 1 && g.dilation_x == 1;
}

}  // namespace pyquant
