#include "runtime/patches.h"

#include <algorithm>

namespace pyquant {

Patches::Patches(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels)
    : geometry_(geometry), kernels_(kernels), depth_(order.depth()) {
  const Block& block = order.block;
  for (int64_t y = 0; y < order.kernel_rows; ++y) {
    for (int64_t x = 0; x < order.kernel_columns; ++x) {
      taps_.push_back({.y = y * geometry.dilation_y - geometry.pad_top,
                       .x = x * geometry.dilation_x - geometry.pad_left,
                       .rows = {}});
    }
  }
  int64_t k = 0;
  for (int64_t c0 = 0; c0 < order.channels; c0 += block.channels) {
    for (int64_t y0 = 0; y0 < order.kernel_rows; y0 += block.rows) {
      for (int64_t x0 = 0; x0 < order.kernel_columns; x0 += block.columns) {
        for (int64_t i = 0; i < block.dim(); ++i, ++k) {
          const int64_t c = c0 + i / (block.rows * block.columns);
          const int64_t y = y0 + i / block.columns % block.rows;
          const int64_t x = x0 + i % block.columns;
          const bool inside = c < order.channels && y < order.kernel_rows && x < order.kernel_columns;
          std::vector<PanelRow>& rows = inside ? taps_[y * order.kernel_columns + x].rows : padding_;
          rows.push_back({.row = k, .channel = inside ? c : 0});
        }
      }
    }
  }
  // Where a pixel's only input is the pixel itself, rows need not be told apart: a plane is one long row.
  const ConvGeometry& g = geometry;
  if (order.kernel_rows == 1 && order.kernel_columns == 1 && g.stride_y == 1 && g.stride_x == 1 && g.pad_top == 0 &&
      g.pad_left == 0 && g.height == g.out_height && g.width == g.out_width) {
    geometry_.width = geometry_.out_width = g.plane();
    geometry_.height = geometry_.out_height = 1;
    are_input_ = g.images == 1 && depth_ == order.channels;
  }
}

void Patches::pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, uint32_t outside,
                   float* panel, int64_t part, int64_t parts) const {
  const ConvGeometry& g = geometry_;
  const int64_t channels = g.channels / g.groups;
  // The pixels of a panel, cut where an output row ends: the same cuts for every panel row.
  struct Row {
    int64_t at, size;  // in a panel row
    int64_t y, x;      // the first pixel's top left input
    int64_t image;     // the floats before its image
  };
  Row rows[kMostTilePixels];
  int64_t num_rows = 0;
  for (int64_t at = 0; at < count; at += rows[num_rows++].size) {
    const int64_t pixel = first + at;
    rows[num_rows] = {.at = at,
                      .size = std::min(g.out_width - pixel % g.out_width, count - at),
                      .y = pixel % g.out_plane() / g.out_width * g.stride_y,
                      .x = pixel % g.out_width * g.stride_x,
                      .image = pixel / g.out_plane() * g.channels * g.plane()};
  }
  const float* const in = input + group * channels * g.plane();
  const int64_t begin_channel = part * channels / parts;
  const int64_t end_channel = (part + 1) * channels / parts;
  // A row has at most a piece left of the picture, one inside it and one right of it.
  PanelRun runs[3 * kMostTilePixels];
  for (const Tap& tap : taps_) {
    int64_t num_runs = 0;
    for (const Row* row = rows; row < rows + num_rows; ++row) {
      const int64_t y = row->y + tap.y;
      const int64_t x = row->x + tap.x;
      // Outputs [begin, end) have their input inside the input row.
      int64_t begin = row->size, end = row->size;
      if (y >= 0 && y < g.height) {
        begin = x >= 0 ? 0 : std::min(ceil_div(-x, g.stride_x), row->size);
        end = x >= g.width ? begin : std::clamp(ceil_div(g.width - x, g.stride_x), begin, row->size);
      }
      const int64_t from = row->image + y * g.width + x + begin * g.stride_x;
      if (begin > 0) runs[num_runs++] = {.to = row->at, .size = begin, .from = PanelRun::kOutside};
      if (end > begin) runs[num_runs++] = {.to = row->at + begin, .size = end - begin, .from = from};
      if (row->size > end)
        runs[num_runs++] = {.to = row->at + end, .size = row->size - end, .from = PanelRun::kOutside};
    }
    kernels_->pack_rows(runs, num_runs, g.stride_x, in, g.plane(), tap.rows.data() + begin_channel,
                        end_channel - begin_channel, outside, panel, pitch);
  }
  if (part != 0) return;
  const PanelRun nothing{.to = 0, .size = count, .from = PanelRun::kOutside};
  kernels_->pack_rows(&nothing, 1, 1, in, 0, padding_.data(), static_cast<int64_t>(padding_.size()), outside, panel,
                      pitch);
}

}  // namespace pyquant
