// Owned memory for kernels: aligned to a cache line, with slack behind its end that vector loads may touch.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "base/sizes.h"

namespace pyquant {

constexpr int64_t kAlignment = 64;

// Kernels load and store whole vectors: what lies up to this many bytes behind an array must be ours.
constexpr int64_t kSlackBytes = 256;

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) : size_(size) {
    const int64_t bytes = checked_multiply(size, sizeof(T)) + kSlackBytes;
    data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{kAlignment})));
    std::memset(static_cast<void*>(data_.get() + size), 0, kSlackBytes);
  }
  explicit AlignedBuffer(std::span<const T> values) : AlignedBuffer(static_cast<int64_t>(values.size())) {
    if (!values.empty()) std::memcpy(data_.get(), values.data(), values.size_bytes());
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* pointer) const { ::operator delete(pointer, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace pyquant
