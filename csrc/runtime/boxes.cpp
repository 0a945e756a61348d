#include "runtime/boxes.h"

#include <algorithm>
#include <cmath>

namespace pyquant {

Box clipped(const Box& box, float height, float width) {
  const auto within = [](float at, float end) { return std::min(std::max(at, 0.0f), end); };
  return {within(box.left, width), within(box.top, height), within(box.right, width), within(box.bottom, height)};
}

BoxCoder::BoxCoder(const Node& node) : max_log_scale_(static_cast<float>(node.attribute<double>("max_log_scale"))) {
  const auto& weights = node.attribute<std::vector<double>>("box_weights");
  for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = static_cast<float>(weights.at(i));
}

Box BoxCoder::decode(const std::array<float, 4>& numbers, const Box& box) const {
  const float centre_x = box.left + 0.5f * box.width();
  const float centre_y = box.top + 0.5f * box.height();
  const float x = numbers[0] / weights_[0] * box.width() + centre_x;
  const float y = numbers[1] / weights_[1] * box.height() + centre_y;
  const float half_width = 0.5f * (std::exp(std::min(numbers[2] / weights_[2], max_log_scale_)) * box.width());
  const float half_height = 0.5f * (std::exp(std::min(numbers[3] / weights_[3], max_log_scale_)) * box.height());
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

namespace {

bool overlap(const Box& box, const Box& other, double max_overlap) {
  const float width = std::min(box.right, other.right) - std::max(box.left, other.left);
  const float height = std::min(box.bottom, other.bottom) - std::max(box.top, other.top);
  const float shared = std::max(width, 0.0f) * std::max(height, 0.0f);
  // Of two empty boxes this is not a number, and both stay.
  return shared / (other.area() + box.area() - shared) > max_overlap;
}

// Move to the front, in order, the candidates that no better one hides which stays.
template <typename Hides>
int64_t keep_visible(std::span<Candidate> candidates, int64_t most, const Hides& hides) {
  int64_t kept = 0;
  for (const Candidate& candidate : candidates) {
    if (kept == most) break;
    const auto is_hiding = [&](const Candidate& better) { return hides(better, candidate); };
    if (std::none_of(candidates.begin(), candidates.begin() + kept, is_hiding)) candidates[kept++] = candidate;
  }
  return kept;
}

}  // namespace

int64_t suppress(std::span<Candidate> candidates, double max_overlap, int64_t most) {
  return keep_visible(candidates, most, [=](const Candidate& better, const Candidate& candidate) {
    return overlap(candidate.box, better.box, max_overlap);
  });
}

int64_t suppress_by_class(std::span<Candidate> candidates, int64_t classes, double max_overlap, int64_t most) {
  return keep_visible(candidates, most, [=](const Candidate& better, const Candidate& candidate) {
    return better.index % classes == candidate.index % classes && overlap(candidate.box, better.box, max_overlap);
  });
}

Survivors::Survivors(float* memory, int64_t group_count, int64_t slot_count)
    : slots(reinterpret_cast<Candidate*>(memory)),
      counts(reinterpret_cast<int32_t*>(memory + group_count * slot_count * kCandidateFloats)),
      groups(group_count),
      capacity(slot_count) {}

std::span<Candidate> Survivors::best(int64_t first, int64_t count, int64_t most) {
  Candidate* begin = slots + first * capacity;
  Candidate* end = begin;
  for (int64_t group = first; group < first + count; ++group) {
    end = std::copy_n(slots + group * capacity, counts[group], end);
  }
  const int64_t kept = std::min<int64_t>(most, end - begin);
  std::partial_sort(begin, begin + kept, end, &is_better);
  return {begin, static_cast<size_t>(kept)};
}

void write_detections(std::span<const Candidate> found, int64_t image, int64_t classes, int64_t keep, float* rows) {
  float* const end = std::fill_n(rows, keep * kDetectionColumns, 0.0f);
  for (const Candidate& c : found) {
    const float columns[] = {static_cast<float>(image),
                             c.box.left,
                             c.box.top,
                             c.box.right,
                             c.box.bottom,
                             c.score,
                             static_cast<float>(c.index % classes)};
    rows = std::copy_n(columns, kDetectionColumns, rows);
  }
  for (; rows < end; rows += kDetectionColumns) *rows = -1;
}

}  // namespace pyquant
