#include "learn/codebook_descent.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "kernels/select.h"
#include "learn/add.h"

namespace pyquant {
namespace {

constexpr float kInfinite = std::numeric_limits<float>::infinity();

// Outputs that are looked at together: what is known of their sums stays in the second-level cache.
constexpr int64_t kOutputs = 16;

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

AlignedBuffer<float> zeros(int64_t size) {
  AlignedBuffer<float> buffer(size);
  std::fill_n(buffer.data(), size, 0.0f);
  return buffer;
}

// The least of the scores that were offered, in ascending order; of equal ones the first that came.
class Leaders {
 public:
  struct Leader {
    float score = kInfinite;  // where there was none to offer, or none that is a number
    int64_t sum = 0;          // that a centroid was added to
    int64_t code = 0;
  };

  void clear(int64_t most) { leaders_.assign(most, {}); }

  // Offer what `count` centroids score beside a sum: score(code).
  template <typename Score>
  void offer(int64_t sum, int64_t count, const Score& score) {
    float worst = leaders_.back().score;
    for (int64_t code = 0; code < count; ++code) {
      const float offered = score(code);
      if (!(offered < worst)) continue;
      auto at = leaders_.end() - 1;
      for (; at != leaders_.begin() && offered < (at - 1)->score; --at) *at = *(at - 1);
      *at = {.score = offered, .sum = sum, .code = code};
      worst = leaders_.back().score;
    }
  }

  const Leader& operator[](int64_t i) const { return leaders_[i]; }

 private:
  std::vector<Leader> leaders_;
};

// Sums of centroids of some outputs, `width` of each.
struct Sums {
  Sums(int64_t outputs, int64_t width_, int64_t codebooks, int64_t dim)
      : width(width_),
        scores(outputs * width, 0.0f),
        codes(outputs * width * codebooks, 0),
        blocks(outputs * width * dim, 0.0f) {}

  int64_t width;
  std::vector<float> scores;
  std::vector<int64_t> codes;  // [outputs, width, M]
  std::vector<float> blocks;   // [outputs, width, d]
};

// Where the codes of some outputs are: that of output n and codebook m at first[n * of_output + m * of_codebook].
struct Codes {
  int64_t& at(int64_t n, int64_t m) const { return first[n * of_output + m * of_codebook]; }

  int64_t* first;
  int64_t of_output;
  int64_t of_codebook;
};

// The search for the centroids whose sum c makes cᵀ H c - 2 cᵀ w, and the prices of their codes, least.
//
// Of several codebooks one is looked at after another, and only the best sums so far are kept (beam search, as in
// Babenko and Lempitsky, "Additive Quantization", CVPR 2014). Each code is then made the best one for all others.
class Search {
 public:
  explicit Search(const BlockPanel& panel)
      : panel_(panel),
        kernels_(select_kernels("")),
        d_(panel.centroids.dim),
        k_(panel.centroids.centroids),
        m_(panel.centroids.codebooks),
        pitch_(round_up(k_, kernels_.lanes)),
        most_rows_(round_up(kOutputs * panel.beams, kernels_.tile.rows)),
        centroids_(zeros(m_ * d_ * pitch_)),
        bent_(zeros(m_ * d_ * pitch_)),
        own_(zeros(m_ * pitch_)),
        factors_(zeros(most_rows_ * d_)),
        scores_(zeros(m_ * most_rows_ * pitch_)),
        products_(zeros(most_rows_ * pitch_)),
        curvature_(d_ * d_),
        block_(d_),
        bent_block_(d_) {
    for (int64_t i = 0; i < d_; ++i) row_begins_.push_back(static_cast<int32_t>(i * pitch_));
    for (int64_t m = 0; m < m_; ++m) {
      for (int64_t k = 0; k < k_; ++k) {
        for (int64_t i = 0; i < d_; ++i) row(centroids_, m, i)[k] = centroid(m, k)[i];
      }
    }
  }

