#include "runtime/sections.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/sizes.h"

namespace pyquant {
namespace {

// Values of four bytes in the largest value of a chunk of boxes, about: 16 MB keep kernels busy, and are little beside
// what a backbone has.
constexpr int64_t kChunkFloats = int64_t{1} << 22;
constexpr int64_t kRowsTogether = 8;  // chunks are multiples of it where they can be: kernels take rows by vectors

// Values of four bytes that fill a second-level cache. In floats, images are taken apart where each fills it by itself:
// to decode the weights of Winograd layers for each takes longer than to fetch smaller ones. In bytes, they are where
// all fill it together, and each has so many quads: smaller images, of few pixels, leave more lanes of vectors empty
// when apart.
constexpr int64_t kCacheFloats = int64_t{1} << 19;
constexpr int64_t kLeastQuads = int64_t{1} << 16;

// So many layers without may lie between two with large values, as in a block of three convolutions.
constexpr size_t kMostBetween = 2;

// Operations of several rows at once, or of all: what follows them is not part of a section.
bool joins_rows(const Layer& layer) {
  return layer.node != nullptr &&
         (layer.node->op == "detections" || layer.node->op == "select_masks" || layer.node->op == "roi_align" ||
          layer.node->op == "proposals" || layer.node->op == "anchor_detections");
}

bool is_view(const Layer& layer) { return layer.node != nullptr && layer.node->op == "flatten"; }

template <typename T>
bool contains(const std::vector<T>& values, const T& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

class SectionFinder {
 public:
  SectionFinder(const std::vector<Layer>& layers, const std::vector<ValueId>& graph_outputs, const PlanContext& context)
      : layers_(layers), graph_outputs_(graph_outputs), context_(context) {}

  // The section that begins with the roi_align at `first`; none where a value that is there as a whole would be a view.
  std::optional<Section> of_boxes(size_t first) const {
    const ValueId boxes = layers_[first].inputs[1];
    const int64_t columns = context_.shapes[boxes].at(1);
    Section section{.first_layer = first,
                    .end_layer = first + 1,
                    .rows = rows_of(boxes),
                    .chunk = 0,
                    .boxes = boxes,
                    .box_columns = columns,
                    .inner = {layers_[first].output},
                    .whole = {{.value = boxes, .row_size = columns, .is_written = false}}};
    const auto is_inner = [&](ValueId value) { return section.is_inner(value); };
    for (size_t i = first + 1; i < layers_.size() && treats_rows_apart(layers_[i], section.rows); ++i) {
      const std::vector<ValueId> read = layers_[i].values_read();
      if (!std::all_of(read.begin(), read.end(), is_inner)) break;
      section.inner.push_back(layers_[i].output);
      section.end_layer = i + 1;
    }
    section.chunk = std::min(section.rows, rows_at_once(section.inner));
    move_whole(section);
    for (size_t i = first; i < section.end_layer; ++i) {
      if (is_view(layers_[i]) && !(is_inner(layers_[i].output) && is_inner(layers_[i].inputs[0]))) return std::nullopt;
    }
    return section;
  }

  // The section that begins with large values of images at `first`, if there is one. A chunk has an image for each
  // thread, or as many fewer as divide the images.
  std::optional<Section> of_images(size_t first) const {
    const int64_t images = rows_of(layers_[first].output);
    const int64_t chunk = std::gcd(images, int64_t{context_.threads});
    Section section{.first_layer = first, .end_layer = first, .rows = images, .chunk = chunk, .inner = {}, .whole = {}};
    if (images == chunk || !has_large_values(layers_[first])) return std::nullopt;
    for (size_t i = first; i < std::min(section.end_layer + kMostBetween + 1, layers_.size()); ++i) {
      if (!treats_rows_apart(layers_[i], images) || is_view(layers_[i]) || measures_ranges(layers_[i])) break;
      if (has_large_values(layers_[i])) section.end_layer = i + 1;
    }
    std::vector<ValueId> known;
    for (size_t i = first; i < section.end_layer; ++i) {
      for (const ValueId value : layers_[i].values_read()) {
        if (contains(known, value)) continue;
        known.push_back(value);
        section.whole.push_back({.value = value, .row_size = row_size(value), .is_written = false});
      }
      known.push_back(layers_[i].output);
      section.inner.push_back(layers_[i].output);
    }
    move_whole(section);
    if (section.inner.empty()) return std::nullopt;
    return section;
  }

 private:
  int64_t rows_of(ValueId value) const { return context_.shapes[value].at(0); }

  int64_t row_size(ValueId value) const {
    Shape shape = context_.shapes[value];
    shape.at(0) = 1;
    return size_of(shape, context_.formats[value]);
  }

  bool has_large_values(const Layer& layer) const {
    const auto is_large = [&](ValueId value) {
      if (context_.shapes[value].size() != 4) return false;
      const int64_t size = row_size(value);
      if (size >= kCacheFloats) return true;
      return context_.formats[value] == Format::kBytes && size >= kLeastQuads && size * rows_of(value) >= kCacheFloats;
    };
    return is_large(layer.output) || std::any_of(layer.inputs.begin(), layer.inputs.end(), is_large);
  }

  // Whether rows of what a layer reads become those of its output. Of other ranks, values are broadcast.
  bool treats_rows_apart(const Layer& layer, int64_t rows) const {
    const auto is_apart = [&](ValueId value) {
      const bool same_rank = context_.shapes[value].size() == context_.shapes[layer.output].size();
      return rows_of(value) == rows && (same_rank || is_view(layer));
    };
    const std::vector<ValueId> read = layer.values_read();
    return !joins_rows(layer) && is_apart(layer.output) && std::all_of(read.begin(), read.end(), is_apart);
  }

  // Whether a layer reads or writes bytes whose range is measured in each run, of all images.
  bool measures_ranges(const Layer& layer) const {
    const auto is_measured = [&](ValueId value) {
      return context_.formats[value] == Format::kBytes && !context_.ranges[value];
    };
    const std::vector<ValueId> read = layer.values_read();
    return is_measured(layer.output) || std::any_of(read.begin(), read.end(), is_measured);
  }

  bool is_read_outside(const Section& section, ValueId value) const {
    if (contains(graph_outputs_, value)) return true;
    for (size_t i = section.end_layer; i < layers_.size(); ++i) {
      if (contains(layers_[i].values_read(), value)) return true;
    }
    return false;
  }

  // Move those of the inner values that are read outside to the whole ones.
  void move_whole(Section& section) const {
    std::vector<ValueId> inner;
    for (const ValueId value : section.inner) {
      if (is_read_outside(section, value)) {
        section.whole.push_back({.value = value, .row_size = row_size(value), .is_written = true});
      } else {
        inner.push_back(value);
      }
    }
    section.inner = std::move(inner);
  }

  int64_t rows_at_once(const std::vector<ValueId>& values) const {
    int64_t largest = 1;
    for (const ValueId value : values) largest = std::max(largest, row_size(value));
    const int64_t fitting = std::max<int64_t>(kChunkFloats / largest, 1);
    return fitting < kRowsTogether ? fitting : fitting / kRowsTogether * kRowsTogether;
  }

  const std::vector<Layer>& layers_;
  const std::vector<ValueId>& graph_outputs_;
  const PlanContext& context_;
};

}  // namespace

std::vector<Section> find_sections(const std::vector<Layer>& layers, const std::vector<ValueId>& graph_outputs,
                                   const PlanContext& context) {
  const SectionFinder finder(layers, graph_outputs, context);
  std::vector<Section> sections;
  for (size_t i = 0; i < layers.size();) {
    const bool has_boxes = layers[i].node != nullptr && layers[i].node->op == "roi_align";
    auto section = has_boxes ? finder.of_boxes(i) : finder.of_images(i);
    i = section ? section->end_layer : i + 1;
    if (section) sections.push_back(std::move(*section));
  }
  return sections;
}

void set_rows(const Section& section, int64_t rows, std::vector<Shape>& shapes) {
  for (const WholeValue& whole : section.whole) shapes[whole.value].at(0) = rows;
}

}  // namespace pyquant
