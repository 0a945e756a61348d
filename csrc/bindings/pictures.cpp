#include "bindings/pictures.h"

#include "bindings/convert.h"
#include "runtime/pictures.h"

namespace pyquant {

using namespace py::literals;

void register_pictures(py::module_& m) {
  m.def(
      "resize_picture",
      [](const Array<uint8_t>& pixels, const Array<float>& levels, int64_t height, int64_t width, int64_t padded_height,
         int64_t padded_width) {
        const bool is_picture = pixels.ndim() == 3 && pixels.shape(2) == 3 && pixels.size() > 0;
        if (!is_picture || levels.size() != 3 * 256) throw Error("expected pixels [H, W, 3] and levels [3, 256]");
        if (height < 1 || width < 1 || padded_height < height || padded_width < width) throw Error("sizes are off");
        const int64_t sizes[] = {3, padded_height, padded_width};
        checked_product(sizes);
        Array<float> planes({sizes[0], sizes[1], sizes[2]});
        float* out = planes.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          resize_picture(pixels.data(), pixels.shape(0), pixels.shape(1), levels.data(), height, width, padded_height,
                         padded_width, out);
        }
        return planes;
      },
      "pixels"_a, "levels"_a, "height"_a, "width"_a, "padded_height"_a, "padded_width"_a,
      "Pixels [H, W, 3] as planes [3, padded_height, padded_width], resized to height and width in their corner.");

  m.def(
      "paste_masks",
      [](const Array<float>& masks, const Array<float>& boxes, int64_t height, int64_t width) {
        const bool fits = masks.ndim() == 3 && masks.shape(1) == masks.shape(2) && boxes.ndim() == 2 &&
                          boxes.shape(0) == masks.shape(0) && boxes.shape(1) == 4;
        if (!fits) throw Error("expected masks [D, m, m] and boxes [D, 4]");
        const int64_t count = masks.shape(0), side = masks.shape(1);
        const int64_t sizes[] = {count, height, width};
        const int64_t bytes = checked_product(sizes);
        Array<bool> pictures({count, height, width});
        bool* out = pictures.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          std::fill_n(out, bytes, false);
          for (int64_t i = 0; i < count; ++i) {
            const float* box = boxes.data() + i * 4;
            paste_mask(masks.data() + i * side * side, side, {box[0], box[1], box[2], box[3]}, height, width,
                       out + i * height * width);
          }
        }
        return pictures;
      },
      "masks"_a, "boxes"_a, "height"_a, "width"_a,
      "Masks [D, m, m] of probabilities laid over their boxes in pictures [D, height, width], true above one half.");
}

}  // namespace pyquant
