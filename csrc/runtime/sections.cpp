#include "runtime/sections.h"

#include <algorithm>
#include <optional>

#include "base/sizes.h"

namespace pyquant {
namespace {

// Floats of the largest value of a chunk, about: 16 MB keep kernels busy, and are little beside a backbone's values.
constexpr int64_t kChunkFloats = int64_t{1} << 22;
constexpr int64_t kRowsTogether = 8;  // chunks are multiples of it where they can be: kernels take rows by vectors

int64_t row_size(Shape shape, Format format) {
  shape.at(0) = 1;
  return size_of(shape, format);
}

// Operations of several rows at once, or of all: what follows them is not part of a section.
bool joins_rows(const Layer& layer) {
  return layer.node != nullptr && (layer.node->op == "detections" || layer.node->op == "select_masks" ||
                                   layer.node->op == "roi_align" || layer.node->op == "proposals");
}

bool is_view(const Layer& layer) { return layer.node != nullptr && layer.node->op == "flatten"; }

template <typename T>
bool contains(const std::vector<T>& values, const T& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

// The section that begins with the roi_align at `first`; none where a value that is there as a whole would be a view.
std::optional<Section> section_at(size_t first, const std::vector<Layer>& layers,
                                  const std::vector<ValueId>& graph_outputs, const std::vector<Shape>& shapes,
                                  const std::vector<Format>& formats) {
  const ValueId boxes = layers[first].inputs[1];
  Section section{.first_layer = first,
                  .end_layer = first + 1,
                  .rows = shapes[boxes].at(0),
                  .chunk = 0,
                  .boxes = boxes,
                  .box_columns = shapes[boxes].at(1),
                  .inner = {layers[first].output},
                  .whole = {{.value = boxes, .row_size = shapes[boxes].at(1), .is_written = false}}};
  for (size_t i = first + 1; i < layers.size() && !joins_rows(layers[i]); ++i) {
    const Layer& layer = layers[i];
    bool is_inner = layer.residual < 0 || contains(section.inner, layer.residual);
    for (const ValueId input : layer.inputs) is_inner = is_inner && contains(section.inner, input);
    if (!is_inner || shapes[layer.output].at(0) != section.rows) break;
    section.inner.push_back(layer.output);
    section.end_layer = i + 1;
  }
  int64_t largest = 1;
  for (const ValueId value : section.inner) largest = std::max(largest, row_size(shapes[value], Format::kFloats));
  const int64_t fitting = std::max<int64_t>(kChunkFloats / largest, 1);
  const int64_t even = fitting < kRowsTogether ? fitting : fitting / kRowsTogether * kRowsTogether;
  section.chunk = std::min(section.rows, even);

  const auto is_read_outside = [&](ValueId value) {
    if (contains(graph_outputs, value)) return true;
    for (size_t i = section.end_layer; i < layers.size(); ++i) {
      if (contains(layers[i].inputs, value) || layers[i].residual == value) return true;
    }
    return false;
  };
  std::vector<ValueId> inner;
  for (const ValueId value : section.inner) {
    if (is_read_outside(value)) {
      section.whole.push_back(
          {.value = value, .row_size = row_size(shapes[value], formats[value]), .is_written = true});
    } else {
      inner.push_back(value);
    }
  }
  section.inner = std::move(inner);
  for (size_t i = first; i < section.end_layer; ++i) {
    const auto is_whole = [&](ValueId value) { return !contains(section.inner, value); };
    if (is_view(layers[i]) && (is_whole(layers[i].output) || is_whole(layers[i].inputs[0]))) return std::nullopt;
  }
  return section;
}

}  // namespace

std::vector<Section> find_sections(const std::vector<Layer>& layers, const std::vector<ValueId>& graph_outputs,
                                   const std::vector<Shape>& shapes, const std::vector<Format>& formats) {
  std::vector<Section> sections;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].node == nullptr || layers[i].node->op != "roi_align") continue;
    if (auto section = section_at(i, layers, graph_outputs, shapes, formats)) sections.push_back(std::move(*section));
  }
  return sections;
}

void set_rows(const Section& section, int64_t rows, std::vector<Shape>& shapes) {
  for (const WholeValue& whole : section.whole) shapes[whole.value].at(0) = rows;
}

}  // namespace pyquant