  // Look for blocks whose error is bent by H [d, d], symmetric.
  void bend(std::vector<float> curvature) {
    curvature_ = std::move(curvature);
    std::fill_n(bent_.data(), bent_.size(), 0.0f);
    std::fill_n(own_.data(), own_.size(), 0.0f);
    for (int64_t m = 0; m < m_; ++m) {
      for (int64_t i = 0; i < d_; ++i) {
        float* const bent = row(bent_, m, i);
        for (int64_t j = 0; j < d_; ++j) add(curvature_[i * d_ + j], row(centroids_, m, j), k_, bent);
        for (int64_t k = 0; k < k_; ++k) own_[m * pitch_ + k] += row(centroids_, m, i)[k] * bent[k];
      }
    }
  }

  // result [d] = H times a block.
  void bend_block(const float* block, float* result) const {
    for (int64_t i = 0; i < d_; ++i) result[i] = dot(&curvature_[i * d_], block, d_);
  }

  // Add the block [d] that the codes of output n stand for.
  void add_block(const Codes& codes, int64_t n, float* sums) const {
    for (int64_t m = 0; m < m_; ++m) add(1, centroid(m, codes.at(n, m)), d_, sums);
  }

  // Choose the codes of `count` <= kOutputs outputs; where those that are there are as good, they stay.
  //   wanted   [count, d]
  //   markups  [count], if there are prices
  void choose(int64_t count, const float* wanted, const float* markups, bool has_codes, const Codes& codes) {
    score_centroids(count, wanted, markups);
    const Sums best = best_sums(count);
    for (int64_t n = 0; n < count; ++n) {
      if (has_codes && !(best.scores[n] < cost(n, wanted + n * d_, markups, codes))) continue;
      for (int64_t m = 0; m < m_; ++m) codes.at(n, m) = best.codes[n * m_ + m];
    }
    if (m_ > 1) improve_one_by_one(count, codes);
  }

 private:
  const float* centroid(int64_t m, int64_t k) const { return panel_.centroids.values + (m * k_ + k) * d_; }
  float* row(AlignedBuffer<float>& matrices, int64_t m, int64_t i) const { return &matrices[(m * d_ + i) * pitch_]; }
  float* scores_of(int64_t m, int64_t n) { return &scores_[(m * most_rows_ + n) * pitch_]; }

  // out[r][k] = the sum over i of factors_[r][i] * matrix[i][k], for r < rows.
  void multiply(int64_t rows, const float* matrix, float* out) const {
    const Tile& tile = kernels_.tile;
    for (int64_t r = 0; r < rows; r += tile.rows) {
      for (int64_t k = 0; k < k_; k += tile.pixels) {
        kernels_.gemm_tile(nullptr, &factors_[r * d_], d_, 1, matrix + k, row_begins_.data(), out + r * pitch_ + k,
                           pitch_, std::min(tile.pixels, k_ - k));
      }
    }
  }

  // What each centroid scores by itself: cᵀ H c - 2 cᵀ w, and its price.
  void score_centroids(int64_t count, const float* wanted, const float* markups) {
    for (int64_t i = 0; i < count * d_; ++i) factors_[i] = -2 * wanted[i];
    for (int64_t m = 0; m < m_; ++m) {
      multiply(count, row(centroids_, m, 0), scores_of(m, 0));
      for (int64_t n = 0; n < count; ++n) {
        add(1, &own_[m * pitch_], k_, scores_of(m, n));
        if (panel_.prices != nullptr) add(markups[n], panel_.prices + m * k_, k_, scores_of(m, n));
      }
    }
  }

  // Set products_[r] to what centroids of codebook m score more beside each of some blocks [rows, d].
  void score_beside(const float* blocks, int64_t rows, int64_t m) {
    for (int64_t i = 0; i < rows * d_; ++i) factors_[i] = 2 * blocks[i];
    multiply(rows, row(bent_, m, 0), products_.data());
  }

