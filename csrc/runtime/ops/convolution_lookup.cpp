// The lookup path: the products of one pixel's blocks with all centroids are tabulated, and outputs add up numbers.
//
// That is the table path where a row of a table would have one pixel, of a linear layer for one image: centroids lie
// side by side instead. To load a number from tables that the cache holds takes less time than to decode a block and
// multiply.
#include <algorithm>
#include <limits>

#include "runtime/ops/convolution.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

// In vector multiply-adds: one of making tables, and looking up and adding a number.
constexpr double kBuildCost = 2;
constexpr double kLookUpCost = 1.8;

// Where tables of a few blocks are large, they lie in the second-level cache: fewer would be made with too many calls.
constexpr int64_t kFewestBlocks = 8;

// How the blocks of a row are tabulated, as many in a pass as stay near: [M, chunks of
// centroids, blocks, table_pixels], where a chunk is of as many centroids as a table row of the table path has pixels.
struct LookupTables {
  explicit LookupTables(const Convolution& c)
      : width(c.kernels->table_pixels),
        chunks(c.weight->codebooks * ceil_div(c.weight->centroids, width)),
        blocks(c.weight->blocks_per_row()),
        per_pass(std::min(std::max(near_table_bytes() / block_bytes(), kFewestBlocks), blocks)) {}

  // Of the tables of a block.
  int64_t block_bytes() const { return chunks * width * static_cast<int64_t>(sizeof(float)); }

  // Whether all numbers of a pass can be told apart.
  bool fit() const { return per_pass * chunks * width <= UINT16_MAX + 1; }

  // Call body(first, their number) for the blocks of each pass.
  template <typename Body>
  void for_passes(const Body& body) const {
    for (int64_t first = 0; first < blocks; first += per_pass) body(first, std::min(per_pass, blocks - first));
  }

  int64_t width;
  int64_t chunks;  // of all codebooks
  int64_t blocks;
  int64_t per_pass;
};

// Four at a time, whose additions do not wait for each other.
float look_up(const uint16_t* at, int64_t count, const float* tables) {
  float sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t n = 0; n < 4; ++n) sums[n] += tables[at[i + n]];
  }
  for (; i < count; ++i) sums[0] += tables[at[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

class LookupStep : public Step {
 public:
  LookupStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "lookup"),
        c_(convolution),
        tables_(convolution),
        range_(ceil_div(c_.weight->outputs, context.threads)) {
    write_centroids();
    write_places();
  }

  int64_t scratch_floats() const override { return inputs_floats() + table_floats() + range_; }

  void run(const RunState& state) const override {
    const int64_t outputs = c_.weight->outputs;
    state.pool->parallel_for(ceil_div(outputs, range_), [&](int64_t unit, int worker) {
      const int64_t output = unit * range_;
      for (int64_t image = 0; image < c_.geometry.images; ++image) {
        run_outputs(image, output, std::min(range_, outputs - output), state, state.scratch[worker]);
      }
    });
  }

 private:
  int64_t inputs_floats() const { return round_up(c_.weight->depth(), 16); }
  int64_t table_floats() const { return tables_.per_pass * tables_.chunks * tables_.width; }

  // Centroids as table_build takes a panel: [M, chunks, d, width].
  void write_centroids() {
    const Weight& weight = *c_.weight;
    const int64_t dim = weight.block.dim(), width = tables_.width, chunks = tables_.chunks / weight.codebooks;
    centroids_ = AlignedBuffer<float>(tables_.chunks * dim * width);
    std::fill_n(centroids_.data(), centroids_.size(), 0.0f);
    for (int64_t m = 0; m < weight.codebooks; ++m) {
      for (int64_t k = 0; k < weight.centroids; ++k) {
        const float* const centroid = weight.codebook.data() + (m * weight.centroids + k) * dim;
        float* const to = centroids_.data() + (m * chunks + k / width) * dim * width + k % width;
        for (int64_t i = 0; i < dim; ++i) to[i * width] = centroid[i];
      }
    }
  }

  // For each pass [O, its blocks, M]: where a code's number lies in the tables.
  void write_places() {
    const Weight& weight = *c_.weight;
    const int64_t width = tables_.width, chunks = tables_.chunks / weight.codebooks;
    places_ = AlignedBuffer<uint16_t>(weight.outputs * tables_.blocks * weight.codebooks);
    uint16_t* place = places_.data();
    tables_.for_passes([&](int64_t first, int64_t count) {
      for (int64_t o = 0; o < weight.outputs; ++o) {
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t m = 0; m < weight.codebooks; ++m) {
            const int64_t code = weight.codes[(m * weight.outputs + o) * tables_.blocks + first + j];
            const int64_t row = (m * chunks + code / width) * count + j;
            *place++ = static_cast<uint16_t>(row * width + code % width);
          }
        }
      }
    });
  }

  void run_outputs(int64_t image, int64_t output, int64_t outputs, const RunState& state, float* scratch) const {
    const Weight& weight = *c_.weight;
    const int64_t dim = weight.block.dim(), width = tables_.width;
    float* const tables = scratch;
    float* const inputs = tables + table_floats();
    float* const sums = inputs + inputs_floats();
    // Blocks of 1x1 kernels follow the channels: a tail block's padding lies behind the last of them.
    std::copy_n(state.values[c_.input] + image * weight.channels, weight.channels, inputs);
    std::fill(inputs + weight.channels, inputs + weight.depth(), 0.0f);
    std::fill_n(sums, outputs, 0.0f);
    tables_.for_passes([&](int64_t first, int64_t count) {
      for (int64_t chunk = 0; chunk < tables_.chunks; ++chunk) {
        c_.kernels->table_build(inputs + first * dim, count, dim, centroids_.data() + chunk * dim * width, width,
                                tables + chunk * count * width);
      }
      const int64_t positions = count * weight.codebooks;
      const uint16_t* at = places_.data() + first * weight.codebooks * weight.outputs + output * positions;
      for (int64_t o = 0; o < outputs; ++o, at += positions) sums[o] += look_up(at, positions, tables);
    });
    c_.finish(sums, 1, output, outputs, image, 1, state);
  }

  Convolution c_;
  LookupTables tables_;
  int64_t range_;  // outputs of a thread
  AlignedBuffer<float> centroids_;
  AlignedBuffer<uint16_t> places_;
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (!weight.has_codes() || !c.is_vector()) return std::numeric_limits<double>::infinity();
  const LookupTables tables(c);
  if (!tables.fit()) return std::numeric_limits<double>::infinity();
  const auto build = static_cast<double>(tables.chunks * tables.width / c.kernels->lanes * weight.depth());
  const auto looked_up = static_cast<double>(ceil_div(weight.outputs, threads) * tables.blocks * weight.codebooks);
  return static_cast<double>(c.geometry.images) * (kBuildCost * build + kLookUpCost * looked_up);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<LookupStep>(layer, convolution, context);
}

}  // namespace

Path lookup_path() { return {.kernel = "lookup", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
