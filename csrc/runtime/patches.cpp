#include "runtime/patches.h"

#include <algorithm>

namespace pyquant {
namespace {

// How many rows of pixels further on the last row of a kernel has its inputs, at most.
int64_t rows_behind(const ConvGeometry& geometry, const WeightOrder& order) {
  return (order.kernel_rows - 1) * geometry.dilation_y / geometry.stride_y;
}

// How far the rows of a kernel lie behind the last input row that is the first of an output row, each distance once.
std::vector<int64_t> row_residues(const ConvGeometry& geometry, const WeightOrder& order) {
  std::vector<int64_t> residues;
  for (int64_t y = 0; y < order.kernel_rows; ++y) residues.push_back(y * geometry.dilation_y % geometry.stride_y);
  std::sort(residues.begin(), residues.end());
  residues.erase(std::unique(residues.begin(), residues.end()), residues.end());
  return residues;
}

}  // namespace

bool is_pointwise(const ConvGeometry& g, const WeightOrder& order) {
  return order.kernel_rows == 1 && order.kernel_columns == 1 && g.stride_y == 1 && g.stride_x == 1 && g.pad_top == 0 &&
         g.pad_left == 0 && g.height == g.out_height && g.width == g.out_width;
}

Patches::Patches(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable* kernels, bool by_columns)
    : geometry_(geometry), kernels_(kernels) {
  if (by_columns) {
    unfold_columns(order);
    return;
  }
  for (int64_t y = 0; y < order.kernel_rows; ++y) add_taps(order, y * geometry.dilation_y);
  for_weights(order, [&](int64_t c, int64_t y, int64_t x) {
    const auto k = static_cast<int64_t>(places_.size());
    const bool inside = c < order.channels && y < order.kernel_rows && x < order.kernel_columns;
    std::vector<PanelRow>& rows = inside ? taps_[y * order.kernel_columns + x].rows : padding_;
    rows.push_back({.row = k, .channel = inside ? c : 0});
    places_.push_back({.run = 0, .row = k});
  });
  rows_ = order.depth();
  runs_ = {{.first = 0, .count = rows_, .lane = 0}};
  if (is_pointwise(geometry, order)) {  // rows need not be told apart: a plane is one long row
    geometry_.width = geometry_.out_width = geometry.plane();
    geometry_.height = geometry_.out_height = 1;
    are_input_ = rows_ == order.channels;
  }
}

void Patches::add_taps(const WeightOrder& order, int64_t y) {
  for (int64_t x = 0; x < order.kernel_columns; ++x) {
    taps_.push_back({.y = y - geometry_.pad_top, .x = x * geometry_.dilation_x - geometry_.pad_left, .rows = {}});
  }
}

void Patches::unfold_columns(const WeightOrder& order) {
  const std::vector<int64_t> residues = row_residues(geometry_, order);
  for (const int64_t residue : residues) add_taps(order, residue);
  // All channels of a residue lie together.
  const auto row_of = [&](int64_t residue, int64_t c, int64_t x) {
    return (residue * order.channels + c) * order.kernel_columns + x;
  };
  rows_ = order.channels * static_cast<int64_t>(taps_.size());
  for (size_t tap = 0; tap < taps_.size(); ++tap) {
    const auto residue = static_cast<int64_t>(tap) / order.kernel_columns;
    const auto x = static_cast<int64_t>(tap) % order.kernel_columns;
    for (int64_t c = 0; c < order.channels; ++c) {
      taps_[tap].rows.push_back({.row = row_of(residue, c, x), .channel = c});
    }
  }
  for_weights(order, [&](int64_t c, int64_t y, int64_t x) { places_.push_back({.run = y, .row = row_of(0, c, x)}); });
  for (int64_t y = 0; y < order.kernel_rows; ++y) {
    const int64_t down = y * geometry_.dilation_y;
    const auto residue = std::find(residues.begin(), residues.end(), down % geometry_.stride_y) - residues.begin();
    runs_.push_back({.first = row_of(residue, 0, 0),
                     .count = order.channels * order.kernel_columns,
                     .lane = down / geometry_.stride_y * geometry_.out_width});
  }
  behind_ = rows_behind(geometry_, order) * geometry_.out_width;
  geometry_.out_height += rows_behind(geometry_, order);
}

bool Patches::apply_by_columns(const ConvGeometry& geometry, const WeightOrder& order) {
  return static_cast<int64_t>(row_residues(geometry, order).size()) < order.kernel_rows &&
         order.depth() == order.channels * order.kernel_rows * order.kernel_columns &&
         rows_behind(geometry, order) < order.kernel_rows * geometry.out_height;
}

std::vector<int32_t> Patches::offsets(int64_t pitch) const {
  std::vector<int32_t> result;
  for (const Place& place : places_) {
    const Run& run = runs_[place.run];
    result.push_back(checked_offset((run.first + place.row) * pitch + run.lane));
  }
  return result;
}

void Patches::pack(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch, uint32_t outside,
                   float* panel, int64_t part, int64_t parts) const {
  first += group / geometry_.groups * geometry_.out_plane();
  const int64_t width = geometry_.out_width;
  for (int64_t at = 0; at < count;) {
    // Whole rows of pixels, where they are short enough.
    int64_t end = first + std::min(at + kMostTilePixels, count);
    if (end < first + count && end / width * width > first + at) end = end / width * width;
    pack_some(input, group % geometry_.groups, first + at, end - first - at, pitch, outside, panel + at, part, parts);
    at = end - first;
  }
}

void Patches::pack_some(const float* input, int64_t group, int64_t first, int64_t count, int64_t pitch,
                        uint32_t outside, float* panel, int64_t part, int64_t parts) const {
  const ConvGeometry& g = geometry_;
  const int64_t channels = g.channels / g.groups;
  // The pixels of a panel, cut where an output row ends: the same cuts for every panel row.
  struct Row {
    int64_t at, size;  // in a panel row
    int64_t y, x;      // the first pixel's top left input
    int64_t image;
  };
  Row rows[kMostTilePixels];
  int64_t num_rows = 0;
  for (int64_t at = 0; at < count; at += rows[num_rows++].size) {
    const int64_t pixel = first + at;
    rows[num_rows] = {.at = at,
                      .size = std::min(g.out_width - pixel % g.out_width, count - at),
                      .y = pixel % g.out_plane() / g.out_width * g.stride_y,
                      .x = pixel % g.out_width * g.stride_x,
                      .image = pixel / g.out_plane()};
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
      const int64_t from = g.row(row->image, y) + x + begin * g.stride_x;
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
