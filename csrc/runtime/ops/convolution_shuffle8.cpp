// The table path where tables fit registers: bytes of them are shuffled into the order of the outputs' codes.
//
// There are few centroids, whose products with a pixel's inputs are bytes, of a scale for each block and pixel.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "runtime/ops/block_inputs.h"
#include "runtime/ops/byte_convolution.h"
#include "runtime/ops/table_shares.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

// In fp32 multiply-adds, for a pixel: to make the table of a position, but for the products; to look up a register of
// places, and to add what is found for 16 outputs; and to finish 16 outputs, as far as that takes longer than on other
// paths, whose estimates leave it out.
constexpr double kTableCost = 7;
constexpr double kLookUpCost = 1.3;
constexpr double kAddCost = 1.3;
constexpr double kFinishCost = 6;

// In the same, of a quad of outputs with a residual: for a cache line that two threads take from each other. It decides
// how work is shared out, not which path is taken, for others do not count it.
constexpr double kLineCost = 150;

constexpr int64_t kFewPixels = 16;  // of a plane

ShuffledCodebooks codebooks_of(const Weight& weight) {
  return {.quads = nullptr,
          .bounds = nullptr,
          .entries = weight.centroids <= kMostShuffled / 2 ? kMostShuffled / 2 : kMostShuffled,
          .codebooks = weight.codebooks,
          .dim = BlockInputs::block_quads(weight),
          .blocks = weight.blocks_per_row(),
          .shift = 1};
}

bool applies(const Convolution& c) {
  if (!c.kernels->shuffles || !BlockInputs::exist(c) || c.weight->centroids > kMostShuffled) return false;
  const ShuffledCodebooks codebooks = codebooks_of(*c.weight);
  return codebooks.together() % codebooks.codebooks == 0 && codebooks.dim <= kMostShuffledQuads;
}

// What a thread's pixels cost, of each of which it computes so many outputs.
auto cost_of_share(const Convolution& c) {
  const ShuffledCodebooks codebooks = codebooks_of(*c.weight);
  const double products = 4 * c.kernels->tile8.step_cost * static_cast<double>(codebooks.dim);
  const double tables = products + kTableCost * static_cast<double>(codebooks.together());
  const double sum = kLookUpCost * 16 / static_cast<double>(codebooks.entries) + kAddCost;
  return [=, groups = static_cast<double>(codebooks.groups())](int64_t pixels, int64_t outputs) {
    const auto vectors = static_cast<double>(round_up(outputs, codebooks.entries) / 16);
    return static_cast<double>(pixels) * (groups * (tables + sum * vectors) + kFinishCost * vectors);
  };
}

// By pixels, or by outputs where few pixels are not worth the lines that threads would take from each other.
TableShares shares_of(const Convolution& c, int threads) {
  const auto cost = cost_of_share(c);
  const TableShares pixels{c, kShuffledPixels, 1, codebooks_of(*c.weight).entries, threads};
  if (threads == 1 || c.writes_parts || c.residual < 0) return pixels;
  const TableShares outputs = pixels.by_outputs();
  const double lines = kLineCost * static_cast<double>(ceil_div(c.weight->outputs, kQuad));
  return outputs.cost(cost) < pixels.cost(cost) + lines ? outputs : pixels;
}

// The largest weights of some centroids, without signs.
struct Bound {
  std::vector<float> weights;
  float sum;
};

// Of `families` of the centroids [K, d]: the two whose common bound is the least above theirs become one, until there
// are so few.
std::vector<Bound> bounds_of(const float* centroids, int64_t count, int64_t dim, int64_t families) {
  std::vector<Bound> bounds;
  for (int64_t k = 0; k < count; ++k) {
    Bound bound{.weights = {}, .sum = 0};
    for (int64_t i = 0; i < dim; ++i) bound.weights.push_back(std::fabs(centroids[k * dim + i]));
    bound.sum = std::accumulate(bound.weights.begin(), bound.weights.end(), 0.0f);
    bounds.push_back(std::move(bound));
  }
  const auto common_sum = [&](const Bound& a, const Bound& b) {
    float sum = 0;
    for (int64_t i = 0; i < dim; ++i) sum += std::max(a.weights[i], b.weights[i]);
    return sum;
  };
  while (std::ssize(bounds) > families) {
    float least = std::numeric_limits<float>::infinity();
    size_t first = 0, second = 0;
    for (size_t a = 0; a < bounds.size(); ++a) {
      for (size_t b = a + 1; b < bounds.size(); ++b) {
        const float growth = common_sum(bounds[a], bounds[b]) - std::max(bounds[a].sum, bounds[b].sum);
        if (growth < least) least = growth, first = a, second = b;
      }
    }
    Bound& kept = bounds[first];
    kept.sum = common_sum(kept, bounds[second]);
    for (int64_t i = 0; i < dim; ++i) kept.weights[i] = std::max(kept.weights[i], bounds[second].weights[i]);
    bounds.erase(bounds.begin() + static_cast<ptrdiff_t>(second));
  }
  return bounds;
}

