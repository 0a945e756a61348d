#include "runtime/ops/convolution.h"

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

ConvGeometry geometry_of(const Layer& layer, const PlanContext& context) {
  const Node& node = *layer.node;
  const Weight& weight = *node.weight;
  const Shape& in = context.shapes[layer.inputs[0]];
  const Shape& out = context.shapes[layer.output];
  ConvGeometry g{.images = in[0], .channels = in[1]};
  if (node.op == "conv2d") {
    const auto& stride = node.attribute<std::vector<int64_t>>("stride");
    const auto& padding = node.attribute<std::vector<int64_t>>("padding");
    const auto& dilation = node.attribute<std::vector<int64_t>>("dilation");
    g.height = in.at(2);
    g.width = in.at(3);
    g.out_height = out.at(2);
    g.out_width = out.at(3);
    g.groups = node.attribute<int64_t>("groups");
    g.stride_y = stride.at(0);
    g.stride_x = stride.at(1);
    g.dilation_y = dilation.at(0);
    g.dilation_x = dilation.at(1);
    g.pad_top = padding.at(0);
    g.pad_left = padding.at(2);
  }
  if (g.groups < 1 || weight.channels * g.groups != g.channels || weight.outputs % g.groups != 0 ||
      out.at(0) != g.images || out.at(1) != weight.outputs) {
    throw Error("layer '" + node.name + "': its weight does not fit its input of " + std::to_string(g.channels) +
                " channels in " + std::to_string(g.groups) + " groups");
  }
  g.parts = context.parts[layer.inputs[0]];
  g.written_parts = context.parts[layer.output];
  g.written_plane = g.out_plane() / g.written_parts;
  if (is_pointwise(g, weight)) {  // each part is an image to it
    g.images *= g.parts;
    g.height /= g.parts;
    g.out_height /= g.parts;
    g.parts = 1;
  }
  return g;
}

// The first always applies.
std::array<Path, 15> all_paths() {
  return {direct_path(),  winograd2_path(), winograd4_path(), table_path(),    sparse_path(),
          shift_path(),   matrix_path(),    dot_path(),       lookup_path(),   direct8_path(),
          matrix8_path(), winograd8_path(), table8_path(),    shuffle8_path(), sparse8_path()};
}

struct Choice {
  Path path;
  std::vector<std::string> candidates;
};

// The cheapest path, or the one that is wanted; where `reads` is given, of those that read that format.
Choice choose(const Convolution& convolution, const std::string& layer, const PlanContext& context,
              std::optional<Format> reads = std::nullopt) {
  const std::string& wanted = context.wanted(layer);
  Choice choice{.path = all_paths()[0], .candidates = {}};
  double least = std::numeric_limits<double>::infinity();
  for (const Path& path : all_paths()) {
    if (path.reads == Format::kBytes && !context.fast) continue;
    double cost = path.cost(convolution, context.threads);
    if (path.reads == Format::kBytes) cost *= context.kernels->cost8();
    if (!std::isfinite(cost)) continue;
    choice.candidates.emplace_back(path.kernel);
    if (reads.value_or(path.reads) != path.reads) continue;
    const bool is_best = wanted.empty() ? cost < least : wanted == path.kernel;
    // Where the kernel that is wanted does not apply, a direct one runs: in integers, if it may.
    const bool is_fallback = !wanted.empty() && std::isinf(least) && path.kernel == std::string("direct8");
    if (is_best || is_fallback) choice.path = path;
    if (is_best) least = cost;
  }
  return choice;
}

// Pixels of a thread in a row of a value. Of fewer, most cache lines belong to two threads, which would only take them
// from each other earlier if they asked for them.
constexpr int64_t kLongRow = 64;

std::vector<float> or_filled(const std::vector<float>& values, int64_t size, float filler) {
  return values.empty() ? std::vector<float>(size, filler) : values;
}

}  // namespace

Convolution::Convolution(const Layer& layer, const PlanContext& context)
    : kernels(context.kernels),
      weight(layer.node->weight),
      geometry(geometry_of(layer, context)),
      patches(geometry, *weight, kernels),
      scale(or_filled(layer.node->scale, weight->outputs, 1.0f)),
      bias(or_filled(layer.node->bias, weight->outputs, 0.0f)),
      activation(layer.activation),
      input(layer.inputs[0]),
      output(layer.output),
      residual(layer.residual),
      writes_parts(context.parts[output] > 1),
      expects_residual(residual >= 0 && context.threads > 1 && !writes_parts &&
                       geometry.written_plane >= kLongRow * context.threads) {}

