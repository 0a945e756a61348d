// What gemm_tile8 leaves of weights whose products it would cut off, where it adds these in pairs.
//
// Of layers as they are trained, one quad in a hundred is so large, or none. Of such a quad gemm_tile8 multiplies what
// it can; the rest is multiplied by sparse_sum8, exactly, and added. Where most quads are so, as of weights that are
// all +1 and -1, that takes twice as long, and three times the memory of dense bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace pyquant {

// Whether gemm_tile8 can multiply a quad: each of its two pairs adds up to kMostPair at most, without its sign.
bool fits(uint32_t quad);

// The nearest quad of weights whose pairs add up to kMostPair at most: of a pair that does not, the second is smaller.
uint32_t fitting_quad(uint32_t quad);

class QuadRests {
 public:
  QuadRests() = default;  // where gemm_tile8 multiplies all weights as they are

  // Of the quads [at.size()] of each output, which write(output, quads) writes; their inputs begin at these places of a
  // panel.
  template <typename Write>
  QuadRests(int64_t outputs, const std::vector<int32_t>& at, const Write& write) {
    std::vector<uint32_t> quads(at.size());
    begin_.push_back(0);
    for (int64_t o = 0; o < outputs; ++o) {
      write(o, quads.data());
      add_output(quads, at);
    }
  }

  bool empty() const { return rests_.empty(); }

  // Put in place of the quads of some outputs, [outputs, pitch], what gemm_tile8 can multiply.
  void fit(int64_t output, int64_t outputs, uint32_t* quads, int64_t pitch) const;

  // Add the products of what is left of these outputs to their sums [outputs, kSparsePixels].
  void add(const KernelTable& kernels, int64_t output, int64_t outputs, const uint32_t* panel, int32_t* sums,
           int64_t pixels) const;

 private:
  void add_output(const std::vector<uint32_t>& quads, const std::vector<int32_t>& at);

  std::vector<Sparse<uint32_t>> rests_;
  std::vector<int32_t> places_;  // of each rest, in the row of its output
  std::vector<int32_t> begin_;   // [O + 1]: of each output's rests
};

}  // namespace pyquant
