// The matrices of Winograd's F(m x m, 3 x 3) (Lavin and Gray, 2016).
//
// A tile of m x m outputs y of a 3x3 kernel g over (m + 2) x (m + 2) inputs d is
//
//   y = output · [(weights · g · weightsᵀ) ⊙ (input · d · inputᵀ)] · outputᵀ
//
// with (m + 2)² multiplications instead of 9 m².
#pragma once

#include <cstdint>

namespace pyquant {

struct WinogradMatrices {
  int64_t outputs;  // m
  double input[6][6];
  double weights[6][3];
  double output[4][6];

  constexpr int64_t side() const { return outputs + 2; }
  constexpr int64_t frequencies() const { return side() * side(); }

  // (weights · g · weightsᵀ)[f] of a kernel g.
  double frequency(int64_t f, const float* kernel) const {
    double sum = 0;
    for (int64_t y = 0; y < 3; ++y) {
      for (int64_t x = 0; x < 3; ++x) sum += weights[f / side()][y] * weights[f % side()][x] * kernel[y * 3 + x];
    }
    return sum;
  }
};

// Interpolation points 0, 1, -1 and infinity.
inline constexpr WinogradMatrices kWinograd2x2 = {
    .outputs = 2,
    .input = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}},
    .weights = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}},
    .output = {{1, 1, 1, 0}, {0, 1, -1, -1}},
};

// Interpolation points 0, a, -a, b, -b and infinity. The usual a = 1, b = 2 make rounding errors four times as large,
// which these do not: of a sum of 2304 products at most 2e-6 of the largest, where adding up directly leaves 1e-6.
inline constexpr double kWinogradA = 0.75;
inline constexpr double kWinogradB = 1.5;
inline constexpr double kWinogradA2 = kWinogradA * kWinogradA;
inline constexpr double kWinogradB2 = kWinogradB * kWinogradB;

inline constexpr WinogradMatrices kWinograd4x4 = [] {
  constexpr double a = kWinogradA, b = kWinogradB, a2 = kWinogradA2, b2 = kWinogradB2;
  constexpr double na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);
  return WinogradMatrices{
      .outputs = 4,
      .input = {{a2 * b2, 0, -(a2 + b2), 0, 1, 0},
                {0, -a * b2, -b2, a, 1, 0},
                {0, a * b2, -b2, -a, 1, 0},
                {0, -b * a2, -a2, b, 1, 0},
                {0, b * a2, -a2, -b, 1, 0},
                {0, a2 * b2, 0, -(a2 + b2), 0, 1}},
      .weights = {{1 / (a2 * b2), 0, 0},
                  {1 / na, a / na, a2 / na},
                  {1 / na, -a / na, a2 / na},
                  {1 / nb, b / nb, b2 / nb},
                  {1 / nb, -b / nb, b2 / nb},
                  {0, 0, 1}},
      .output = {{1, 1, 1, 1, 1, 0},
                 {0, a, -a, b, -b, 0},
                 {0, a2, a2, b2, b2, 0},
                 {0, a * a2, -a * a2, b * b2, -b * b2, 1}},
  };
}();

}  // namespace pyquant
