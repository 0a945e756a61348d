#include "runtime/patches.h"

#include <algorithm>
#include <cstring>

namespace pyquant {
namespace {

// Copy `count` floats in moves of a fixed size that may run over the end by less than kRunOver.
void copy_run(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += Patches::kRunOver) {
    std::memcpy(to + i, from + i, Patches::kRunOver * sizeof(float));
  }
}

}  // namespace

Patches::Patches(const ConvGeometry& geometry, const Weight& weight) : geometry_(geometry) {
  const Block& block = weight.block;
  for (int64_t c0 = 0; c0 < weight.channels; c0 += block.channels) {
    for (int64_t y0 = 0; y0 < weight.kernel_rows; y0 += block.rows) {
      for (int64_t x0 = 0; x0 < weight.kernel_columns; x0 += block.columns) {
        for (int64_t i = 0; i < block.dim(); ++i) {
          const int64_t c = c0 + i / (block.rows * block.columns);
          const int64_t y = y0 + i / block.columns % block.rows;
          const int64_t x = x0 + i % block.columns;
          const bool inside = c < weight.channels && y < weight.kernel_rows && x < weight.kernel_columns;
          rows_.push_back({.channel = inside ? c : -1,
                           .y = y * geometry.dilation_y - geometry.pad_top,
                           .x = x * geometry.dilation_x - geometry.pad_left});
        }
      }
    }
  }
  // Where a pixel's only input is the pixel itself, rows need not be told apart: a plane is one long row.
  const ConvGeometry& g = geometry;
  if (weight.kernel_rows == 1 && weight.kernel_columns == 1 && g.stride_y == 1 && g.stride_x == 1 && g.pad_top == 0 &&
      g.pad_left == 0 && g.height == g.out_height && g.width == g.out_width) {
    geometry_.width = geometry_.out_width = g.plane();
    geometry_.height = geometry_.out_height = 1;
  }
}

void Patches::pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, float* panel) const {
  const ConvGeometry& g = geometry_;
  const int64_t group_channels = g.channels / g.groups;
  for (int64_t k = 0; k < depth(); ++k, panel += pitch) {
    const Row& row = rows_[k];
    if (row.channel < 0) {
      std::memset(panel, 0, count * sizeof(float));
      continue;
    }
    int64_t image = first / g.out_plane();
    int64_t y = first % g.out_plane() / g.out_width;
    int64_t x = first % g.out_width;
    for (int64_t p = 0; p < count;) {
      // The pixels [p, p + run) lie in one output row; those in [begin, end) have their input inside the picture.
      const int64_t run = std::min(g.out_width - x, count - p);
      float* to = panel + p;
      const int64_t in_y = y * g.stride_y + row.y;
      if (in_y < 0 || in_y >= g.height) {
        std::memset(to, 0, run * sizeof(float));
      } else {
        const int64_t in_x = x * g.stride_x + row.x;
        const int64_t begin = std::min(in_x >= 0 ? 0 : ceil_div(-in_x, g.stride_x), run);
        const int64_t end = std::clamp(in_x >= g.width ? 0 : ceil_div(g.width - in_x, g.stride_x), begin, run);
        const float* from =
            input + ((image * g.channels + group * group_channels + row.channel) * g.height + in_y) * g.width + in_x;
        for (int64_t i = 0; i < begin; ++i) to[i] = 0;
        if (g.stride_x == 1) {
          copy_run(from + begin, to + begin, end - begin);
        } else {
          for (int64_t i = begin; i < end; ++i) to[i] = from[i * g.stride_x];
        }
        for (int64_t i = end; i < run; ++i) to[i] = 0;
      }
      p += run;
      x = 0;
      if (++y == g.out_height) {
        y = 0;
        ++image;
      }
    }
  }
}

}  // namespace pyquant