  // The best sum that is found for each output.
  Sums best_sums(int64_t count) {
    Sums sums(count, 1, m_, d_);
    for (int64_t m = 0; m < m_; ++m) {
      Sums next(count, m + 1 < m_ ? panel_.beams : 1, m_, d_);
      if (m > 0) score_beside(sums.blocks.data(), count * sums.width, m);
      for (int64_t n = 0; n < count; ++n) {
        leaders_.clear(next.width);
        const float* const scores = scores_of(m, n);
        for (int64_t sum = n * sums.width; sum < (n + 1) * sums.width; ++sum) {
          const float before = sums.scores[sum];
          const float* const more = &products_[sum * pitch_];
          if (m == 0) {
            leaders_.offer(sum, k_, [&](int64_t code) { return scores[code]; });
          } else if (before < kInfinite) {
            leaders_.offer(sum, k_, [&](int64_t code) { return before + scores[code] + more[code]; });
          }
        }
        for (int64_t i = 0; i < next.width; ++i) {
          const Leaders::Leader& leader = leaders_[i];
          const int64_t to = n * next.width + i;
          next.scores[to] = leader.score;
          std::copy_n(&sums.codes[leader.sum * m_], m, &next.codes[to * m_]);
          next.codes[to * m_ + m] = leader.code;
          std::copy_n(&sums.blocks[leader.sum * d_], d_, &next.blocks[to * d_]);
          add(1, centroid(m, leader.code), d_, &next.blocks[to * d_]);
        }
      }
      sums = std::move(next);
    }
    return sums;
  }

  // What the codes of output n cost.
  float cost(int64_t n, const float* wanted, const float* markups, const Codes& codes) {
    std::fill_n(block_.data(), d_, 0.0f);
    add_block(codes, n, block_.data());
    bend_block(block_.data(), bent_block_.data());
    float result = dot(block_.data(), bent_block_.data(), d_) - 2 * dot(block_.data(), wanted, d_);
    for (int64_t m = 0; m < m_ && panel_.prices != nullptr; ++m) {
      result += markups[n] * panel_.prices[m * k_ + codes.at(n, m)];
    }
    return result;
  }

  void improve_one_by_one(int64_t count, const Codes& codes) {
    std::vector<float> others(count * d_);
    for (int64_t m = 0; m < m_; ++m) {
      std::fill(others.begin(), others.end(), 0.0f);
      for (int64_t n = 0; n < count; ++n) {
        add_block(codes, n, &others[n * d_]);
        add(-1, centroid(m, codes.at(n, m)), d_, &others[n * d_]);
      }
      score_beside(others.data(), count, m);
      for (int64_t n = 0; n < count; ++n) {
        leaders_.clear(1);
        const float *const scores = scores_of(m, n), *const more = &products_[n * pitch_];
        leaders_.offer(0, k_, [&](int64_t code) { return scores[code] + more[code]; });
        codes.at(n, m) = leaders_[0].code;
      }
    }
  }

