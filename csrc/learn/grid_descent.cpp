#include "learn/grid_descent.h"

#include <algorithm>
#include <limits>

#include "learn/add.h"

namespace pyquant {
namespace {

// To the nearest whole number, halves to even ones, of numbers much smaller than 2^22.
float rounded(float value) {
  constexpr float kShift = 0x1.8p23f;
  return (value + kShift) - kShift;
}

// The grid of one output.
struct Grid {
  Grid(const OutputGrids& all, int64_t index, int64_t inputs)
      : step(all.step[index]),
        middle(all.zero[index] / 2),
        importance(all.importance[index]),
        last(static_cast<float>(all.levels - 1)),
        prices(all.prices),
        kept(all.kept == nullptr ? nullptr : all.kept + index * inputs) {}

  bool keeps(int64_t input) const { return kept == nullptr || kept[input]; }
  float value(float code) const { return step * (code - middle); }

  // The code of the least bend * (code - at)², or with prices of the least sum of that and the code's price. As
  // pyquant.learn.grids.cheapest(): looked at are the nearest level, the next one towards zero, and zero.
  float cheapest(float at, float bend) const {
    // In this order, what is no number becomes a code as well.
    const float nearest = std::max(0.0f, std::min(last, rounded(std::max(-1.0f, std::min(last + 1, at)))));
    if (prices == nullptr) return nearest;
    const float zero = rounded(middle);
    const float towards = nearest + static_cast<float>((zero > nearest) - (zero < nearest));
    float best = nearest, least = std::numeric_limits<float>::infinity();
    for (const float code : {nearest, towards, zero}) {
      const float cost = bend * (code - at) * (code - at) + prices[static_cast<int64_t>(code)];
      if (cost < least) {
        best = code;
        least = cost;
      }
    }
    return best;
  }

  float step;
  float middle;
  float importance;
  float last;
  const float* prices;
  const bool* kept;
};

// Call body(grid, group, offset) for each output, whose values of a panel begin at the offset.
template <typename Body>
void for_outputs(const OutputGrids& grids, int64_t inputs, const Body& body) {
  for (int64_t index = 0; index < grids.groups * grids.outputs; ++index) {
    body(Grid(grids, index, inputs), index / grids.outputs, index * inputs);
  }
}

}  // namespace

void sweep_grids(const OutputGrids& grids, int64_t inputs, const float* gram, float* slope, float* codes,
                 float* change) {
  std::fill_n(change, grids.groups * grids.outputs * inputs, 0.0f);
  for_outputs(grids, inputs, [&](const Grid& grid, int64_t group, int64_t offset) {
    float* const slopes = slope + offset;
    for (int64_t j = 0; j < inputs; ++j) {
      const float* const row = gram + (group * inputs + j) * inputs;
      const float bend = row[j] * grid.step;
      if (!(bend > 0) || !grid.keeps(j)) continue;
      float& code = codes[offset + j];
      const float best = grid.cheapest(code + slopes[j] / bend, bend * grid.step * grid.importance);
      if (best == code) continue;
      const float larger = grid.step * (best - code);
      code = best;
      change[offset + j] = larger;
      add(-larger, row + j, inputs - j, slopes + j);
    }
  });
}

void feedback_grids(const OutputGrids& grids, int64_t inputs, const float* lower, const float* target, float* missed,
                    float* codes, float* error) {
  for_outputs(grids, inputs, [&](const Grid& grid, int64_t group, int64_t offset) {
    for (int64_t j = inputs; j-- > 0;) {
      const float* const row = lower + (group * inputs + j) * inputs;
      const float diagonal = row[j] * grid.step;
      const float at = (target[offset + j] + missed[offset + j] / row[j]) / grid.step + grid.middle;
      const float code = grid.cheapest(at, diagonal * diagonal * grid.importance);
      codes[offset + j] = code;
      error[offset + j] = target[offset + j] - (grid.keeps(j) ? grid.value(code) : 0.0f);
      add(error[offset + j], row, j, missed + offset);
    }
  });
}

}  // namespace pyquant
