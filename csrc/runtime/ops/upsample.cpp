// Upsampling by the nearest pixel or by bilinear interpolation, with PyTorch's rule for source positions.
#include <algorithm>
#include <cmath>

#include "runtime/interpolation.h"
#include "runtime/ops/ops.h"

namespace pyquant {
namespace {

// Source pixels per output pixel: as given, or the ratio of the sizes.
double step_of(int64_t in, int64_t out, double factor, bool align_corners) {
  if (align_corners) return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0;
  return factor > 0 ? 1 / factor : static_cast<double>(in) / static_cast<double>(out);
}

std::vector<Source> sources_of(int64_t in, int64_t out, double factor, bool bilinear, bool align_corners) {
  // PyTorch computes positions in fp32; doing otherwise could pick another pixel where a position is nearly whole.
  const auto step = static_cast<float>(step_of(in, out, factor, bilinear && align_corners));
  std::vector<Source> sources;
  for (int64_t i = 0; i < out; ++i) {
    const auto at = static_cast<float>(i);
    // Equal and doubled sizes are cases of their own in PyTorch, whatever the factor that led to them.
    if (out == in) {
      sources.push_back({i, i, 0});
    } else if (!bilinear) {
      const int64_t nearest = out == 2 * in ? i / 2 : pixel_at(at * step, in);
      sources.push_back({nearest, nearest, 0});
    } else {
      sources.push_back(source_at(align_corners ? at * step : position_of(i, step), in));
    }
  }
  return sources;
}

// Where the pixels of an upsampled plane come from.
struct Upsampling {
  Upsampling(const Layer& layer, const PlanContext& context) {
    const Node& node = *layer.node;
    const Shape& in = context.shapes[layer.inputs[0]];
    const Shape& out = context.shapes[layer.output];
    const std::vector<double> by_size = {0, 0};
    const auto& factor = node.op == "upsample_like" ? by_size : node.attribute<std::vector<double>>("factor");
    const bool bilinear = !is_nearest(node);
    const bool align_corners = node.attribute<bool>("align_corners");
    images = in.at(0);
    channels = in.at(1);
    height = in.at(2);
    width = in.at(3);
    rows = sources_of(height, out.at(2), factor.at(0), bilinear, align_corners);
    columns = sources_of(width, out.at(3), factor.at(1), bilinear, align_corners);
  }

  int64_t in_plane() const { return height * width; }
  int64_t out_plane() const { return static_cast<int64_t>(rows.size() * columns.size()); }

  int64_t images, channels, height, width;
  std::vector<Source> rows, columns;
};

class BilinearStep : public Step {
 public:
  BilinearStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "plane"),
        from_(layer, context),
        input_(layer.inputs[0]),
        output_(layer.output) {}

  void run(const RunState& state) const override {
    state.pool->parallel_for(from_.images * from_.channels, [&](int64_t plane, int) {
      const float* in = state.values[input_] + plane * from_.in_plane();
      float* out = state.values[output_] + plane * from_.out_plane();
      for (const Source& y : from_.rows) {
        const float* top = in + y.first * from_.width;
        const float* bottom = in + y.second * from_.width;
        for (const Source& x : from_.columns) {
          const float upper = top[x.first] * (1 - x.weight) + top[x.second] * x.weight;
          const float lower = bottom[x.first] * (1 - x.weight) + bottom[x.second] * x.weight;
          *out++ = y.weight == 0 ? upper : upper * (1 - y.weight) + lower * y.weight;
        }
      }
    });
  }

 private:
  Upsampling from_;
  ValueId input_, output_;
};

// Pixels are copied: floats, or quads, whose bytes keep their meaning.
class NearestStep : public Step {
 public:
  NearestStep(const Layer& layer, const PlanContext& context)
      : Step(layer.node->name, layer.op, "plane"),
        from_(layer, context),
        input_(layer.inputs[0]),
        output_(layer.output),
        is_bytes_(context.formats[output_] == Format::kBytes) {}

  void run(const RunState& state) const override {
    if (is_bytes_) {
      state.quantization[output_] = state.quantization[input_];
      copy(state, state.quads(input_), state.quads(output_), ceil_div(from_.channels, kQuad));
    } else {
      copy(state, state.values[input_], state.values[output_], from_.channels);
    }
  }

 private:
  template <typename T>
  void copy(const RunState& state, const T* in, T* out, int64_t planes) const {
    const auto columns = static_cast<int64_t>(from_.columns.size());
    state.pool->parallel_for(from_.images * planes, [&](int64_t plane, int) {
      T* row = out + plane * from_.out_plane();
      int64_t before = -1;  // the source of the row before
      for (const Source& y : from_.rows) {
        if (y.first == before) {
          std::copy_n(row - columns, columns, row);
        } else {
          const T* source = in + plane * from_.in_plane() + y.first * from_.width;
          for (int64_t x = 0; x < columns; ++x) row[x] = source[from_.columns[x].first];
        }
        before = y.first;
        row += columns;
      }
    });
  }

  Upsampling from_;
  ValueId input_, output_;
  bool is_bytes_;
};

}  // namespace

bool is_nearest(const Node& node) { return node.attribute<std::string>("mode") == "nearest"; }

std::unique_ptr<Step> plan_upsample(const Layer& layer, const PlanContext& context) {
  if (is_nearest(*layer.node)) return std::make_unique<NearestStep>(layer, context);
  return std::make_unique<BilinearStep>(layer, context);
}

}  // namespace pyquant
