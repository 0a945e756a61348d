#include "runtime/matrix_weights.h"

#include <algorithm>
#include <utility>

#include "kernels/kernels.h"
#include "runtime/coded_rows.h"

namespace pyquant {

int64_t matrix_pitch(const Patches& patches) {
  int64_t pitch = 0;
  for (const Patches::Run& run : patches.runs()) pitch += round_up(run.count, kMatrixWords);
  return pitch;
}

MatrixWeights::MatrixWeights(const Weight& weight, QuadSource source, const Patches& patches,
                             const KernelTable& kernels, AlignedBuffer<uint32_t> centroids,
                             std::optional<QuadDecoder> decoder)
    : kernels_(&kernels),
      pitch_(matrix_pitch(patches)),
      dim_(quad_order(weight, source).block.dim()),
      centroids_(std::move(centroids)),
      decoder_(std::move(decoder)) {
  for (const Patches::Run& run : patches.runs()) {
    const int64_t begin = runs_.empty() ? 0 : round_up(runs_.back().end, kMatrixWords);
    runs_.push_back({.begin = begin, .end = begin + run.count, .first_row = run.first, .lane = run.lane});
  }
  for (const Patches::Place& place : patches.places()) {
    places_.push_back(static_cast<int32_t>(runs_[place.run].begin + place.row));
  }
  for (const Run& run : runs_) row_begins_.push_back(static_cast<int32_t>(run.begin));
  if (source == QuadSource::kCentroid) {
    codes_ = joint_codes(weight, 1, 1, dim_);
    codes_pitch_ = codes_.size() / weight.outputs;
  }
}

std::vector<int32_t> MatrixWeights::steps(int64_t panel_pitch) const {
  std::vector<int32_t> result;
  for (const Run& run : runs_) {
    for (int64_t k = run.begin; k < run.end; k += kMatrixWords) {
      result.push_back(checked_offset((run.first_row + k - run.begin) * panel_pitch + run.lane));
    }
  }
  return result;
}

void MatrixWeights::decode(int64_t output, int64_t count, uint32_t* rows) const {
  const MatrixKernels& unit = kernels_->matrix;
  if (!decoder_) {
    unit.decode_words(codes_.data() + output * codes_pitch_, codes_pitch_, centroids_.data(), dim_, rows, pitch_, count,
                      codes_pitch_);
  } else {
    decoder_->decode(*kernels_, output, count, row_begins_.data(), rows, pitch_);
  }
  clear_behind_runs(count, rows);
}

void MatrixWeights::arrange(const AlignedBuffer<uint32_t>& quads, int64_t count, uint32_t* rows) const {
  const auto depth = static_cast<int64_t>(places_.size());
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < depth; ++k) rows[r * pitch_ + places_[k]] = quads[r * depth + k];
  }
  clear_behind_runs(count, rows);
}

void MatrixWeights::clear_behind_runs(int64_t count, uint32_t* rows) const {
  for (int64_t r = 0; r < count; ++r, rows += pitch_) {
    for (const Run& run : runs_) {
      std::fill(rows + run.end, rows + run.begin + round_up(run.end - run.begin, kMatrixWords), 0);
    }
  }
}

}  // namespace pyquant
