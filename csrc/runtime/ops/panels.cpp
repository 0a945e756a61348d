#include "runtime/ops/panels.h"

#include <algorithm>

namespace pyquant {
namespace {

static_assert(Patches::kNone == Tiling::kApart);  // unless it is by columns, each tile has a panel of its own

// Of a vector of inputs that lies in another processor's cache, in multiply-adds of a vector.
constexpr double kReadCost = 70;

// Lanes are lost where tiles end with an image: more than one in so many cost more than they save.
constexpr int64_t kLanesPerLost = 32;

bool by_image(const ConvGeometry& g, const KernelTable& kernels) {
  const int64_t grain = kernels.grain;
  const int64_t lost = grain * (g.images * ceil_div(g.out_plane(), grain) - ceil_div(g.pixels(), grain));
  return lost * kLanesPerLost <= g.pixels();
}

// Rows of the input lie further apart than those of a panel, which only pays where they are read a few times.
bool better_in_place(const Patches& patches, const Tiling& unfolded, int64_t plane, const Reading& reading) {
  constexpr int64_t kMostReads = 16;
  return patches.are_input() && unfolded.rows == patches.rows() && plane % reading.alignment == 0 &&
         (plane <= unfolded.pitch || unfolded.row_tiles() <= kMostReads);
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
    : Panels(geometry, order, kernels, tile, outputs,
             {.decode = decode_cost,
              .repeat = kReadCost * static_cast<double>(geometry.stride_y * geometry.stride_x) /
                        static_cast<double>(order.kernel_rows * order.kernel_columns * outputs)},
             threads, reading, by_image(geometry, kernels)) {}

Panels::Panels(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable& kernels, const Tile& tile,
               int64_t outputs, const SideCosts& costs, int threads, const Reading& reading, bool by_image)
    : groups(geometry.groups),
      plane(geometry.plane()),
      patches(geometry, order, &kernels, by_image && reading.by_columns && Patches::apply_by_columns(geometry, order)),
      in_place(false),
      tiling(kernels, tile, groups * (by_image ? geometry.images : 1), outputs,
             by_image ? geometry.out_plane() : geometry.pixels(), rows_read(patches, reading), threads, costs,
             patches.behind()) {
  if (by_image && better_in_place(patches, tiling, plane, reading)) {
    in_place = true;
    tiling = Tiling(kernels, tile, tiling.groups, outputs, tiling.count, patches.rows(), threads, costs, 0);
  }
  rows = patches.offsets(row_pitch());
}

}  // namespace pyquant