class Shuffle8Step : public Step {
 public:
  Shuffle8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "shuffle8"),
        b_(convolution, context),
        inputs_(convolution, kShuffledPixels),
        units_(shares_of(convolution, context.threads).units()),
        codebooks_(codebooks_of(*convolution.weight)) {
    const Weight& weight = *b_.c.weight;
    write_codebooks(weight, b_.take_codebooks());
    b_.weight_sums.assign(weight.outputs, 0);  // the kernel takes the zero from each input
    b_.settle(codebooks_.shift, context);
    write_places(weight);
  }

  int64_t scratch_floats() const override {
    return inputs_.floats() + tables_floats() + sums_rows() * kShuffledPixels + b_.finish_floats(kShuffledPixels);
  }

  int64_t shared_floats() const override { return b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(state, state.shared);
    state.pool->parallel_for(static_cast<int64_t>(units_.size()),
                             [&](int64_t unit, int worker) { run_unit(units_[unit], state, state.scratch[worker]); });
  }

 private:
  int64_t sums_rows() const { return round_up(b_.c.weight->outputs, codebooks_.entries); }
  int64_t tables_floats() const { return round_up(shuffle8_bytes(codebooks_.groups()) / 4, 16); }

  // Of codebooks [M, K, d]: quads with centroids as lanes, and those of the largest weights of families of centroids.
  void write_codebooks(const Weight& weight, const AlignedBuffer<float>& values) {
    const int64_t books = weight.codebooks, centroids = weight.centroids, weights = weight.block.dim();
    const int64_t dim = codebooks_.dim, entries = codebooks_.entries, families = codebooks_.families();
    const AlignedBuffer<uint32_t> quads = BlockInputs::centroid_quads(weight, values);
    quads_ = AlignedBuffer<uint32_t>(books * dim * entries);
    std::fill_n(quads_.data(), quads_.size(), 0);
    for (int64_t k = 0; k < books * centroids; ++k) {
      for (int64_t i = 0; i < dim; ++i) {
        quads_[(k / centroids * dim + i) * entries + k % centroids] = quads[k * dim + i];
      }
    }
    AlignedBuffer<float> largest(books * families * weights);
    std::fill_n(largest.data(), largest.size(), 0.0f);
    float most = 0;  // that the weights of one bound add up to
    for (int64_t m = 0; m < books; ++m) {
      float* to = largest.data() + m * families * weights;
      for (const Bound& bound : bounds_of(values.data() + m * centroids * weights, centroids, weights, families)) {
        to = std::copy(bound.weights.begin(), bound.weights.end(), to);
        most = std::max(most, bound.sum);
      }
    }
    bounds_ = BlockInputs::centroid_quads(weight, largest);
    const int64_t most_bound = kMostInput * static_cast<int64_t>(most);
    while ((most_bound >> (codebooks_.shift + 7)) + 1 > kMostShuffledScale) ++codebooks_.shift;
    codebooks_.quads = quads_.data();
    codebooks_.bounds = bounds_.data();
  }

  void write_places(const Weight& weight) {
    const int64_t together = codebooks_.together();
    std::vector<uint8_t> places(together * weight.centroids);
    for (int64_t n = 0; n < std::ssize(places); ++n) {
      places[n] = shuffled_place(codebooks_.entries, n / weight.centroids, n % weight.centroids);
    }
    places_ = AlignedBuffer<uint8_t>(sums_rows() * codebooks_.groups() * together);
    std::fill_n(places_.data(), places_.size(), 0);
    const int64_t blocks = weight.blocks_per_row();
    for (int64_t o = 0; o < weight.outputs; ++o) {
      for (int64_t m = 0; m < weight.codebooks; ++m) {
        const uint16_t* const codes = weight.codes.data() + (m * weight.outputs + o) * blocks;
        uint8_t* to = places_.data() + place_at(codebooks_, o, 0);
        for (int64_t i = m, j = 0; j < blocks; ++j, i += weight.codebooks) {
          if (i >= together) i -= together, to += ShuffledCodebooks::kShuffledBytes;
          to[i] = places[i * weight.centroids + codes[j]];
        }
      }
    }
  }

  void run_unit(const TableUnit& unit, const RunState& state, float* scratch) const {
    float* const tables = scratch;
    auto* const sums = reinterpret_cast<int32_t*>(tables + tables_floats());
    float* const panel = tables + tables_floats() + sums_rows() * kShuffledPixels;
    float* const rest = panel + inputs_.floats();
    const uint32_t* const inputs = inputs_.write(b_.c, state, unit.pixel, unit.pixels, panel);
    const uint32_t zeros = state.quantization[b_.c.input].zeros();
    const uint8_t* const places = places_.data() + place_at(codebooks_, unit.output, 0);
    const auto run = [&](int64_t first, int64_t pixels, const FinishedTile8* tile) {
      b_.c.kernels->shuffle_tile8(codebooks_, places, round_up(unit.outputs, codebooks_.entries), inputs + first, zeros,
                                  pixels, tables, sums, tile);
    };
    // A register holds the sums of pixels of one plane: where these are few, sums are laid out by rows in less time.
    const ConvGeometry& g = b_.c.geometry;
    if (b_.writes_bytes() && (g.written_plane == g.pixels() || g.written_plane >= kFewPixels)) {
      b_.for_tiles(unit.output, unit.outputs, unit.pixel, unit.pixels, state.shared, state,
                   [&](const FinishedTile8& tile, int64_t first, int64_t pixels) { run(first, pixels, &tile); });
      return;
    }
    run(0, unit.pixels, nullptr);
    b_.finish(sums, kShuffledPixels, unit.output, unit.outputs, unit.pixel, unit.pixels, state.shared, state, rest);
  }

  ByteConvolution b_;
  BlockInputs inputs_;
  std::vector<TableUnit> units_;
  ShuffledCodebooks codebooks_;
  AlignedBuffer<uint32_t> quads_;
  AlignedBuffer<uint32_t> bounds_;
  AlignedBuffer<uint8_t> places_;  // as shuffle_tile8 takes them
};

double cost(const Convolution& c, int threads) {
  if (!applies(c)) return std::numeric_limits<double>::infinity();
  return shares_of(c, threads).cost(cost_of_share(c));
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Shuffle8Step>(layer, convolution, context);
}

}  // namespace

Path shuffle8_path() { return {.kernel = "shuffle8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
