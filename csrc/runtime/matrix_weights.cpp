#include "runtime/matrix_weights.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "runtime/coded_rows.h"

namespace pyquant {

int64_t matrix_pitch(const Patches& patches) {
  int64_t pitch = 0;
  for (const Patches::Run& run : patches.runs()) pitch += round_up(run.count, kMatrixWords);
  return pitch;
}

MatrixWeights::MatrixWeights(const Weight& weight, QuadSource source, const Patches& patches,
                             const KernelTable& kernels)
    : source_(source),
      kernels_(&kernels),
      pitch_(matrix_pitch(patches)),
      kernel_rows_(weight.kernel_rows),
      kernel_columns_(weight.kernel_columns),
      blocks_per_quad_(kQuad / std::min(weight.block.channels, kQuad)) {
  const WeightOrder order = quad_order(weight, source);
  channels_ = order.channels;
  depth_ = order.depth();
  dim_ = order.block.dim();
  for (const Patches::Run& run : patches.runs()) {
    const int64_t begin = runs_.empty() ? 0 : round_up(runs_.back().end, kMatrixWords);
    runs_.push_back({.begin = begin, .end = begin + run.count, .first_row = run.first, .lane = run.lane});
  }
  for (const Patches::Place& place : patches.places()) {
    places_.push_back(static_cast<int32_t>(runs_[place.run].begin + place.row));
  }
  rows_lie_together_ = runs_.size() == 1;
  if (source == QuadSource::kCentroid) {
    codes_ = joint_codes(weight, 1, 1, dim_);
  } else if (source == QuadSource::kSpread) {
    for (int64_t y = 0; y < kernel_rows_; ++y) row_begins_.push_back(places_[y * kernel_columns_]);
    codes_ = spread_codes(weight);
  }
  codes_pitch_ = codes_.size() / weight.outputs;
}

std::vector<int32_t> MatrixWeights::steps(int64_t panel_pitch) const {
  std::vector<int32_t> result;
  for (const Run& run : runs_) {
    for (int64_t k = run.begin; k < run.end; k += kMatrixWords) {
      result.push_back(static_cast<int32_t>((run.first_row + k - run.begin) * panel_pitch + run.lane));
    }
  }
  return result;
}

void MatrixWeights::write(int64_t output, int64_t count, const uint32_t* quads, uint32_t* rows) const {
  const uint16_t* const codes = codes_.data() + output * codes_pitch_;
  const MatrixKernels& unit = kernels_->matrix;
  if (source_ == QuadSource::kCentroid) {
    unit.decode_words(codes, codes_pitch_, quads, dim_, rows, pitch_, count, codes_pitch_);
  } else if (source_ == QuadSource::kDense) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t k = 0; k < depth_; ++k) rows[r * pitch_ + places_[k]] = quads[(output + r) * depth_ + k];
    }
  } else if (!rows_lie_together_) {
    unit.decode_runs(codes, codes_pitch_, quads, kernel_rows_, kernel_columns_, blocks_per_quad_, row_begins_.data(),
                     rows, pitch_, count, channels_);
  } else {
    for (int64_t r = 0; r < count; ++r) {
      kernels_->decode_quads(codes + r * codes_pitch_, codes_pitch_, quads, kernel_rows_ * kernel_columns_,
                             blocks_per_quad_, rows + r * pitch_, 1, channels_);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    for (const Run& run : runs_) {
      uint32_t* const row = rows + r * pitch_;
      std::fill(row + run.end, row + run.begin + round_up(run.end - run.begin, kMatrixWords), 0);
    }
  }
}

}  // namespace pyquant
