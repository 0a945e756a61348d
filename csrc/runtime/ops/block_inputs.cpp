#include "runtime/ops/block_inputs.h"

#include <algorithm>

#include "runtime/ops/byte_convolution.h"

namespace pyquant {
namespace {

bool turns(const Block& block) { return block.rows * block.columns > 1 || block.channels % kQuad; }

int64_t quads_of_taps(const Block& block) { return ceil_div(block.rows * block.columns, kQuad); }

WeightOrder panel_order(const Weight& weight) {
  return quad_order(weight, turns(weight.block) ? QuadSource::kStored : QuadSource::kCentroid);
}

int64_t panel_pitch(const Patches& patches, int64_t pitch, int64_t lanes) {
  return round_up(pitch + std::max<int64_t>(patches.behind(), 0), lanes);
}

// By columns where that is less to lay out: of large planes, the rows behind a tile's pixels are more than these. A
// tile may have pixels of two images, behind those of the first of which inputs by columns would be others.
Patches patches_of(const Convolution& c, int64_t pitch) {
  const ConvGeometry geometry = in_quads(c.geometry);
  const WeightOrder order = panel_order(*c.weight);
  Patches patches(geometry, order, c.kernels);
  if (!turns(c.weight->block) || geometry.images > 1 || !Patches::apply_by_columns(geometry, order)) return patches;
  Patches columns(geometry, order, c.kernels, true);
  const bool is_less = columns.rows() * panel_pitch(columns, pitch, c.kernels->lanes) < patches.rows() * pitch;
  return is_less ? columns : patches;
}

}  // namespace

BlockInputs::BlockInputs(const Convolution& c, int64_t pitch)
    : patches_(patches_of(c, pitch)),
      pitch_(pitch),
      behind_(std::max<int64_t>(patches_.behind(), 0)),
      panel_pitch_(panel_pitch(patches_, pitch, c.kernels->lanes)),
      taps_(turns(c.weight->block) ? c.weight->kernel_rows * c.weight->kernel_columns : 0) {
  if (taps_ > 0) begin_ = patches_.offsets(panel_pitch_);
}

bool BlockInputs::exist(const Convolution& c) {
  const Weight& weight = *c.weight;
  if (!weight.has_codes() || c.geometry.groups != 1 || !sums_fit(weight)) return false;
  const Block& block = weight.block;
  if (block.rows == 1 && block.columns == 1 && block.channels % kQuad == 0) return true;
  // Tail blocks are within the last quad of channels.
  if (weight.blocks_per_row() * block.channels > round_up(weight.channels, kQuad)) return false;
  return block.rows == weight.kernel_rows && block.columns == weight.kernel_columns && block.dim() > 1;
}

int64_t BlockInputs::block_quads(const Weight& weight) {
  const Block& block = weight.block;
  return turns(block) ? block.channels * quads_of_taps(block) : block.channels / kQuad;
}

AlignedBuffer<uint32_t> BlockInputs::centroid_quads(const Weight& weight, const AlignedBuffer<float>& values) {
  const Block& block = weight.block;
  const int64_t run = turns(block) ? block.rows * block.columns : block.channels;
  AlignedBuffer<uint32_t> quads(values.size() / block.dim() * block_quads(weight));
  uint32_t* quad = quads.data();
  for (int64_t first = 0; first < values.size(); first += run) {
    for (int64_t i = 0; i < run; i += kQuad) *quad++ = quad_of(values.data() + first + i, run - i);
  }
  return quads;
}

int64_t BlockInputs::turned_quads() const {
  return taps_ > 0 ? static_cast<int64_t>(begin_.size()) / taps_ * kQuad * ceil_div(taps_, kQuad) * pitch_ : 0;
}

const uint32_t* BlockInputs::write(const Convolution& c, const RunState& state, int64_t pixel, int64_t pixels,
                                   float* memory) const {
  patches_.pack(state.values[c.input], 0, pixel, pixels + behind_, panel_pitch_, state.quantization[c.input].zeros(),
                memory);
  const auto* const inputs = reinterpret_cast<const uint32_t*>(memory);
  if (taps_ == 0) return inputs;
  auto* const turned = reinterpret_cast<uint32_t*>(memory + panel_quads());
  uint32_t* quads = turned;
  for (auto taps = begin_.begin(); taps != begin_.end(); taps += taps_) {
    c.kernels->turn_quads(inputs, &*taps, taps_, pixels, quads, pitch_);
    quads += kQuad * ceil_div(taps_, kQuad) * pitch_;
  }
  return turned;
}

}  // namespace pyquant
