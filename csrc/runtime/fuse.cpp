#include "runtime/fuse.h"

#include <algorithm>

namespace pyquant {
namespace {

constexpr int64_t kNoLayer = -1;

// The values that a node reads: not those of which it needs the shape alone, which need not be there.
std::vector<ValueId> inputs_read(const Node& node) {
  if (node.op == "upsample_like") return {node.inputs[0]};
  return node.inputs;
}

}  // namespace

std::vector<Layer> fuse_layers(const Graph& graph, PlanContext& context) {
  const std::vector<Shape>& shapes = context.shapes;
  std::vector<int> uses(graph.num_values, 0);
  for (const Node& node : graph.nodes) {
    for (const ValueId value : inputs_read(node)) ++uses[value];
  }
  for (const ValueId value : graph.outputs) ++uses[value];

  std::vector<Layer> layers;
  std::vector<bool> fused_away;                               // by position in layers
  std::vector<int64_t> producer(graph.num_values, kNoLayer);  // by value
  // The layer that writes `value`, if it has an epilogue that may still grow and nobody else reads the value.
  const auto open_producer = [&](ValueId value) {
    const int64_t at = producer[value];
    if (at == kNoLayer || uses[value] != 1) return kNoLayer;
    const Layer& layer = layers[at];
    return layer.node->weight && layer.activation == Activation::kNone ? at : kNoLayer;
  };
  // The layer that writes `value` if it gives nothing but the pixels of an open_producer() other places.
  const auto shuffler = [&](ValueId value) {
    const int64_t at = producer[value];
    if (at == kNoLayer || uses[value] != 1 || layers[at].node->op != "pixel_shuffle") return kNoLayer;
    return open_producer(layers[at].inputs[0]) != kNoLayer ? at : kNoLayer;
  };
  const auto append = [&](Layer layer) {
    producer[layer.output] = static_cast<int64_t>(layers.size());
    layers.push_back(std::move(layer));
    fused_away.push_back(false);
  };

  for (const Node& node : graph.nodes) {
    Layer layer{.node = &node, .inputs = inputs_read(node), .output = node.output(), .op = node.op};
    int64_t into = kNoLayer;
    ValueId residual = -1;
    if (const auto activation = activation_of(node.op)) {
      if (into = open_producer(node.inputs[0]); into != kNoLayer) {
        layer = layers[into];
        layer.activation = *activation;
      } else if (const int64_t at = shuffler(node.inputs[0]); at != kNoLayer) {
        Layer& before = layers[producer[layers[at].inputs[0]]];
        before.activation = *activation;
        before.op += "+" + node.op;
        context.ranges[before.output] = context.ranges[node.output()];
        layers[at].output = node.output();
        producer[node.output()] = at;
        continue;
      }
    } else if (node.op == "add" && node.inputs[0] != node.inputs[1] &&
               shapes[node.inputs[0]] == shapes[node.inputs[1]]) {
      // The later of two producers: it runs last anyway, so neither's input has to live longer.
      const int64_t first = open_producer(node.inputs[0]);
      const int64_t second = open_producer(node.inputs[1]);
      into = std::max(first, second);
      if (into != kNoLayer && layers[into].residual < 0) {
        residual = into == first ? node.inputs[1] : node.inputs[0];
        layer = layers[into];
        layer.residual = residual;
      } else {
        into = kNoLayer;
      }
    }
    if (into != kNoLayer) {
      layer.output = node.output();
      layer.op += "+" + node.op;
      fused_away[into] = true;
    }
    append(std::move(layer));
  }

  std::vector<Layer> kept;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!fused_away[i]) kept.push_back(std::move(layers[i]));
  }
  return kept;
}

}  // namespace pyquant
