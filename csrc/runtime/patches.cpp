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
  // The pixels of a panel, cut where an output row ends: the same cuts for every panel row.
  struct Run {
    int64_t at;       // in a panel row
    int64_t size;     // pixels
    int64_t y, x;     // the first pixel's top left input
    const float* in;  // the group's first channel of its image
  };
  Run runs[kMostTilePixels];
  int64_t num_runs = 0;
  for (int64_t at = 0; at < count; at += runs[num_runs++].size) {
    const int64_t image = (first + at) / g.out_plane();
    const int64_t y = (first + at) % g.out_plane() / g.out_width;
    const int64_t x = (first + at) % g.out_width;
    runs[num_runs] = {.at = at,
                      .size = std::min(g.out_width - x, count - at),
                      .y = y * g.stride_y,
                      .x = x * g.stride_x,
                      .in = input + (image * g.groups + group) * (g.channels / g.groups) * g.plane()};
  }
  for (const Row& row : rows_) {
    if (row.channel < 0) {
      std::memset(panel, 0, count * sizeof(float));
    } else {
      for (const Run* run = runs; run < runs + num_runs; ++run) {
        const int64_t y = run->y + row.y;
        if (y < 0 || y >= g.height) {
          std::memset(panel + run->at, 0, run->size * sizeof(float));
        } else {
          unfold_row(run->in + (row.channel * g.height + y) * g.width, run->x + row.x, run->size, panel + run->at);
        }
      }
    }
    panel += pitch;
  }
}

void Patches::unfold_row(const float* in, int64_t x, int64_t size, float* out) const {
  const int64_t stride = geometry_.stride_x;
  const int64_t width = geometry_.width;
  // Outputs [begin, end) have their input inside the row.
  const int64_t begin = x >= 0 ? 0 : std::min(ceil_div(-x, stride), size);
  const int64_t end =
      x + (size - 1) * stride < width ? size : std::max(begin, x >= width ? 0 : ceil_div(width - x, stride));
  for (int64_t i = 0; i < begin; ++i) out[i] = 0;
  if (stride == 1) {
    copy_run(in + x + begin, out + begin, end - begin);
  } else {
    for (int64_t i = begin; i < end; ++i) out[i] = in[x + i * stride];
  }
  for (int64_t i = end; i < size; ++i) out[i] = 0;
}

}  // namespace pyquant
