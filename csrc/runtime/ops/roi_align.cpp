// RoIAlign (He et al., Mask R-CNN, 2017): boxes resampled to one size, each from the pyramid level that suits it.
#include <algorithm>
#include <cmath>
#include <span>

#include "runtime/boxes.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// A box as large as the canonical one may come out just below it.
constexpr float kLevelSlack = 1e-6f;

constexpr int64_t kChannels = 4;  // of which a box is resampled at a time

class RoiAlignStep : public Step {
 public:
  RoiAlignStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "gather"),
        canonical_level_(static_cast<float>(layer.node->attribute<int64_t>("canonical_level"))),
        canonical_side_(static_cast<float>(layer.node->attribute<int64_t>("canonical_side"))),
        samples_(layer.node->attribute<int64_t>("samples")),
        boxes_(layer.inputs[1]),
        output_(layer.output) {
    const Shape& images = context.shapes[layer.inputs[0]];
    const Shape& out = context.shapes[output_];
    images_ = images.at(0);
    row_columns_ = context.shapes[boxes_].at(1);
    rows_ = out.at(0);
    channels_ = out.at(1);
    out_height_ = out.at(2);
    out_width_ = out.at(3);
    for (size_t i = 2; i < layer.inputs.size(); ++i) {
      const Shape& shape = context.shapes[layer.inputs[i]];
      const float halvings =
          std::nearbyint(std::log2(static_cast<float>(images.at(2)) / static_cast<float>(shape.at(2))));
      levels_.push_back({.value = layer.inputs[i],
                         .height = shape.at(2),
                         .width = shape.at(3),
                         .scale = std::exp2(-halvings),
                         .halvings = halvings});
      widest_ = std::max(widest_, shape.at(3));
    }
  }

  int64_t scratch_floats() const override { return round_up(widest_, 16); }
  int64_t shared_floats() const override { return rows_ * (kRowFloats + tap_floats()); }

  // A few channels after the other: their planes stay in the cache while all boxes read their part of them, which would
  // otherwise be fetched from memory a few numbers at a time; and what is written of a box fills cache lines.
  void run(const RunState& state) const override {
    auto* rows = reinterpret_cast<Row*>(state.shared);
    float* taps = state.shared + rows_ * kRowFloats;
    state.pool->parallel_for(rows_, [&](int64_t row, int) {
      rows[row] = prepare(state.values[boxes_] + row * row_columns_, tap_of(taps, row));
    });
    state.pool->parallel_for(ceil_div(channels_, kChannels), [&](int64_t unit, int worker) {
      const int64_t first = unit * kChannels;
      const int64_t last = std::min(first + kChannels, channels_);
      const int64_t size = out_height_ * out_width_;
      for (int64_t row = 0; row < rows_; ++row) {
        float* out = state.values[output_] + (row * channels_ + first) * size;
        if (rows[row].level < 0) {
          std::fill_n(out, (last - first) * size, 0.0f);
          continue;
        }
        const Level& level = levels_[rows[row].level];
        const int64_t plane = level.height * level.width;
        const float* from = state.values[level.value] + (rows[row].image * channels_ + first) * plane + rows[row].left;
        const Tap* down = tap_of(taps, row);
        for (int64_t channel = first; channel < last; ++channel, from += plane, out += size) {
          resample(from, rows[row].width, level.width, down, down + 2 * samples_ * out_height_, state.scratch[worker],
                   out);
        }
      }
    });
  }

 private:
  struct Level {
    ValueId value;  // [N, C, height, width]
    int64_t height, width;
    float scale;  // pixels of the level in one of the picture
    float halvings;
  };

  // A pixel along one axis, and its share of an output pixel. Columns are counted from the first one of the box.
  struct Tap {
    int32_t at;
    float weight;
  };

  // Where a row's box is taken from, and the columns that it takes; level -1: nowhere.
  struct Row {
    int32_t level = -1;
    int32_t image = 0;
    int32_t left = 0;
    int32_t width = 0;
  };

  static constexpr int64_t kRowFloats = sizeof(Row) / sizeof(float);

  int64_t tap_floats() const {
    return 2 * samples_ * (out_height_ + out_width_) * static_cast<int64_t>(sizeof(Tap) / sizeof(float));
  }

  Tap* tap_of(float* taps, int64_t row) const { return reinterpret_cast<Tap*>(taps + row * tap_floats()); }

  // Decide where the box of a row is taken from, and write its taps: first those of rows, then those of columns.
  Row prepare(const float* row, Tap* taps) const {
    // Not a cast first: the number may be anything.
    if (!(row[0] >= 0 && row[0] < static_cast<float>(images_))) return {};
    const Box box{row[1], row[2], row[3], row[4]};
    const size_t at = level_of(box);
    const Level& level = levels_[at];
    write_taps(box.top * level.scale, box.bottom * level.scale, out_height_, level.height, taps);
    const std::span columns(taps + 2 * samples_ * out_height_, 2 * samples_ * out_width_);
    write_taps(box.left * level.scale, box.right * level.scale, out_width_, level.width, columns.data());
    const auto [first, last] = std::ranges::minmax(columns, {}, &Tap::at);
    for (Tap& column : columns) column.at -= first.at;
    return {.level = static_cast<int32_t>(at),
            .image = static_cast<int32_t>(row[0]),
            .left = first.at,
            .width = last.at - first.at + 1};
  }

  size_t level_of(const Box& box) const {
    const float side = std::sqrt(box.area());
    const float wanted = std::floor(canonical_level_ + std::log2(side / canonical_side_) + kLevelSlack);
    const float last = levels_.back().halvings;
    // A box with negative sides has no size; its level does not matter.
    if (std::isnan(wanted)) return 0;
    const float level = std::min(std::max(wanted, levels_.front().halvings), last) - levels_.front().halvings;
    return std::min(static_cast<size_t>(std::max(level, 0.0f)), levels_.size() - 1);
  }

  // For each output pixel along an axis, two taps for each of its samples.
  void write_taps(float begin, float end, int64_t out_size, int64_t size, Tap* taps) const {
    const float step = std::max(end - begin, 1.0f) / static_cast<float>(out_size);
    const float last = static_cast<float>(size - 1);
    for (int64_t pixel = 0; pixel < out_size; ++pixel) {
      for (int64_t i = 0; i < samples_; ++i, taps += 2) {
        const auto samples = static_cast<float>(samples_);
        const float within = (static_cast<float>(i) + 0.5f) * step / samples;
        const float position = begin + static_cast<float>(pixel) * step + within;
        // What lies further outside than a pixel counts nothing; neither does what is not a number.
        const float share = position >= -1 && position <= last + 1 ? 1 / samples : 0.0f;
        const float at = share == 0 ? 0.0f : std::min(std::max(position, 0.0f), last);
        const auto first = static_cast<int32_t>(at);
        const float weight = at - static_cast<float>(first);
        taps[0] = {.at = first, .weight = share * (1 - weight)};
        taps[1] = {.at = std::min(first + 1, static_cast<int32_t>(size - 1)), .weight = share * weight};
      }
    }
  }

  // First the rows of an output row are added up, in all columns of the box: these lie side by side, as the few columns
  // that an output pixel takes do not.
  void resample(const float* plane, int64_t width, int64_t pitch, const Tap* rows, const Tap* columns, float* line,
                float* out) const {
    for (int64_t y = 0; y < out_height_; ++y, rows += 2 * samples_, out += out_width_) {
      for (int64_t i = 0; i < samples_; ++i) add_rows(plane, width, pitch, rows + 2 * i, i > 0, line);
      const Tap* column = columns;
      for (int64_t x = 0; x < out_width_; ++x) {
        float sum = 0;
        for (int64_t i = 0; i < samples_; ++i, column += 2) {
          sum += column[0].weight * line[column[0].at] + column[1].weight * line[column[1].at];
        }
        out[x] = sum;
      }
    }
  }

  // The two rows of a sample.
  static void add_rows(const float* plane, int64_t width, int64_t pitch, const Tap* rows, bool accumulate,
                       float* __restrict line) {
    const float* const upper = plane + rows[0].at * pitch;
    const float* const lower = plane + rows[1].at * pitch;
    const float a = rows[0].weight, b = rows[1].weight;
    if (accumulate) {
      for (int64_t x = 0; x < width; ++x) line[x] += a * upper[x] + b * lower[x];
    } else {
      for (int64_t x = 0; x < width; ++x) line[x] = a * upper[x] + b * lower[x];
    }
  }

  float canonical_level_, canonical_side_;
  int64_t samples_;
  ValueId boxes_, output_;
  int64_t images_, row_columns_, rows_, channels_, out_height_, out_width_;
  int64_t widest_ = 0;  // pixels of a row, of all levels
  std::vector<Level> levels_;
};

}  // namespace

std::unique_ptr<Step> plan_roi_align(const Layer& layer, const PlanContext& context) {
  return std::make_unique<RoiAlignStep>(layer, context);
}

}  // namespace pyquant