void Convolution::finish(const float* tile, int64_t pitch, int64_t first_output, int64_t rows, int64_t pixel,
                         int64_t count, const RunState& state) const {
  finish(tile, pitch, &scale[first_output], &bias[first_output], first_output, rows, pixel, count, state);
}

void Convolution::finish(const float* tile, int64_t pitch, const float* row_scale, const float* row_bias,
                         int64_t first_output, int64_t rows, int64_t pixel, int64_t count,
                         const RunState& state) const {
  const Clamp clamp = clamp_of(activation);
  const int64_t out_pitch = geometry.written_plane;
  geometry.for_written(pixel, count, [&](int64_t plane, int64_t first, int64_t run) {
    const int64_t at = (plane * weight->outputs + first_output) * out_pitch + first;
    float* const out = state.values[output] + at;
    kernels->finish_tile(tile, pitch, row_scale, row_bias, residual < 0 ? nullptr : state.values[residual] + at,
                         clamp.low, clamp.high, out, out_pitch, rows, run);
    if (has_curve(activation)) {
      for (int64_t r = 0; r < rows; ++r) apply_curve(kernels->curves, activation, out + r * out_pitch, run);
    }
    tile += run;
  });
}

void Convolution::expect(int64_t first_output, int64_t rows, int64_t pixel, int64_t count,
                         const RunState& state) const {
  const int64_t out_pitch = geometry.written_plane;
  geometry.for_written(pixel, count, [&](int64_t plane, int64_t first, int64_t run) {
    const int64_t at = (plane * weight->outputs + first_output) * out_pitch + first;
    expect_rows<true>(state.values[output] + at, out_pitch, rows, run);
    if (residual >= 0 && state.values[residual] != state.values[output]) {
      expect_rows<false>(state.values[residual] + at, out_pitch, rows, run);
    }
  });
}

void Convolution::decode(int64_t first_output, int64_t rows, float* weights, int64_t pitch) const {
  if (!weight->has_codes()) {
    const int64_t depth = weight->depth();
    for (int64_t o = first_output; o < first_output + rows; ++o, weights += pitch) {
      kernels->decode_bytes(weight->bytes.data() + o * depth, weight->units[o], weights, depth);
    }
    return;
  }
  const Codebooks codebooks{.values = weight->codebook.data(),
                            .codebooks = weight->codebooks,
                            .centroids = weight->centroids,
                            .dim = weight->block.dim()};
  const int64_t blocks = weight->blocks_per_row();
  kernels->decode_rows(codebooks, weight->codes.data() + first_output * blocks, weight->outputs * blocks, blocks,
                       weights, pitch, rows, blocks);
}

SparseRows<float> Convolution::sparse_rows(const std::vector<int32_t>& at) const {
  const int64_t depth = weight->depth();
  if (!weight->dense.empty()) return {weight->dense.data(), weight->outputs, depth, at};
  AlignedBuffer<float> decoded(weight->outputs * depth);
  decode(0, weight->outputs, decoded.data(), depth);
  return {decoded.data(), weight->outputs, depth, at};
}

KeptWeights::Values<float> Convolution::kept_rows(const PlanContext& context) const {
  return context.kept->get<float>(weight, "rows", weight->outputs * weight->depth(),
                                  [&](float* rows) { decode(0, weight->outputs, rows, weight->depth()); });
}

std::vector<std::string> kernel_names(bool fast) {
  std::vector<std::string> names;
  for (const Path& path : all_paths()) {
    if (fast || path.reads == Format::kFloats) names.emplace_back(path.kernel);
  }
  return names;
}

bool reads_bytes(const Layer& layer, const PlanContext& context) {
  if (!context.fast || layer.node->weight == nullptr) return false;
  return choose(Convolution(layer, context), layer.node->name, context).path.reads == Format::kBytes;
}

std::unique_ptr<Step> plan_convolution(const Layer& layer, const PlanContext& context) {
  const Convolution convolution(layer, context);
  // Formats were assigned for all rows of a section, of which there may be fewer now: another path may be cheaper.
  const Format format = context.formats[layer.inputs[0]];
  Choice choice = choose(convolution, layer.node->name, context, format);
  if (choice.path.reads != format) throw Error("layer '" + layer.node->name + "': no kernel reads its input");
  auto step = choice.path.make(layer, convolution, context);
  step->set_candidates(std::move(choice.candidates));
  return step;
}

}  // namespace pyquant
