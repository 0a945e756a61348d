#include "runtime/ops/tiling.h"

#include <algorithm>

#include "base/cache_size.h"

namespace pyquant {
namespace {

// Of the panels of one block of tiles: they are read once per tile_rows outputs, from the second-level cache. Where
// weights are decoded for each block, more of that cache is worth it, if there is more.
int64_t panel_bytes(bool decodes) {
  constexpr int64_t kBytes = 640 * 1024;
  return decodes ? std::clamp(second_level_cache() / 8 * 5, kBytes, 2 * kBytes) : kBytes;
}

// So many units of equal size per thread are even enough.
constexpr int64_t kUnitsPerThread = 4;

// Tiles narrower than so many vectors are bound by the loads of weights: better fewer tiles and shared panels.
constexpr int64_t kFewestVectors = 2;

// Of a tile, whatever its width: to find weights and write sums.
constexpr double kTileCost = 0.3;

// Of a thread's products, what inputs may cost that other threads read too.
constexpr double kMostRepeated = 0.1;

}  // namespace

Tiling::Tiling(const KernelTable& kernels, const Tile& tile, int64_t groups_, int64_t outputs_, int64_t count_,
               int64_t rows_, int threads, const SideCosts& costs, int64_t behind_, int64_t parts)
    : groups(groups_),
      outputs(outputs_),
      tile_rows(tile.rows),
      least_vectors(tile.least_vectors),
      count(count_),
      rows(rows_),
      behind(behind_),
      lanes(kernels.lanes),
      grain(kernels.grain),
      grains(ceil_div(count, grain)),
      num_tiles(ceil_div(count, tile.pixels)) {
  int64_t takers = 1;  // threads that take tiles of their own
  const bool groups_suffice = groups >= kUnitsPerThread * threads || groups % threads == 0;
  if (!groups_suffice) {
    const int64_t tiles_for_all = round_up(num_tiles, threads);
    const bool suffices = grains * grain >= kFewestVectors * lanes * tiles_for_all;
    const auto cost = [&](double vectors, int64_t tiles) {
      return vectors + kTileCost * static_cast<double>(tiles) + costs.decode;
    };
    const double own = static_cast<double>(ceil_div(grains, threads) * grain) / static_cast<double>(lanes);
    const double split = cost(lane_vectors(), num_tiles) / threads + costs.repeat * lane_vectors();
    if (suffices && cost(own, tiles_for_all / threads) <= split) {
      num_tiles = tiles_for_all;
      takers = threads;
    } else {
      ranges = std::min<int64_t>(threads, row_tiles());
      shared = costs.repeat * threads > kMostRepeated;
    }
  }
  if (parts != takers) parts = 1;  // no thread has tiles that should end with a part
  const int64_t part = ceil_div(count, parts), part_grains = ceil_div(part, grain), part_tiles = num_tiles / parts;
  for (int64_t i = 0; i < num_tiles; ++i) {
    begins.push_back(i / part_tiles * part + grain * (i % part_tiles * part_grains / part_tiles));
  }
  begins.push_back(count);
  const int64_t widest = grain * ceil_div(part_grains, part_tiles);
  const int64_t most_lanes =
      panel_bytes(costs.decode > 0) / static_cast<int64_t>(sizeof(float)) / rows;  // of the panels of a block
  const int64_t tiles_per_block =
      std::clamp<int64_t>((joined() ? most_lanes - behind : most_lanes) / round_up(widest, lanes), 1, num_tiles);
  // Threads have as many tiles each, also where their blocks differ by one.
  num_blocks = takers * ceil_div(num_tiles / takers, tiles_per_block);
  int64_t most = widest;
  if (joined()) most = behind + (shared ? count : widest * ceil_div(num_tiles, num_blocks));
  pitch = round_up(most, lanes);
}

double Tiling::laid_out() const {
  const auto twice = static_cast<double>(joined() ? behind : 0);  // lanes that two blocks have
  const double all = static_cast<double>(count) + twice * static_cast<double>(shared ? 1 : num_blocks);
  return static_cast<double>(rows) * all * static_cast<double>(shared ? 1 : ranges);
}

double Tiling::vectors(bool is_coded) const {
  const auto tiles = static_cast<double>(num_tiles);
  const double width = lane_vectors() / tiles;
  return tiles * (std::max(width, least_vectors) + (is_coded ? kFindCost : 0.0));
}

}  // namespace pyquant
