// Pictures on their way into a detector, and masks on their way out: both resized by bilinear interpolation.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/boxes.h"

namespace pyquant {

// Resize pixels [height, width, 3] to [3, out_height, out_width], in the corner of planes [3, pitch_height,
// pitch_width] that are zero elsewhere. levels [3, 256]: the number that each level of a channel stands for, before
// resizing.
void resize_picture(const uint8_t* pixels, int64_t height, int64_t width, const float* levels, int64_t out_height,
                    int64_t out_width, int64_t pitch_height, int64_t pitch_width, float* planes);

// Lay a mask [side, side] of probabilities over its box in a picture [height, width], zero before; a pixel is set where
// the mask is above one half. As torchvision does it, the mask has a border of zeros, and boxes begin at whole pixels.
void paste_mask(const float* mask, int64_t side, const Box& box, int64_t height, int64_t width, bool* picture);

}  // namespace pyquant
