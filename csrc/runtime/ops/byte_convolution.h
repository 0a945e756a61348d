// What the integer paths of a convolution share: their epilogue, which writes bytes or floats.
#pragma once

#include <vector>

#include "runtime/byte_weights.h"
#include "runtime/ops/convolution.h"
#include "runtime/quad_decoder.h"

namespace pyquant {

// The same with quads of channels in place of channels.
ConvGeometry in_quads(ConvGeometry geometry);

class ByteConvolution {
 public:
  ByteConvolution(const Convolution& convolution, const PlanContext& context);

  // The weights of output o are scale[o] * bytes, which have this sum. Empty once that is settled.
  std::vector<float> weight_scale;   // [O]
  std::vector<int64_t> weight_sums;  // [O]

  // Return the quads [O, depth] of a dense weight, in quad_order(), and take up their scales and sums.
  AlignedBuffer<uint32_t> take_dense_rows();

  // Return the codebooks [M, K, d] of a coded weight in whole numbers, and take up their scale.
  AlignedBuffer<float> take_codebooks();

  // Return the joint codebook of a coded weight as quads [K, d / 4], in quad_order(), or what decodes its quads, and
  // take up their scale and sums.
  AlignedBuffer<uint32_t> take_centroids();
  QuadDecoder take_decoder(bool apart = false);

  // To be called once the weights are taken. Sums are to be multiplied by 2^shift. The epilogue, which is what runs
  // multiply sums with and add to them, is known from now on where all bytes have ranges before a run.
  void settle(int64_t shift, const PlanContext& context);

  // Where they have not, each run writes its epilogue to memory of so many floats before anything is finished. Where
  // they have, it needs none, and `epilogue` is not looked at.
  int64_t epilogue_floats() const { return settled_.empty() ? all_epilogue_floats() : 0; }
  void write_epilogue(const RunState& state, float* epilogue) const;

  // As Convolution::finish(), for integer sums. Rows behind the last output, up to a multiple of four, are read too.
  // `scratch` has finish_floats() for tiles of this pitch.
  int64_t finish_floats(int64_t pitch) const;
  void finish(const int32_t* tile, int64_t pitch, int64_t output, int64_t rows, int64_t pixel, int64_t count,
              const float* epilogue, const RunState& state, float* scratch) const;

  // Whether outputs are bytes.
  bool writes_bytes() const { return writes_bytes_; }

  // If they are: calls write(tile, first, run) for each written plane that some pixels are of, whose tile is to be made
  // of `run` of them, from the `first` on.
  template <typename Write>
  void for_tiles(int64_t output, int64_t rows, int64_t pixel, int64_t count, const float* epilogue,
                 const RunState& state, const Write& write) const {
    FinishedTile8 tile = tile_of(output, rows, settled_or(epilogue));
    const int64_t quads = ceil_div(c.weight->outputs, kQuad);
    int64_t done = 0;
    c.geometry.for_written(pixel, count, [&](int64_t plane, int64_t first, int64_t run) {
      const int64_t at = (plane * quads + output / kQuad) * tile.out_pitch + first;
      if (c.residual >= 0) tile.finish.residual = state.quads(c.residual) + at;
      tile.out = state.quads(c.output) + at;
      write(tile, done, run);
      done += run;
    });
  }

  // As Convolution::expect().
  void expect(int64_t output, int64_t rows, int64_t pixel, int64_t count, const RunState& state) const;

  Convolution c;

 private:
  // Outputs that are converted to floats together.
  static constexpr int64_t kRows = 8;

  // Of a coded weight.
  float largest_weight() const;

  // What the bytes stand for that are read, written and, of a residual, added.
  struct Quantizations {
    Quantization in, out, before;
  };

  void write(const Quantizations& bytes, float* epilogue) const;
  int64_t all_epilogue_floats() const;
  int64_t padded_outputs() const { return round_up(c.weight->outputs, 16); }
  const float* settled_or(const float* written) const { return settled_.empty() ? written : settled_.data(); }
  FinishedTile8 tile_of(int64_t output, int64_t rows, const float* epilogue) const;

  bool writes_bytes_;
  int64_t shift_ = 0;
  std::vector<float> settled_;  // an epilogue; empty: one for each run
};

}  // namespace pyquant
