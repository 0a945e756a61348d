// How the work of the direct and Winograd paths is cut up, and shared out to threads.
//
// First the inputs of tiles of lanes are laid out as panels, then outputs are computed, tile_rows at a time, from
// these. What lies in the lanes is pixels, or Winograd's m x m pixels.
//
// Where there are lanes enough, each thread takes tiles of its own and keeps their panels. Where there are not, or
// where one thread would have more of them than another, threads take ranges of outputs. Each makes the panels for
// itself where that is little work; else they are shared: threads make them together first.
//
// A tile has a panel of its own, or the tiles of a block have one together, each its lanes of it: so that inputs can be
// read by several tiles.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/patches.h"
#include "runtime/step.h"

namespace pyquant {

// Finding a weight in a codebook for one tile, in vector multiply-adds.
constexpr double kFindCost = 0.1;

// What work costs besides multiplying, in multiply-adds of a vector for each weight.
struct SideCosts {
  double decode;  // for each block of tiles
  double repeat;  // for each vector of lanes, that another thread reads their inputs too
};

struct Tiling {
  // For `outputs` of each group on `count` lanes; panels have `rows` rows. Those of blocks have `behind` lanes more
  // than their tiles have; where it is kApart, each tile has its own. Threads that take tiles of their own take those
  // of one part each, where the lanes are of so many `parts`.
  Tiling(const KernelTable& kernels, const Tile& tile, int64_t groups, int64_t outputs, int64_t count, int64_t rows,
         int threads, const SideCosts& costs, int64_t behind = kApart, int64_t parts = 1);
  static constexpr int64_t kApart = -1;

  // Lanes [begin(tile), begin(tile + 1)) are those of a tile: a multiple of the grain, but for the last of a part.
  int64_t begin(int64_t tile) const { return begins[tile]; }
  int64_t lanes_of(int64_t tile) const { return begin(tile + 1) - begin(tile); }

  // The first tile of a block: so many tiles that their panels stay in the cache while all outputs are computed.
  int64_t first_tile(int64_t block) const { return block * num_tiles / num_blocks; }

  // The first output of a range, of `ranges` that all outputs of a group are cut into.
  int64_t first_output(int64_t range) const {
    return std::min(range * round_up(ceil_div(outputs, ranges), tile_rows), outputs);
  }

  // Row tiles of a group.
  int64_t row_tiles() const { return ceil_div(outputs, tile_rows); }

  // Outputs of all groups that are computed: a tile has all of its rows, also where a group has fewer outputs.
  int64_t computed_rows() const { return groups * row_tiles() * tile_rows; }

  bool joined() const { return behind != kApart; }

  int64_t panel_floats() const { return round_up(rows * pitch, 16); }
  int64_t group_floats() const { return (joined() ? 1 : num_tiles) * panel_floats(); }  // where panels are shared
  int64_t shared_floats() const { return shared && !in_place ? groups * group_floats() : 0; }
  int64_t own_panel_floats() const {
    return shared || in_place ? 0 : (joined() ? 1 : ceil_div(num_tiles, num_blocks)) * panel_floats();
  }

  // How many values are laid out, some of them perhaps in several panels.
  double laid_out() const;

  // Vectors of all lanes; where grains are halves of them, a half counts as that.
  double lane_vectors() const { return static_cast<double>(grains * grain) / static_cast<double>(lanes); }

  // Vector multiply-adds of one weight for all tiles, with finding it where it is coded.
  double vectors(bool is_coded) const;

  int64_t groups;
  int64_t outputs;  // of a group
  int64_t tile_rows;
  double least_vectors;  // of a tile
  int64_t count;
  int64_t rows;
  int64_t behind;
  int64_t lanes;  // of a vector
  int64_t grain;
  int64_t grains;
  int64_t num_tiles;
  std::vector<int64_t> begins;  // of tiles, and the end: kernels take little longer than a division
  int64_t num_blocks;
  int64_t pitch;  // of a panel: the most lanes that one has, in whole vectors
  bool shared = false;
  bool in_place = false;  // whether inputs are read where they lie, and there are no panels
  int64_t ranges = 1;     // of outputs
};

// Some of a group's outputs for some of its tiles.
struct TiledWork {
  int64_t group;
  int64_t first_tile, last_tile;
  int64_t first_output, last_output;  // within the group
  const float* panels;                // of the tiles, one after the other, or the one that they have together
  int64_t first_lane;                 // of that one

