// Codes of blocks of weights, chosen one block after another: the inner loops of pyquant/learn/descent.py.
//
// Dimensions: G groups · R outputs of a group · P neighbouring inputs, a panel of J blocks of d · M additive codebooks
// · K centroids of each
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace pyquant {

// A panel of blocks of weights, each of which is to be a sum of centroids.
struct BlockPanel {
  int64_t inputs() const { return blocks * centroids.dim; }

  int64_t groups;
  int64_t outputs;
  int64_t blocks;        // J
  Codebooks centroids;   // [M, K, d]
  int64_t beams;         // sums of centroids that a search for codes keeps, at least 1
  const float* prices;   // [M, K], of codes; null: they have none
  const float* markups;  // [G, R], what the prices of an output are multiplied with, if there are any
};

// Of one block after another, make each output's codes better, if there are better ones, while all others stay.
//   gram    [G, P, P]
//   slope   [G, R, P]      half of how fast the error falls as a weight grows; of no use afterwards
//   codes   [M, G, R, J]   each below K
//   change  [G, R, P]      is set to how much larger each weight has become
void sweep_blocks(const BlockPanel& panel, const float* gram, float* slope, int64_t* codes, float* change);

// From the last block to the first, choose each output's codes so that they make up for those chosen before.
//   lower   [G, P, P]      the transpose of U, of which Uᵀ U is the Gram
//   target  [G, R, P]      what weights should be
//   missed  [G, R, P]      U's rows times the errors of all weights chosen before the panel; of no use afterwards
//   codes   [M, G, R, J]   are set, and so is `error` [G, R, P]: a target less the weight that was chosen
void feedback_blocks(const BlockPanel& panel, const float* lower, const float* target, float* missed, int64_t* codes,
                     float* error);

}  // namespace pyquant
