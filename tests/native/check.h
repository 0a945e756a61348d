// What tests of kernels share: named cases, random inputs, and comparisons that tell what differs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "guarded.h"

namespace pyquant {

// Sizes around the lanes of a vector, of each instruction set.
constexpr int64_t kAwkward[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 31, 32, 33, 47};

// The case that runs, for messages; a signal handler reads it too.
inline char current_case[256] = "";
inline int64_t num_cases = 0;

inline void begin_case(std::initializer_list<std::pair<const char*, int64_t>> sizes) {
  std::string text;
  for (const auto& [name, value] : sizes) text += std::string(" ") + name + "=" + std::to_string(value);
  std::snprintf(current_case, sizeof(current_case), "%s", text.c_str());
  ++num_cases;
}

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Random {
 public:
  int64_t below(int64_t end) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(end)); }
  // Floats of [-1, 1); integers of their whole range.
  template <typename T>
  T value() {
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(static_cast<double>(engine_()) / 0x1p31 - 1);
    return static_cast<T>(engine_());
  }

  // An array [rows, pitch] whose first `count` values of each row are random and whose others are unset.
  template <typename T>
  Guarded<T> rows(int64_t rows, int64_t count, int64_t pitch, Place place = {}) {
    Guarded<T> array((rows - 1) * pitch + count, kUnsetInput, place);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < count; ++i) array[r * pitch + i] = value<T>();
    }
    return array;
  }
  template <typename T>
  Guarded<T> array(int64_t count, Place place = {}) {
    return rows<T>(1, count, count, place);
  }
  Guarded<uint16_t> codes(int64_t rows, int64_t count, int64_t pitch, int64_t centroids) {
    Guarded<uint16_t> array((rows - 1) * pitch + count, kUnsetInput);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < count; ++i) array[r * pitch + i] = static_cast<uint16_t>(below(centroids));
    }
    return array;
  }

 private:
  std::mt19937 engine_{0};
};

// Rows of outputs: the first `count` values are compared, those behind them up to `writable` may hold anything, and the
// rest up to `pitch` must be unset.
struct Rows {
  int64_t rows, count, writable, pitch;
  int64_t size() const { return (rows - 1) * pitch + writable; }
};

template <typename T>
Guarded<T> output(const Rows& shape, Place place = {}) {
  return Guarded<T>(shape.size(), kUnsetOutput, place);
}

// How far sums of so many products may differ that are added up in different orders; see tests/tolerance.py.
inline double tolerance(const std::vector<float>& expected, int64_t terms) {
  double largest = 1e-30;
  for (const float value : expected) {
    if (std::isfinite(value)) largest = std::fmax(largest, std::fabs(static_cast<double>(value)));
  }
  return 8.0 * static_cast<double>(std::numeric_limits<float>::epsilon()) * std::sqrt(terms + 1.0) * largest;
}

template <typename T>
[[noreturn]] void fail(int64_t row, int64_t column, const std::string& expected, T got, double allowed) {
  std::ostringstream message;
  message.precision(9);
  message << "out[" << row << "][" << column << "]: expected " << expected << ", got " << +got;
  if (allowed > 0) message << "; may differ by " << allowed;
  throw Failure(message.str());
}

template <typename T>
std::string to_text(T value) {
  std::ostringstream text;
  text.precision(9);
  text << +value;
  return text.str();
}

// Compare `got` with expected [rows, count]: equal numbers, two NaNs, and differences up to `allowed` pass.
template <typename T>
void expect_rows(const Guarded<T>& got, const Rows& shape, const std::vector<T>& expected, double allowed = 0) {
  const auto same = [&](T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a) && std::isnan(b)) return true;
      if (std::fabs(static_cast<double>(a) - static_cast<double>(b)) <= allowed) return true;
    }
    return a == b;
  };
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t i = 0; i < shape.pitch && r * shape.pitch + i < got.size(); ++i) {
      const int64_t at = r * shape.pitch + i;
      if (i < shape.count) {
        const T wanted = expected[static_cast<size_t>(r * shape.count + i)];
        if (!same(got[at], wanted)) fail(r, i, to_text(wanted), got[at], allowed);
      } else if (i >= shape.writable && !got.is_unset(at)) {
        fail(r, i, "to be left alone", got[at], 0);
      }
    }
  }
  if (!got.surroundings_are_unset()) throw Failure("expected nothing around the output to be written");
}

template <typename T>
void copy_rows(const Guarded<T>& from, const Rows& shape, Guarded<T>& to) {
  for (int64_t r = 0; r < shape.rows; ++r) {
    std::copy_n(from.data() + r * shape.pitch, shape.count, to.data() + r * shape.pitch);
  }
}

// The first `count` values of each row, without what lies between them.
template <typename T>
std::vector<T> dense(const Guarded<T>& array, int64_t rows, int64_t count, int64_t pitch) {
  std::vector<T> values;
  for (int64_t r = 0; r < rows; ++r)
    values.insert(values.end(), array.data() + r * pitch, array.data() + r * pitch + count);
  return values;
}

}  // namespace pyquant
