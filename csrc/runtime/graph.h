// A network as the core sees it: operations on numbered values, with their weights; immutable once built.
//
// Dimensions: O outputs · C inputs of an output (per group) · K centroids · d weights of a block · J blocks per output
//             row · M additive codebooks
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/aligned_buffer.h"

namespace pyquant {

using Shape = std::vector<int64_t>;
using ValueId = int32_t;

// A block of weights: channels x kernel rows x kernel columns.
struct Block {
  int64_t channels = 1;
  int64_t rows = 1;
  int64_t columns = 1;
  int64_t dim() const { return channels * rows * columns; }
};

// In which order the weights of an output are stored: a sequence of J blocks of d weights, block positions by channels,
// kernel rows, kernel columns; so are weights within one. A linear layer's kernel is 1x1.
struct WeightOrder {
  int64_t channels = 0;
  int64_t kernel_rows = 1;
  int64_t kernel_columns = 1;
  Block block = {};

  int64_t blocks_per_row() const {
    return ceil_div(channels, block.channels) * ceil_div(kernel_rows, block.rows) *
           ceil_div(kernel_columns, block.columns);
  }
  int64_t depth() const { return blocks_per_row() * block.dim(); }
};

// The weight of a convolution [O, C, kernel_rows, kernel_columns].
struct Weight : WeightOrder {
  int64_t outputs = 0;

  // Weights without codes, of which one of both is there: dense [O, J * d], or bytes [O, J * d], from -127 to 127, of
  // which those of output o are so many units[o].
  AlignedBuffer<float> dense;
  AlignedBuffer<int8_t> bytes;
  std::vector<float> units;

  // Of these: how many are not zero, and how many quads of channels, each at one place of the kernel.
  int64_t nonzero = 0;
  int64_t nonzero_quads = 0;

  int64_t codebooks = 0;          // M; 0: there are no codes
  int64_t centroids = 0;          // K
  AlignedBuffer<uint16_t> codes;  // [M, O, J], each < K
  AlignedBuffer<float> codebook;  // [M, K, d]

  bool has_codes() const { return codebooks > 0; }

  // To be called when `dense` or `bytes` are complete.
  void count_zeros();
};

using Attribute = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;

struct Node {
  std::string op;
  std::string name;
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  std::map<std::string, Attribute> attributes;
  std::shared_ptr<const Weight> weight;  // null for operations without one
  std::vector<float> scale;              // [O], or empty: 1
  std::vector<float> bias;               // [O], or empty: 0

  ValueId output() const { return outputs.front(); }

  template <typename T>
  const T& attribute(const std::string& key) const {
    const auto found = attributes.find(key);
    if (found == attributes.end() || !std::holds_alternative<T>(found->second)) {
      throw Error("layer '" + name + "' (" + op + "): attribute '" + key + "' is missing or of another type");
    }
    return std::get<T>(found->second);
  }
};

struct Graph {
  std::vector<ValueId> inputs;
  std::vector<Node> nodes;  // in an order in which they can run
  std::vector<ValueId> outputs;
  int32_t num_values = 0;
};

}  // namespace pyquant
