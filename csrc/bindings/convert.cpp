#include "bindings/convert.h"

#include <pybind11/stl.h>

#include "codec/packing.h"
#include "runtime/grid_weights.h"

namespace pyquant {
namespace {

Attribute attribute_from_python(const py::handle& value) {
  // bool first: Python's bool is an int.
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  if (py::isinstance<py::int_>(value)) return value.cast<int64_t>();
  if (py::isinstance<py::float_>(value)) return value.cast<double>();
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  const auto items = value.cast<py::sequence>();
  if (items.size() > 0 && py::isinstance<py::float_>(items[0])) return value.cast<std::vector<double>>();
  return value.cast<std::vector<int64_t>>();
}

// Lay a dense weight [O, C, kh, kw] out in blocks of one channel's whole kernel, which leaves it as it is.
std::shared_ptr<const Weight> weight_from_python(const py::dict& described) {
  auto weight = std::make_shared<Weight>();
  const auto shape = described["shape"].cast<std::vector<int64_t>>();
  weight->outputs = shape.at(0);
  weight->channels = shape.at(1);
  if (shape.size() == 4) {
    weight->kernel_rows = shape[2];
    weight->kernel_columns = shape[3];
  }
  if (described.contains("dense")) {
    const auto dense = described["dense"].cast<Array<float>>();
    weight->block = {.channels = 1, .rows = weight->kernel_rows, .columns = weight->kernel_columns};
    if (dense.size() != checked_multiply(weight->outputs, weight->depth())) throw Error("a dense weight's size is off");
    weight->dense = AlignedBuffer<float>(as_span(dense));
    weight->count_zeros();
    return weight;
  }
  if (described.contains("step")) {
    weight->block = {.channels = 1, .rows = weight->kernel_rows, .columns = weight->kernel_columns};
    const auto codes = described["codes"].cast<Array<uint8_t>>();
    const auto step = described["step"].cast<Array<float>>();
    const auto zero = described["zero"].cast<Array<uint8_t>>();
    const Grids grids{
        .packed = as_span(codes), .bits = described["bits"].cast<int>(), .step = as_span(step), .zero = as_span(zero)};
    if (described.contains("mask")) {
      const auto mask = described["mask"].cast<Array<uint8_t>>();
      const auto patterns = described["patterns"].cast<Array<uint8_t>>();
      if (patterns.ndim() != 2) throw Error("the shape of a mask's patterns is off");
      decode_sparse_grids({.packed = as_span(mask), .patterns = as_span(patterns), .unit = patterns.shape(1)}, grids,
                          *weight);
    } else {
      decode_grids(grids, *weight);
    }
    weight->count_zeros();
    return weight;
  }
  const auto block = described["block"].cast<std::vector<int64_t>>();
  const auto packed = described["codes"].cast<Array<uint8_t>>();
  const auto codebook = described["codebook"].cast<Array<float>>();
  const auto bits = described["bits"].cast<int>();
  weight->block = {.channels = block.at(0), .rows = block.at(1), .columns = block.at(2)};
  if (codebook.ndim() != 3 || codebook.shape(2) != weight->block.dim()) throw Error("a codebook's shape is off");
  weight->codebooks = codebook.shape(0);
  weight->centroids = codebook.shape(1);
  weight->codebook = AlignedBuffer<float>(as_span(codebook));
  const int64_t sizes[] = {weight->codebooks, weight->outputs, weight->blocks_per_row()};
  weight->codes = AlignedBuffer<uint16_t>(checked_product(sizes));
  if (bits < 1 || bits > kMaxCodeBits || packed.size() != packed_bytes(weight->codes.size(), bits)) {
    throw Error("packed codes hold " + std::to_string(packed.size()) + " bytes, which does not fit " +
                std::to_string(weight->codes.size()) + " codes of " + std::to_string(bits) + " bits");
  }
  const std::span<uint16_t> codes{weight->codes.data(), static_cast<size_t>(weight->codes.size())};
  unpack_codes(as_span(packed), bits, codes);
  for (const uint16_t code : codes) {
    if (code >= weight->centroids) throw Error("a code is not below the number of centroids");
  }
  return weight;
}

// A per-output vector, or nothing for None.
std::vector<float> epilogue_from_python(const py::object& value) {
  if (value.is_none()) return {};
  const auto array = value.cast<Array<float>>();
  return {array.data(), array.data() + array.size()};
}

void check_node(const Node& node, int32_t num_values) {
  for (const auto* ids : {&node.inputs, &node.outputs}) {
    for (const ValueId id : *ids) {
      if (id < 0 || id >= num_values) throw Error("layer '" + node.name + "' uses a value that does not exist");
    }
  }
  if (node.inputs.empty() || node.outputs.size() != 1) throw Error("layer '" + node.name + "' is not connected");
  for (const auto* values : {&node.scale, &node.bias}) {
    if (node.weight && !values->empty() && static_cast<int64_t>(values->size()) != node.weight->outputs) {
      throw Error("layer '" + node.name + "': scale and bias need a value for each output");
    }
  }
}

}  // namespace

std::vector<std::optional<Quantization>> ranges_from_python(const std::optional<Array<float>>& ranges,
                                                            int32_t num_values) {
  std::vector<std::optional<Quantization>> result(num_values);
  if (!ranges) return result;
  if (ranges->ndim() != 2 || ranges->shape(0) != num_values || ranges->shape(1) != 2) {
    throw Error("activation ranges: expected a lowest and a highest number for each of " + std::to_string(num_values) +
                " values");
  }
  for (int32_t value = 0; value < num_values; ++value) {
    result[value] = quantization_of(ranges->at(value, 0), ranges->at(value, 1));
  }
  return result;
}

Graph graph_from_python(const py::list& weights, const py::list& nodes, std::vector<ValueId> inputs,
                        std::vector<ValueId> outputs, int32_t num_values) {
  std::vector<std::shared_ptr<const Weight>> shared;
  for (const py::handle& weight : weights) shared.push_back(weight_from_python(weight.cast<py::dict>()));

  Graph graph{.inputs = std::move(inputs), .nodes = {}, .outputs = std::move(outputs), .num_values = num_values};
  for (const py::handle& item : nodes) {
    const auto described = item.cast<py::dict>();
    Node node{.op = described["op"].cast<std::string>(),
              .name = described["name"].cast<std::string>(),
              .inputs = described["inputs"].cast<std::vector<ValueId>>(),
              .outputs = described["outputs"].cast<std::vector<ValueId>>(),
              .attributes = {},
              .weight = nullptr,
              .scale = epilogue_from_python(described["scale"]),
              .bias = epilogue_from_python(described["bias"])};
    for (const auto& [key, value] : described["attributes"].cast<py::dict>()) {
      node.attributes[key.cast<std::string>()] = attribute_from_python(value);
    }
    if (!described["weight"].is_none()) node.weight = shared.at(described["weight"].cast<size_t>());
    check_node(node, num_values);
    graph.nodes.push_back(std::move(node));
  }
  return graph;
}

}  // namespace pyquant
