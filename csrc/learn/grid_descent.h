// Codes of weights on uniform grids, chosen one after another: the inner loops of pyquant/learn/grids.py.
//
// Dimensions: G groups · R outputs of a group · P neighbouring inputs, a panel · L levels of a grid
#pragma once

#include <cstdint>

namespace pyquant {

// Grids of outputs: level k of an output is step * (k - zero / 2).
struct OutputGrids {
  int64_t groups;
  int64_t outputs;
  int64_t levels;
  const float* step;        // [G, R], above 0
  const float* zero;        // [G, R], in half steps
  const float* importance;  // [G, R], how much the error of an output counts beside prices
  const float* prices;      // [L], in units of the error; null: levels have none
  const bool* kept;         // [G, R, P], whether a weight is other than zero, whatever its code; null: all are
};

// Of one input after another, make each output's code the best one while all others stay as they are.
//   gram    [G, P, P]   inputs that are always zero have zeros on the diagonal: their codes stay
//   slope   [G, R, P]   half of how fast the error falls as a weight grows; of no use afterwards
//   codes   [G, R, P]   whole numbers below L
//   change  [G, R, P]   is set to how much larger each weight has become
void sweep_grids(const OutputGrids& grids, int64_t inputs, const float* gram, float* slope, float* codes,
                 float* change);

// From the last input to the first, choose each output's code so that it makes up for those chosen before.
//   lower   [G, P, P]   the transpose of U, of which Uᵀ U is the Gram, with a diagonal above 0
//   target  [G, R, P]   what weights should be
//   missed  [G, R, P]   U's rows times the errors of all weights chosen before the panel; of no use afterwards
//   codes, error  [G, R, P]   are set; an error is a target less the weight that was chosen
void feedback_grids(const OutputGrids& grids, int64_t inputs, const float* lower, const float* target, float* missed,
                    float* codes, float* error);

}  // namespace pyquant