  const float* panel(const Tiling& t, int64_t tile) const {
    return t.joined() ? panels + t.begin(tile) - first_lane : panels + (tile - first_tile) * t.panel_floats();
  }
};

// Lanes whose inputs are to be laid out: one of `parts` equal parts of a panel's rows.
struct PanelPart {
  int64_t group;
  int64_t first, count;  // lanes
  int64_t part, parts;
};

// Run prepare(part, panel, scratch) for all parts of all panels, and multiply(work, scratch) for all outputs. Workers'
// scratch memory begins with own_panel_floats(), behind which is theirs. Where the tiling is in place, nothing is
// prepared: the inputs of all lanes lie in memory as a joined panel of each group, group_pitch apart, from `input` on.
template <typename Prepare, typename Multiply>
void run_tiled(const Tiling& t, const RunState& state, const Prepare& prepare, const Multiply& multiply,
               const float* input = nullptr, int64_t group_pitch = 0) {
  const int64_t floats = t.panel_floats();
  const bool prepares = !t.in_place;
  if (!t.shared) {
    state.pool->parallel_for(t.groups * t.num_blocks * t.ranges, [&](int64_t unit, int worker) {
      // Ranges last: the share of a thread is all of one, so that it reads the same weights in each run.
      const int64_t block = unit % t.num_blocks;
      const int64_t group = unit / t.num_blocks % t.groups;
      const int64_t range = unit / t.num_blocks / t.groups;
      const int64_t first = t.first_tile(block);
      const int64_t last = t.first_tile(block + 1);
      float* const panels = state.scratch[worker];
      float* const rest = panels + t.own_panel_floats();
      const int64_t step = t.joined() ? last - first : 1;
      for (int64_t tile = first; prepares && tile < last; tile += step) {
        const int64_t lanes = t.begin(tile + step) - t.begin(tile) + (t.joined() ? t.behind : 0);
        prepare(PanelPart{.group = group, .first = t.begin(tile), .count = lanes, .part = 0, .parts = 1},
                panels + (tile - first) * floats, rest);
      }
      multiply(TiledWork{.group = group,
                         .first_tile = first,
                         .last_tile = last,
                         .first_output = t.first_output(range),
                         .last_output = t.first_output(range + 1),
                         .panels = prepares ? panels : input + group * group_pitch,
                         .first_lane = prepares ? t.begin(first) : 0},
               rest);
    });
    return;
  }
  const int64_t parts = t.ranges;
  const int64_t num_panels = t.joined() ? 1 : t.num_tiles;
  state.pool->parallel_for(prepares ? t.groups * num_panels * parts : 0, [&](int64_t unit, int worker) {
    const int64_t panel = unit / parts;
    const int64_t tile = panel % num_panels;
    const int64_t lanes = t.joined() ? t.count + t.behind : t.lanes_of(tile);
    prepare(
        PanelPart{
            .group = panel / num_panels, .first = t.begin(tile), .count = lanes, .part = unit % parts, .parts = parts},
        state.shared + panel * floats, state.scratch[worker]);
  });
  state.pool->parallel_for(t.groups * t.ranges, [&](int64_t unit, int worker) {
    const int64_t group = unit / t.ranges;
    for (int64_t block = 0; block < t.num_blocks; ++block) {
      const int64_t first = t.first_tile(block);
      const float* const panels =
          prepares ? state.shared + group * t.group_floats() + (t.joined() ? 0 : first * floats) : nullptr;
      multiply(TiledWork{.group = group,
                         .first_tile = first,
                         .last_tile = t.first_tile(block + 1),
                         .first_output = t.first_output(unit % t.ranges),
                         .last_output = t.first_output(unit % t.ranges + 1),
                         .panels = prepares ? panels : input + group * group_pitch,
                         .first_lane = 0},
               state.scratch[worker]);
    }
  });
}

}  // namespace pyquant
