#include "runtime/formats.h"

#include <algorithm>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

constexpr ValueId kNone = -1;

// Whether a layer only picks values, so that bytes keep their meaning, and can do so in quads.
bool keeps_bytes(const Node& node) {
  if (node.op == "pixel_shuffle") {
    const auto& factor = node.attribute<std::vector<int64_t>>("factor");
    return factor.at(0) * factor.at(1) == kQuad;
  }
  if (node.op == "upsample" || node.op == "upsample_like") return is_nearest(node);
  return node.op == "max_pool2d";
}

// By value of the graph: the only layer that reads it, or kNone.
std::vector<int64_t> only_readers(const std::vector<Layer>& layers, const Graph& graph) {
  std::vector<int64_t> reader(graph.num_values, kNone);
  std::vector<bool> is_read(graph.num_values);
  const auto read = [&](ValueId value, int64_t layer) {
    reader[value] = is_read[value] ? kNone : layer;
    is_read[value] = true;
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const ValueId value : layers[i].values_read()) read(value, static_cast<int64_t>(i));
  }
  for (const ValueId output : graph.outputs) read(output, kNone);
  return reader;
}

// Adds layers one by one, with the conversions that they need before them.
class Converter {
 public:
  explicit Converter(PlanContext& context) : context_(context), other_(context.shapes.size(), kNone) {}

  // The value `value` in a format; made by a layer of its own where it is there in the other one.
  ValueId in(ValueId value, Format format) {
    if (context_.formats[value] == format) return value;
    if (other_[value] == kNone) {
      other_[value] = static_cast<ValueId>(context_.shapes.size());
      context_.shapes.push_back(context_.shapes[value]);
      context_.formats.push_back(format);
      context_.parts.push_back(1);
      context_.ranges.push_back(context_.ranges[value]);
      layers_.push_back({.node = nullptr,
                         .inputs = {value},
                         .output = other_[value],
                         .op = format == Format::kBytes ? "quantize" : "dequantize"});
    }
    return other_[value];
  }

  void add(Layer layer) { layers_.push_back(std::move(layer)); }
  std::vector<Layer> layers() { return std::move(layers_); }

 private:
  PlanContext& context_;
  std::vector<ValueId> other_;  // by value of the graph: the same value in the other format
  std::vector<Layer> layers_;
};

}  // namespace

FormattedLayers assign_formats(std::vector<Layer> layers, const Graph& graph, PlanContext& context) {
  std::vector<bool> reads(layers.size());         // by layer: whether it reads bytes
  std::vector<bool> is_wanted(graph.num_values);  // by value: whether one of its readers does
  const std::vector<int64_t> reader = only_readers(layers, graph);
  const auto picks_few_of = [&](ValueId value, const Layer& layer) {
    const auto size = [&](ValueId v) { return checked_product(context.shapes[v]); };
    const bool leaves = std::find(graph.outputs.begin(), graph.outputs.end(), layer.output) != graph.outputs.end();
    return !leaves && keeps_bytes(*layer.node) && layer.inputs[0] == value && size(layer.output) < size(value);
  };
  for (size_t i = layers.size(); i-- > 0;) {
    const Layer& layer = layers[i];
    const bool keeps = keeps_bytes(*layer.node);
    reads[i] = keeps ? is_wanted[layer.output] : reads_bytes(layer, context);
    // A range that is not known before would have to be measured first.
    const bool can_write = keeps || (context.ranges[layer.output] && !has_curve(layer.activation));
    if (!reads[i]) continue;
    is_wanted[layer.inputs[0]] = true;
    // What picks a few of the values picks bytes, also for those that read floats: there are fewer to convert then.
    if (const int64_t next = reader[layer.output];
        next != kNone && can_write && picks_few_of(layer.output, layers[next])) {
      reads[next] = is_wanted[layer.output] = true;
      context.formats[layers[next].output] = Format::kBytes;
    }
    if (!is_wanted[layer.output] || !can_write) continue;
    context.formats[layer.output] = Format::kBytes;
    if (layer.residual >= 0) is_wanted[layer.residual] = true;
  }
  Converter converter(context);
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer& layer = layers[i];
    const Format format = reads[i] ? Format::kBytes : Format::kFloats;
    for (ValueId& input : layer.inputs) input = converter.in(input, format);
    if (layer.residual >= 0) layer.residual = converter.in(layer.residual, context.formats[layer.output]);
    if (reads[i] && keeps_bytes(*layer.node)) context.ranges[layer.output] = context.ranges[layer.inputs[0]];
    converter.add(std::move(layer));
  }
  std::vector<ValueId> outputs;
  for (const ValueId output : graph.outputs) outputs.push_back(converter.in(output, Format::kFloats));
  return {.layers = converter.layers(), .outputs = std::move(outputs)};
}

}  // namespace pyquant
