#include "runtime/pictures.h"

#include <cmath>
#include <vector>

#include "runtime/interpolation.h"

namespace pyquant {
namespace {

std::vector<Source> sources_of(int64_t in, int64_t out) {
  const float step = static_cast<float>(in) / static_cast<float>(out);
  std::vector<Source> sources;
  for (int64_t i = 0; i < out; ++i) {
    sources.push_back(out == in ? Source{i, i, 0} : source_at(position_of(i, step), in));
  }
  return sources;
}

}  // namespace

void resize_picture(const uint8_t* pixels, int64_t height, int64_t width, const float* levels, int64_t out_height,
                    int64_t out_width, int64_t pitch_height, int64_t pitch_width, float* planes) {
  const std::vector<Source> rows = sources_of(height, out_height);
  const std::vector<Source> columns = sources_of(width, out_width);
  std::fill_n(planes, 3 * pitch_height * pitch_width, 0.0f);
  for (int64_t channel = 0; channel < 3; ++channel) {
    const float* level = levels + channel * 256;
    for (int64_t y = 0; y < out_height; ++y) {
      const uint8_t* top = pixels + rows[y].first * width * 3 + channel;
      const uint8_t* bottom = pixels + rows[y].second * width * 3 + channel;
      const float down = rows[y].weight;
      float* out = planes + (channel * pitch_height + y) * pitch_width;
      for (const Source& x : columns) {
        const float upper = level[top[x.first * 3]] * (1 - x.weight) + level[top[x.second * 3]] * x.weight;
        const float lower = level[bottom[x.first * 3]] * (1 - x.weight) + level[bottom[x.second * 3]] * x.weight;
        *out++ = upper * (1 - down) + lower * down;
      }
    }
  }
}

void paste_mask(const float* mask, int64_t side, const Box& box, int64_t height, int64_t width, bool* picture) {
  const int64_t bordered = side + 2;
  const auto growth = static_cast<float>(static_cast<double>(bordered) / static_cast<double>(side));
  // Where a box begins and ends, border included, as whole pixels.
  struct Span {
    int64_t first, size;
    float step;
  };
  const auto span_of = [&](float begin, float end) {
    const float centre = (end + begin) * 0.5f;
    const float half = (end - begin) * 0.5f * growth;
    const auto first = static_cast<int64_t>(centre - half);
    const int64_t size = std::max<int64_t>(static_cast<int64_t>(centre + half) - first + 1, 1);
    return Span{first, size, static_cast<float>(bordered) / static_cast<float>(size)};
  };
  constexpr float kFarthest = 1e9f;  // any number that int64_t holds
  for (const float at : {box.left, box.top, box.right, box.bottom}) {
    if (!(std::abs(at) <= kFarthest)) return;
  }
  const Span across = span_of(box.left, box.right);
  const Span down = span_of(box.top, box.bottom);
  const auto value = [&](int64_t y, int64_t x) {
    const bool is_inside = y >= 1 && y <= side && x >= 1 && x <= side;
    return is_inside ? mask[(y - 1) * side + x - 1] : 0.0f;
  };
  const int64_t last_row = std::min(down.first + down.size, height);
  const int64_t last_column = std::min(across.first + across.size, width);
  for (int64_t y = std::max<int64_t>(down.first, 0); y < last_row; ++y) {
    const Source row = source_at(position_of(y - down.first, down.step), bordered);
    for (int64_t x = std::max<int64_t>(across.first, 0); x < last_column; ++x) {
      const Source column = source_at(position_of(x - across.first, across.step), bordered);
      const float upper =
          value(row.first, column.first) * (1 - column.weight) + value(row.first, column.second) * column.weight;
      const float lower =
          value(row.second, column.first) * (1 - column.weight) + value(row.second, column.second) * column.weight;
      picture[y * width + x] = upper * (1 - row.weight) + lower * row.weight > 0.5f;
    }
  }
}

}  // namespace pyquant
