// Boxes of a detector: decoding, clipping, and the suppression of those that lie over a better one.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "runtime/graph.h"

namespace pyquant {

struct Box {
  float left, top, right, bottom;  // pixels

  float width() const { return right - left; }
  float height() const { return bottom - top; }
  float area() const { return width() * height(); }
  // False too where a side is not a number.
  bool has_sides(float least) const { return width() >= least && height() >= least; }
};

// The box with its corners moved into a picture of this size.
Box clipped(const Box& box, float height, float width);

// How four numbers of a head, dx, dy, dw and dh, make another box of one (Ren et al., Faster R-CNN, 2015): the centre
// moves by dx widths and dy heights, the sides grow by exp(dw) and exp(dh).
class BoxCoder {
 public:
  explicit BoxCoder(const Node& node);

  Box decode(const std::array<float, 4>& numbers, const Box& box) const;

 private:
  std::array<float, 4> weights_;  // by which the four numbers are divided
  float max_log_scale_;           // what dw and dh may reach
};

struct Candidate {
  Box box;
  float score;
  int32_t index;  // decides between equal scores: the lower one is better
};

constexpr int64_t kCandidateFloats = sizeof(Candidate) / sizeof(float);

inline bool is_better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.index < b.index;
}

// Greedy non-maximum suppression: of candidates, best first, move to the front those whose intersection over union with
// every better one that was kept is at most `max_overlap`, `most` of them at most; returns how many.
int64_t suppress(std::span<Candidate> candidates, double max_overlap, int64_t most);

// The same where only candidates of one class count against each other; the class is `index` modulo `classes`.
int64_t suppress_by_class(std::span<Candidate> candidates, int64_t classes, double max_overlap, int64_t most);

// Survivors of several suppressions: up to `capacity` candidates each, in one block of memory.
struct Survivors {
  Candidate* slots;  // [groups, capacity]
  int32_t* counts;   // [groups]
  int64_t groups;
  int64_t capacity;

  static int64_t floats(int64_t groups, int64_t capacity) { return groups * (capacity * kCandidateFloats + 1); }
  Survivors(float* memory, int64_t groups, int64_t capacity);

  // The best of the groups [first, first + count) together, at most `most`, best first; they are moved.
  std::span<Candidate> best(int64_t first, int64_t count, int64_t most);
};

// A value of rows: the image (-1: the row is not used), the box, and what else there is.
constexpr int64_t kBoxColumns = 5;
constexpr int64_t kDetectionColumns = 7;  // and score, label

// Write detections of an image, whose label is their index modulo `classes`, as `keep` rows.
void write_detections(std::span<const Candidate> found, int64_t image, int64_t classes, int64_t keep, float* rows);

}  // namespace pyquant
