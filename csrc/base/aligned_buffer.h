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

// Of what processors call huge pages. Rows of large values lie pages apart, and to find a page takes them longer than
// to find a number in the second-level cache, above all where the machine is a virtual one.
constexpr int64_t kHugePage = int64_t{2} << 20;

// Ask the system for huge pages for `bytes` from `memory` on, both multiples of one; it may refuse.
void ask_for_huge_pages(void* memory, int64_t bytes);

// Kernels load and store whole vectors: what lies up to this many bytes behind an array must be ours.
constexpr int64_t kSlackBytes = 256;

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) : size_(size) {
    int64_t bytes = checked_multiply(size, sizeof(T)) + kSlackBytes;
    const bool is_large = bytes >= kHugePage;
    const std::align_val_t alignment{static_cast<size_t>(is_large ? kHugePage : kAlignment)};
    if (is_large) bytes = round_up(bytes, kHugePage);
    data_ = {static_cast<T*>(::operator new(static_cast<size_t>(bytes), alignment)), Free{alignment}};
    if (is_large) ask_for_huge_pages(data_.get(), bytes);
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
    std::align_val_t alignment{static_cast<size_t>(kAlignment)};
    void operator()(T* pointer) const { ::operator delete(pointer, alignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace pyquant
