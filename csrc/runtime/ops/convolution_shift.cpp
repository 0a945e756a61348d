// The shift path: where groups have few channels, weights find their inputs in padded planes, so many values on.
//
// Nothing is unfolded, and no output is computed that does not exist: the direct path has tiles of several outputs.
#include <algorithm>
#include <limits>

#include "runtime/ops/convolution.h"
#include "runtime/planes.h"
#include "runtime/sparse_rows.h"

namespace pyquant {
namespace {

constexpr double kCopyCost = 4.0;  // of a vector of inputs into a plane, in multiply-adds of the direct path

constexpr int64_t kPlaneBytes = 256 * 1024;  // of a group, at most: they are read from the second-level cache
constexpr int64_t kOutputs = 64;             // whose sums are held together

Planes planes_of(const Convolution& c) { return {c.geometry, *c.weight, c.kernels}; }

class ShiftStep : public Step {
 public:
  ShiftStep(const Layer& layer, const Convolution& convolution)
      : Step(layer.node->name, layer.op, "shift"),
        c_(convolution),
        planes_(planes_of(convolution)),
        rows_(c_.sparse_rows(planes_.offsets())) {}

  int64_t scratch_floats() const override { return kSumsFloats + planes_.floats() + kSparsePixels; }

  void run(const RunState& state) const override {
    const int64_t groups = c_.geometry.groups, outputs = c_.group_outputs();
    state.pool->parallel_for(c_.geometry.images * groups, [&](int64_t unit, int worker) {
      const int64_t image = unit / groups, group = unit % groups;
      float* const sums = state.scratch[worker];
      float* const planes = sums + kSumsFloats;
      planes_.pack(state.values[c_.input], image, group, planes);
      for (int64_t lane = 0; lane < planes_.lanes(); lane += kSparsePixels) {
        for (int64_t output = 0; output < outputs; output += kOutputs) {
          add(image, lane, group * outputs + output, std::min(kOutputs, outputs - output), planes, sums, state);
        }
      }
    });
  }

 private:
  void add(int64_t image, int64_t lane, int64_t output, int64_t outputs, const float* planes, float* sums,
           const RunState& state) const {
    const int64_t lanes = std::min(kSparsePixels, planes_.lanes() - lane);
    for (int64_t pass = 0; pass < rows_.passes; ++pass) {
      c_.kernels->sparse_sum(rows_.weights.data(), rows_.begin_of(pass, output), planes + lane, sums, outputs, lanes,
                             pass > 0);
    }
    // Pixels move together, over the lanes between their rows.
    const int64_t pitch = planes_.pitch(), width = c_.geometry.out_width;
    const int64_t first = lane / pitch * width + std::min(lane % pitch, width);
    int64_t pixels = 0;
    for (int64_t at = 0; at < lanes;) {
      const int64_t column = (lane + at) % pitch;
      const int64_t size = std::min(std::max<int64_t>(width - column, 0), lanes - at);
      if (at != pixels) {
        for (int64_t o = 0; o < outputs; ++o) {
          float* const row = sums + o * kSparsePixels;
          std::copy(row + at, row + at + size, row + pixels);
        }
      }
      pixels += size;
      at += pitch - column;
    }
    if (pixels == 0) return;
    c_.finish(sums, kSparsePixels, output, outputs, image * c_.geometry.out_plane() + first, pixels, state);
  }

  static constexpr int64_t kSumsFloats = kOutputs * kSparsePixels;

  Convolution c_;
  Planes planes_;
  SparseRows<float> rows_;
};

double cost(const Convolution& c, int threads) {
  const ConvGeometry& g = c.geometry;
  if (c.weight->has_codes() || Planes::most_floats(g, *c.weight) * sizeof(float) > kPlaneBytes) {
    return std::numeric_limits<double>::infinity();
  }
  const Planes planes = planes_of(c);
  const auto vectors = [&](int64_t values) { return static_cast<double>(ceil_div(values, c.kernels->lanes)); };
  const auto weights = static_cast<double>(c.weight->nonzero / g.groups);
  const auto passes = static_cast<double>(ceil_div(c.weight->depth(), kPassRows) * c.group_outputs());
  const double unit = vectors(planes.lanes()) * (kSparseWeightCost * weights + kSparsePassCost * passes) +
                      vectors(planes.floats()) * kCopyCost;
  return static_cast<double>(ceil_div(g.images * g.groups, threads)) * unit;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext&) {
  return std::make_unique<ShiftStep>(layer, convolution);
}

}  // namespace

Path shift_path() { return {.kernel = "shift", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
