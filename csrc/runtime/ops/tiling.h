// How the work of the direct and Winograd paths is cut up, and shared out to threads.
//
// First the inputs of tiles of lanes are laid out as panels, then outputs are computed, tile_rows at a time, from
// these. What lies in the lanes is pixels, or Winograd's m x m pixels.
//
// Where there are lanes enough, each thread takes tiles of its own and keeps their panels. Where there are not, the
// panels of all tiles are shared: threads make them together, and then take ranges of outputs.
#pragma once

#include <algorithm>

#include "kernels/kernels.h"
#include "runtime/patches.h"
#include "runtime/step.h"

namespace pyquant {

// Finding a weight in a codebook for one tile, in vector multiply-adds.
constexpr double kFindCost = 0.1;

struct Tiling {
  // For `outputs` of each group on `count` lanes; a tile's panel has `rows` rows.
  Tiling(const KernelTable& kernels, const Tile& tile, int64_t groups, int64_t outputs, int64_t count, int64_t rows,
         int threads);

  // Lanes [begin(tile), begin(tile + 1)) are those of a tile: a multiple of half a vector, but for the last.
  int64_t begin(int64_t tile) const { return std::min(half * (tile * halves / num_tiles), count); }
  int64_t lanes_of(int64_t tile) const { return begin(tile + 1) - begin(tile); }

  // The first tile of a block: so many tiles that their panels stay in the cache while all outputs are computed.
  int64_t first_tile(int64_t block) const { return block * num_tiles / num_blocks; }

  // The first output of a range, of `ranges` that all outputs of a group are cut into.
  int64_t first_output(int64_t range) const {
    return std::min(range * round_up(ceil_div(outputs, ranges), tile_rows), outputs);
  }

  // Row tiles of a group.
  int64_t row_tiles() const { return ceil_div(outputs, tile_rows); }

  int64_t panel_floats() const { return round_up(rows * pitch, 16); }
  int64_t shared_floats() const { return shared ? groups * num_tiles * panel_floats() : 0; }
  int64_t own_panel_floats() const { return shared ? 0 : ceil_div(num_tiles, num_blocks) * panel_floats(); }

  // Vector multiply-adds of one weight for all tiles, with finding it where it is coded.
  double vectors(bool is_coded) const;

  int64_t groups;
  int64_t outputs;  // of a group
  int64_t tile_rows;
  double least_vectors;  // of a tile
  int64_t count;
  int64_t rows;
  int64_t half;  // of a vector, in lanes
  int64_t halves;
  int64_t num_tiles;
  int64_t num_blocks;
  int64_t pitch;  // of a panel: the lanes of the widest tile, in whole vectors
  bool shared = false;
  int64_t ranges = 1;  // of outputs; 1 unless shared
};

// Panel rows that need not be laid out: those of a group lie in the input, `pitch` apart, and the next group's behind
// them.
struct InPlace {
  const float* values = nullptr;  // null: they have to be
  int64_t pitch = 0;
};

// Some of a group's outputs for some of its tiles.
struct TiledWork {
  int64_t group;
  int64_t first_tile, last_tile;
  int64_t first_output, last_output;  // within the group
  const float* panels;                // of the tiles, one after the other
  InPlace in_place;

  const float* panel(const Tiling& t, int64_t tile) const {
    if (in_place.values == nullptr) return panels + (tile - first_tile) * t.panel_floats();
    return in_place.values + group * t.rows * in_place.pitch + t.begin(tile);
  }
  int64_t pitch(const Tiling& t) const { return in_place.values == nullptr ? t.pitch : in_place.pitch; }
};

// Run prepare(group, tile, part, parts, panel, scratch), which writes one of `parts` parts of a panel, for all of them
// unless they are in place, and multiply(work, scratch) for all outputs. Workers' scratch memory begins with
// own_panel_floats(), behind which is theirs.
template <typename Prepare, typename Multiply>
void run_tiled(const Tiling& t, const RunState& state, const InPlace& in_place, const Prepare& prepare,
               const Multiply& multiply) {
  const int64_t floats = t.panel_floats();
  const bool prepares = in_place.values == nullptr;
  if (!t.shared) {
    state.pool->parallel_for(t.groups * t.num_blocks, [&](int64_t unit, int worker) {
      const int64_t group = unit / t.num_blocks;
      const int64_t first = t.first_tile(unit % t.num_blocks);
      const int64_t last = t.first_tile(unit % t.num_blocks + 1);
      float* const panels = state.scratch[worker];
      float* const rest = panels + t.own_panel_floats();
      for (int64_t tile = first; prepares && tile < last; ++tile) {
        prepare(group, tile, 0, 1, panels + (tile - first) * floats, rest);
      }
      multiply(TiledWork{.group = group,
                         .first_tile = first,
                         .last_tile = last,
                         .first_output = 0,
                         .last_output = t.outputs,
                         .panels = panels,
                         .in_place = in_place},
               rest);
    });
    return;
  }
  const int64_t parts = prepares ? t.ranges : 0;
  state.pool->parallel_for(t.groups * t.num_tiles * parts, [&](int64_t unit, int worker) {
    const int64_t panel = unit / parts;
    prepare(panel / t.num_tiles, panel % t.num_tiles, unit % parts, parts, state.shared + panel * floats,
            state.scratch[worker]);
  });
  state.pool->parallel_for(t.groups * t.ranges, [&](int64_t unit, int worker) {
    const int64_t group = unit / t.ranges;
    for (int64_t block = 0; block < t.num_blocks; ++block) {
      const int64_t first = t.first_tile(block);
      multiply(TiledWork{.group = group,
                         .first_tile = first,
                         .last_tile = t.first_tile(block + 1),
                         .first_output = t.first_output(unit % t.ranges),
                         .last_output = t.first_output(unit % t.ranges + 1),
                         .panels = state.shared + (group * t.num_tiles + first) * floats,
                         .in_place = in_place},
               state.scratch[worker]);
    }
  });
}

// A convolution's inputs, where they are better read in place: rows of the input lie further apart than those of a
// panel, which only pays where they are read a few times.
inline InPlace in_place(const Tiling& t, const Patches& patches, const float* input, int64_t plane) {
  constexpr int64_t kMostReads = 16;
  if (!patches.are_input() || (plane > t.pitch && t.row_tiles() > kMostReads)) return {};
  return {.values = input, .pitch = plane};
}

}  // namespace pyquant
