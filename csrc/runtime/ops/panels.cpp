#include "runtime/ops/panels.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/prefetcher.h"

namespace pyquant {
namespace {

static_assert(Patches::kNone == Tiling::kApart);  // unless it is by columns, each tile has a panel of its own

// Of a vector of inputs that lies in another processor's cache, in multiply-adds of a vector.
constexpr double kReadCost = 70;

// Lanes are lost where tiles end with an image: more than one in so many cost more than they save.
constexpr int64_t kLanesPerLost = 32;

bool by_image(const ConvGeometry& g, const KernelTable& kernels, int threads) {
  const int64_t grain = kernels.grain;
  const int64_t apart = g.images * ceil_div(g.out_plane(), grain);
  int64_t together = ceil_div(g.pixels(), grain);
  // Threads have as many grains each, whether or not these end with an image.
  if (g.images % threads == 0 && together >= threads) together = round_up(together, threads);
  return grain * (apart - together) * kLanesPerLost <= g.pixels();
}

SideCosts side_costs(const ConvGeometry& g, const WeightOrder& order, int64_t outputs, double decode_cost) {
  return {.decode = decode_cost,
          .repeat = kReadCost * static_cast<double>(g.stride_y * g.stride_x) /
                    static_cast<double>(order.kernel_rows * order.kernel_columns * outputs)};
}

// Rows of the input lie further apart than those of a panel, which only pays where they are read a few times.
bool better_in_place(const Patches& patches, const Tiling& unfolded, int64_t plane, const Reading& reading) {
  constexpr int64_t kMostReads = 16;
  return patches.are_input() && unfolded.rows == patches.rows() && plane % reading.alignment == 0 &&
         plane <= std::numeric_limits<int32_t>::max() / patches.rows() &&
         (plane <= unfolded.pitch || unfolded.row_tiles() <= kMostReads);
}

// Of the pixels of an image that is tiled by itself, those behind the last whole vector, if they are few.
int64_t pixels_left(const ConvGeometry& g, const KernelTable& kernels, const Reading& reading, bool by_image) {
  const int64_t left = g.out_plane() % kernels.grain;
  return by_image && g.written_parts == 1 && left <= reading.most_left && left < g.out_plane() ? left : 0;
}

// The rows of a panel, with those behind the last that are read together with it.
int64_t rows_read(const Patches& patches, const Reading& reading) {
  if (reading.in_pieces) return kPieces * round_up(ceil_div(patches.rows(), 2), reading.rows);
  int64_t rows = patches.rows();
  for (const Patches::Run& run : patches.runs()) rows = std::max(rows, run.first + round_up(run.count, reading.rows));
  return rows;
}

}  // namespace

Panels::Panels(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable& kernels, const Tile& tile,
               int64_t outputs, double decode_cost, int threads, const Reading& reading)
    : Panels(geometry, order, kernels, tile, outputs, side_costs(geometry, order, outputs, decode_cost), threads,
             reading, by_image(geometry, kernels, threads), false) {
  if (reading.by_columns && by_image(geometry, kernels, threads) && Patches::apply_by_columns(geometry, order)) {
    // Of large planes, a block may have few pixels of its own beside those behind them.
    Panels columns(geometry, order, kernels, tile, outputs, side_costs(geometry, order, outputs, decode_cost), threads,
                   reading, true, true);
    if (columns.tiling.laid_out() < tiling.laid_out()) *this = std::move(columns);
  }
  rows = patches.offsets(row_pitch());
}

Panels::Panels(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable& kernels, const Tile& tile,
               int64_t outputs, const SideCosts& costs, int threads, const Reading& reading, bool by_image,
               bool by_columns)
    : groups(geometry.groups),
      plane(geometry.plane()),
      left(pixels_left(geometry, kernels, reading, by_image)),
      patches(geometry, order, &kernels, by_columns),
      tiling(kernels, tile, groups * (by_image ? geometry.images : 1), outputs,
             (by_image ? geometry.out_plane() : geometry.pixels()) - left, rows_read(patches, reading), threads, costs,
             patches.behind(), geometry.written_parts) {
  if (by_image && better_in_place(patches, tiling, plane, reading)) {
    tiling = Tiling(kernels, tile, tiling.groups, outputs, tiling.count, patches.rows(), threads, costs, 0,
                    geometry.written_parts);
    tiling.in_place = true;
  }
}

void Panels::vary_steps(int64_t dim, AlignedBuffer<uint16_t>& codes) {
  if (!tiling.in_place || !misleads_prefetcher(dim * row_pitch() * static_cast<int64_t>(sizeof(float)))) return;
  const int64_t blocks = static_cast<int64_t>(rows.size()) / dim;
  const int64_t size = tiling.tile_rows;  // of a block's codes in a row tile
  for (int64_t block = 1; block + 3 <= blocks; block += 4) {
    const auto second = rows.begin() + block * dim;
    std::swap_ranges(second, second + dim, second + dim);
    for (uint16_t* at = codes.data() + block * size; at < codes.data() + codes.size(); at += blocks * size) {
      std::swap_ranges(at, at + size, at + size);
    }
  }
}

}  // namespace pyquant