  const BlockPanel& panel_;
  const KernelTable kernels_;
  int64_t d_, k_, m_;
  int64_t pitch_;      // between the rows of matrices whose columns are centroids
  int64_t most_rows_;  // that are multiplied at once
  std::vector<int32_t> row_begins_;
  AlignedBuffer<float> centroids_;  // [M, d, pitch_]
  AlignedBuffer<float> bent_;       // the same times H
  AlignedBuffer<float> own_;        // [M, pitch_], cᵀ H c
  AlignedBuffer<float> factors_;    // [most_rows_, d]
  AlignedBuffer<float> scores_;     // [M, most_rows_, pitch_]
  AlignedBuffer<float> products_;   // [most_rows_, pitch_]
  std::vector<float> curvature_;    // H [d, d]
  std::vector<float> block_, bent_block_;
  Leaders leaders_;
};

// The square [d, d] of a matrix, whose rows are `pitch` apart, that begins at row and column `at`.
std::vector<float> square(const float* matrix, int64_t pitch, int64_t at, int64_t dim) {
  std::vector<float> result(dim * dim);
  for (int64_t i = 0; i < dim; ++i) std::copy_n(matrix + (at + i) * pitch + at, dim, &result[i * dim]);
  return result;
}

// Of some outputs of a group, from `first` on.
struct Piece {
  int64_t first;
  int64_t count;
};

// Call body(piece) for all outputs of a group, a few at a time.
template <typename Body>
void for_pieces(const BlockPanel& panel, int64_t group, const Body& body) {
  for (int64_t r = 0; r < panel.outputs; r += kOutputs) {
    body(Piece{.first = group * panel.outputs + r, .count = std::min(kOutputs, panel.outputs - r)});
  }
}

const float* markups_of(const BlockPanel& panel, const Piece& piece) {
  return panel.markups == nullptr ? nullptr : panel.markups + piece.first;
}

// Where the codes of a piece's blocks j are.
Codes codes_of(const BlockPanel& panel, const Piece& piece, int64_t j, int64_t* codes) {
  return {.first = codes + piece.first * panel.blocks + j,
          .of_output = panel.blocks,
          .of_codebook = panel.groups * panel.outputs * panel.blocks};
}

}  // namespace

void sweep_blocks(const BlockPanel& panel, const float* gram, float* slope, int64_t* codes, float* change) {
  const int64_t d = panel.centroids.dim, inputs = panel.inputs();
  Search search(panel);
  std::vector<float> wanted(kOutputs * d), before(d);
  for (int64_t group = 0; group < panel.groups; ++group, gram += inputs * inputs) {
    for (int64_t begin = 0; begin < inputs; begin += d) {
      search.bend(square(gram, inputs, begin, d));
      for_pieces(panel, group, [&](const Piece& piece) {
        const Codes own = codes_of(panel, piece, begin / d, codes);
        float* const changes = change + piece.first * inputs + begin;
        for (int64_t n = 0; n < piece.count; ++n) {
          std::fill(before.begin(), before.end(), 0.0f);
          search.add_block(own, n, before.data());
          search.bend_block(before.data(), &wanted[n * d]);
          add(1, slope + (piece.first + n) * inputs + begin, d, &wanted[n * d]);
          for (int64_t i = 0; i < d; ++i) changes[n * inputs + i] = -before[i];
        }
        search.choose(piece.count, wanted.data(), markups_of(panel, piece), true, own);
        for (int64_t n = 0; n < piece.count; ++n) {
          search.add_block(own, n, changes + n * inputs);
          float* const rest = slope + (piece.first + n) * inputs + begin;
          for (int64_t i = 0; i < d; ++i) {
            add(-changes[n * inputs + i], gram + (begin + i) * inputs + begin, inputs - begin, rest);
          }
        }
      });
    }
  }
}

void feedback_blocks(const BlockPanel& panel, const float* lower, const float* target, float* missed, int64_t* codes,
                     float* error) {
  const int64_t d = panel.centroids.dim, inputs = panel.inputs();
  Search search(panel);
  std::vector<float> wanted(kOutputs * d), curvature(d * d), given(d);
  for (int64_t group = 0; group < panel.groups; ++group, lower += inputs * inputs) {
    for (int64_t begin = inputs - d; begin >= 0; begin -= d) {
      const std::vector<float> own = square(lower, inputs, begin, d);  // Lower triangular: Uᵀ of the block.
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j < d; ++j) curvature[i * d + j] = dot(&own[i * d], &own[j * d], d);
      }
      search.bend(curvature);
      for_pieces(panel, group, [&](const Piece& piece) {
        const Codes here = codes_of(panel, piece, begin / d, codes);
        for (int64_t n = 0; n < piece.count; ++n) {
          const int64_t at = (piece.first + n) * inputs + begin;
          // What U gives of the target and the errors so far, and Uᵀ of that.
          std::copy_n(missed + at, d, given.data());
          for (int64_t i = 0; i < d; ++i) add(target[at + i], &own[i * d], d, given.data());
          for (int64_t i = 0; i < d; ++i) wanted[n * d + i] = dot(&own[i * d], given.data(), d);
        }
        search.choose(piece.count, wanted.data(), markups_of(panel, piece), false, here);
        for (int64_t n = 0; n < piece.count; ++n) {
          const int64_t at = (piece.first + n) * inputs + begin;
          std::fill_n(error + at, d, 0.0f);
          search.add_block(here, n, error + at);
          for (int64_t i = 0; i < d; ++i) {
            error[at + i] = target[at + i] - error[at + i];
            add(error[at + i], lower + (begin + i) * inputs, begin, missed + (piece.first + n) * inputs);
          }
        }
      });
    }
  }
}

}  // namespace pyquant
